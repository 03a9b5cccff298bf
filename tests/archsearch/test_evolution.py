"""Children are legal, differ from their parents, and take what they can from them."""

import itertools
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from archsearch import evolution, load_space
from archsearch.domains import Choice, Float, Int, Range, Value, parse
from archsearch.evolution import Individual, child, crossed, express, moved
from archsearch.proposing import Proposer
from archsearch.resolving import Draw
from archsearch.space import Space

FILES = sorted(Path(__file__).parents[2].glob("spaces/*.yaml"))
DOMAINS = {
    "words": {"choice": ["a", "b", "c"]},
    "true and 1": {"choice": [True, 1, 2]},
    "alternatives": {"choose": {"a": {}, "b": {}, "c": {}}, "prior": {"b": 9}},
    "numbers": {"choice": [8, 2, 64, 16]},
    "sums": {"composition": 5, "parts": ["a", "b", "c"]},
    "shares": {"simplex": 3, "step": 0.25},
    "whole": {"int": [1, 9]},
    "whole, stepped": {"int": [1, 10], "step": 4},
    "whole, log": {"int": [1, 6], "log": True},
    "stepped": {"float": [0.0, 1.0], "step": 0.3},
}
ENDLESS = {"float": [2.0, 256.0], "log": True}, {"float": [-1.0, 1.0]}, {"fraction": True}
BRANCHES = """
archsearch: 1
name: branches
define:
  heads: {choice: [1, 2, 4, 8]}
  one: {choose: {retention: {heads: $heads, decay: {type: learned, half_life: {float: [2, 256], log: true}}}, attention: {heads: $heads}, mamba: {state: {choice: [4, 8, 16]}}}}
model:
  dim: 8
  layers: 2
  topology:
    choose:
      interleave: {major: $one}
      parallel: {branches: [$one, $one], merge: {choose: {sum: {}, gate: {per: {choice: [token, channel]}}}}}
tasks: [{type: in_context_recall}]
"""


@pytest.fixture
def branches(tmp_path: Path) -> Space:
    path = tmp_path / "branches.yaml"
    path.write_text(BRANCHES)
    return load_space(path)


def individuals(space: Space, rng: random.Random, count: int = 12) -> list[Individual]:
    draws = [space.resolve(lambda _, d: d.draw(rng)) for _ in range(count)]
    return [Individual(draw.decisions, (0.0, rng.random())) for draw in draws]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_children_of_every_space_are_other_draws_of_it(path: Path) -> None:
    """Each value one of its domain, each path one that this draw asks for, one of them new."""
    space, rng = load_space(path), random.Random(0)
    trained = individuals(space, rng)
    for _ in range(60):
        genes = child(space, trained, rng)
        draw = space.resolve(lambda name, domain, genes=genes: genes[name])
        assert draw.decisions == genes
        for name, domain in draw.domains.items():
            assert evolution._legal(domain, genes[name]), (name, genes[name])
    assert child(space, trained, random.Random(1)) == child(space, trained, random.Random(1))


@pytest.mark.parametrize("name", DOMAINS)
def test_a_move_is_to_another_value_and_reaches_all(name: str) -> None:
    domain, rng = parse(DOMAINS[name]), random.Random(0)
    value: Value = domain.default
    seen = Counter()
    for _ in range(600):
        other = moved(domain, value, rng)
        assert evolution._legal(domain, other)
        assert (type(other), other) != (type(value), value)
        value = other
        seen[type(value), value] += 1
    assert len(seen) == domain.size


@pytest.mark.parametrize("said", ENDLESS)
def test_a_move_stays_in_a_range_and_goes_all_over_it(said: dict) -> None:
    domain, rng = parse(said), random.Random(0)
    assert isinstance(domain, Float)
    values = [domain.default]
    for _ in range(2000):
        values.append(moved(domain, values[-1], rng))
    assert all(value in domain for value in values)
    u = sorted(_share(domain, value) for value in values)
    assert u[200] < 0.2
    assert u[1800] > 0.8


def _share(domain: Range, value: Any) -> float:
    scale = math.log if domain.log else float
    return (scale(value) - scale(domain.lo)) / (scale(domain.hi) - scale(domain.lo))


def test_near_moves_are_likelier() -> None:
    rng = random.Random(0)
    numbers = parse({"choice": [16, 4, 8, 2, 32]})
    seen = Counter(moved(numbers, 8, rng) for _ in range(2000))
    assert seen[4] > 2 * seen[2] > 0
    assert seen[16] > 2 * seen[32] > 0
    sums = parse({"composition": 6, "parts": ["a", "b"]})
    seen = Counter(moved(sums, "1+5", rng) for _ in range(2000))
    assert seen["2+4"] > 2 * seen["3+3"] > 2 * seen["5+1"] > 0
    whole = parse({"int": [1, 100]})
    assert isinstance(whole, Int)
    steps = [abs(moved(whole, 50, rng) - 50) for _ in range(500)]  # type: ignore[operator]
    assert sum(steps) / len(steps) < 25  # where any number has 25 on average


def test_crossover_takes_a_decision_with_all_that_it_owns() -> None:
    first = {"t": "a", "t/a/x": 1, "t/a/y": 2, "tt": 5, "z": 0}
    second = {"t": "b", "t/b/w": 7, "tt": 5, "z": 0}
    assert crossed(first, second, random.Random(0)) == {"tt": 5, "z": 0, "t": "b", "t/b/w": 7}
    assert crossed(first, first, random.Random(0)) == first
    assert crossed(first, {"other": 1}, random.Random(0)) == first
    same = first | {"t/a/x": 3}  # one value apart, below the same alternative
    made = [crossed(first, same, random.Random(seed)) for seed in range(20)]
    assert all(genes == same for genes in made)


