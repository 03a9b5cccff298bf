"""Children are legal, differ from their parents, and take what they can from them."""

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from archsearch import evolution, load_space
from archsearch.domains import Float, Int, Range, Value, parse
from archsearch.evolution import Individual, child, crossed, express, moved, whole
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
        draw = express(branches, genes, [whole(branches, g.genes, rng) for g in (one, two)], rng)
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
        donor = whole(branches, before, random.Random(seed))
        draw = express(branches, genes, [donor], random.Random(seed))
        assert draw.decisions == {
            **genes,
            "topology/interleave/major/retention/heads": 2,
            "topology/interleave/major/retention/decay/half_life": 33.0,
        }


def test_the_like_under_another_name_is_taken_in_its_order(branches: Space) -> None:
    """A branch becomes a major mixer, whole; a second branch is grown from the next of its kind."""
    before = {
        "topology": "interleave",
        "topology/interleave/major": "mamba",
        "topology/interleave/major/mamba/state": 16,
    }
    for seed in range(5):
        rng = random.Random(seed)
        donor = whole(branches, before, rng)
        draw = express(branches, {"topology": "parallel"}, [donor], rng)
        for branch in ("topology/parallel/branches/0", "topology/parallel/branches/1"):
            assert draw.decisions[branch] == "mamba"
            assert draw.decisions[f"{branch}/mamba/state"] == 16
        back = {**draw.decisions, "topology/parallel/branches/0": "attention"}
        back["topology/parallel/branches/0/attention/heads"] = 8
        again = express(branches, {"topology": "interleave"}, [whole(branches, back, rng)], rng)
        assert again.decisions == {
            "topology": "interleave",
            "topology/interleave/major": "attention",
            "topology/interleave/major/attention/heads": 8,
        }


def test_what_is_taken_brings_what_is_below_it(tmp_path: Path) -> None:
    """Each layer of a stack has the mixer of one part, and the state of that one."""
    path = tmp_path / "two.yaml"
    path.write_text(
        "archsearch: 1\nname: two\ndefine: {m: {choose: {mamba: {state: {choice: [4, 8, 16]}}, gru: {}}}}\n"
        "model: {dim: 8, layers: 2, topology: {choose: {split: {parts: [$m, $m]}, stack: {layers: [{mixer: $m}, {mixer: $m}]}}}}\n"
        "tasks: [{type: in_context_recall}]\n"
    )
    space, split = load_space(path), "topology/split/parts"
    genes = {"topology": "split", f"{split}/0": "mamba", f"{split}/1": "mamba"}
    genes |= {f"{split}/0/mamba/state": 4, f"{split}/1/mamba/state": 16}
    for seed in range(5):
        donor = whole(space, genes, random.Random(seed))
        draw = express(space, {"topology": "stack"}, [donor], random.Random(seed))
        states = [draw.decisions[f"topology/stack/layers/{i}/mixer/mamba/state"] for i in (0, 1)]
        assert states == [4, 16]


def test_null_is_a_value_like_others(tmp_path: Path) -> None:
    """And travels with its name."""
    path = tmp_path / "null.yaml"
    path.write_text(
        "archsearch: 1\nname: 'null'\ndefine: {a: {type: attention, window: {choice: [16, null]}}}\n"
        "model: {dim: 8, layers: 2, topology: {choose: {interleave: {major: $a}, parallel: {branches: [$a, mamba]}}}}\n"
        "tasks: [{type: in_context_recall}]\n"
    )
    space = load_space(path)
    genes = {"topology": "interleave", "topology/interleave/major/window": None}
    for seed in range(8):
        donor = whole(space, genes, random.Random(seed))
        draw = express(space, {"topology": "parallel"}, [donor], random.Random(seed))
        assert draw.decisions["topology/parallel/branches/0/window"] is None


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