def test_children_of_two_have_nothing_of_a_third(branches: Space) -> None:
    rng = random.Random(0)
    for _ in range(100):
        one, two = individuals(branches, rng, 2)
        genes = crossed(one.genes, two.genes, rng)
        draw = express(branches, genes, {**two.genes, **one.genes}, rng)
        for path, value in draw.decisions.items():
            assert value in (one.genes.get(path), two.genes.get(path))


def test_what_was_decided_travels_with_its_name(branches: Space) -> None:
    """From where it stood to where the like is asked for now, from the place most like it."""
    before = {
        "topology": "parallel",
        "topology/parallel/branches/0": "attention",
        "topology/parallel/branches/0/attention/heads": 8,
        "topology/parallel/branches/1": "retention",
        "topology/parallel/branches/1/retention/heads": 2,
        "topology/parallel/branches/1/retention/decay/half_life": 33.0,
        "topology/parallel/merge": "sum",
    }
    genes = {"topology": "interleave", "topology/interleave/major": "retention"}
    for seed in range(5):
        draw = express(branches, genes, before, random.Random(seed))
        assert draw.decisions == {
            **genes,
            "topology/interleave/major/retention/heads": 2,
            "topology/interleave/major/retention/decay/half_life": 33.0,
        }


def test_a_space_of_one_has_one_child(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(
        "archsearch: 1\nname: one\nmodel: {dim: 8, layers: 2, topology: {type: interleave,"
        " major: {choice: [mamba]}}}\ntasks: [{type: in_context_recall}]\n"
    )
    genes = {"topology/major": "mamba"}
    parent = Individual(genes, (0.0, 0.0))
    assert child(load_space(path), [parent], random.Random(0)) == genes


def test_ranks_put_what_keeps_its_soft_limits_first(branches: Space) -> None:
    rng = random.Random(0)
    within, over = individuals(branches, rng, 2)
    within = Individual(within.genes, (0.0, 9.0))
    over = Individual(over.genes, (0.1, 1.0))
    assert evolution._fittest([within, over], rng) is within
    assert evolution._fittest([over, within], rng) is within


def score(draw: Draw) -> float:
    """A loss with a term for every decision, wherever its kind of name stands, and every pair."""
    total, chosen = 0.0, []
    for path, value in draw.decisions.items():
        domain, name = draw.domains[path], "/".join(path.split("/")[-2:])
        if isinstance(domain, Choice):
            chosen.append((name, value))
            total += effect(name, value)
        else:
            total += 4 * (_share(domain, value) - random.Random(name).random()) ** 2
    return total + sum(effect(*pair) for pair in itertools.combinations(chosen, 2)) / 2


def effect(*key: object) -> float:
    return random.Random(repr(key)).gauss(0, 1)


def search(space: Space, sampler: str, seed: int, trials: int) -> Proposer:
    """A study of so many candidates, each of which has at once the loss that `score` says."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    chosen = space.file.search.model_copy(update={"sampler": sampler})
    space.file = space.file.model_copy(update={"search": chosen, "baselines": []})
    proposer = Proposer(space, optuna.create_study(), seed=seed, trials=trials)
    for entry in iter(proposer.next, None):
        params = proposer.study.trials[entry.number].params
        draw = space.resolve(lambda path, _, params=params: params[path])
        entry.state, entry.loss = "trained", score(draw)
        proposer.settle(entry, TrialState.COMPLETE, entry.loss)
    return proposer


def lowest(space: Space, evolves: bool, seed: int) -> float:
    """The best of 40 candidates, all different, each with the loss that `score` says."""
    rng, known, trained = random.Random(seed), set(), []
    while len(trained) < 40:
        if evolves and len(trained) >= 10:
            genes = child(space, trained, rng)
            draw = space.resolve(lambda path, _, genes=genes: genes[path])
        else:
            draw = space.resolve(lambda _, domain: domain.draw(rng))
        if (key := repr(sorted(draw.decisions.items()))) not in known:
            known.add(key)
            trained.append(Individual(draw.decisions, (0.0, score(draw))))
    return min(one.rank[1] for one in trained)


def test_it_finds_more_than_chance() -> None:
    space = load_space(next(path for path in FILES if path.stem == "fusion"))
    found = [(lowest(space, True, seed), lowest(space, False, seed)) for seed in range(8)]
    assert sum(evolved < drawn for evolved, drawn in found) >= 7, found


def test_a_seed_gives_one_search_and_going_on_is_not_starting_again(branches: Space) -> None:
    first, second = (search(branches, "evolution", 3, 14) for _ in range(2))
    params = [trial.params for trial in first.study.trials]
    assert params == [trial.params for trial in second.study.trials]
    resumed = Proposer(branches, first.study, seed=3, trials=20)
    fresh = Proposer(branches, optuna.create_study(), seed=3, trials=20)
    assert resumed.rng.random() != fresh.rng.random()
    entry = resumed.next()
    assert entry is not None
    assert entry.hash not in {e.hash for e in first.ledger.having("trained")}


def test_it_ends_with_all_of_a_small_space(tmp_path: Path) -> None:
    """A population that is all alike is no reason to say that nothing is left."""
    path = tmp_path / "small.yaml"
    path.write_text(
        "archsearch: 1\nname: small\nmodel: {dim: 8, layers: 2, topology: {type: interleave,"
        " major: {choice: [mamba, gru, attention, retention]}, minor: {choice: [mamba, gru, lstm,"
        " rnn, hgrn]}}}\ntasks: [{type: in_context_recall}]\n"
    )
    proposer = search(load_space(path), "evolution", 0, 100)
    assert proposer.exhausted
    assert proposer.ledger.counts()["trained"] == 20
