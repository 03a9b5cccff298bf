"""Whoever proposes: legal, within budget, each architecture once, the same for the same seed."""

import itertools
import math
import random
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import event

from archsearch import census, load_space, proposing, samplers
from archsearch.document import Sampler
from archsearch.domains import Choice
from archsearch.errors import SpecError, UserError
from archsearch.evolution import Individual, child
from archsearch.ledger import ATTRIBUTE, Entry
from archsearch.proposing import Proposer
from archsearch.resolving import Draw
from archsearch.samplers import MANNERS, every, identity
from archsearch.space import Space
from archsearch.storing import connected, study_in

FILES = sorted(Path(__file__).parents[2].glob("spaces/*.yaml"))
SPACE = """
archsearch: 1
name: space
model:
  dim: 8
  layers: 2
  topology:
    choose:
      interleave: {major: {choice: [mamba, gru, attention]}, minor: {choice: [gru, lstm]}}
      parallel:
        branches: [{type: retention, heads: {choice: [1, 2, 4]}}, {choice: [mamba, gru, attention]}]
        merge: {choose: {sum: {}, gate: {per: {choice: [token, channel]}}}}
budgets: {parameters: {max: 2800}}
tasks: [{type: in_context_recall}]
baselines: [gla]
"""


@pytest.fixture
def space(tmp_path: Path) -> Space:
    return written(tmp_path, SPACE)


def written(folder: Path, text: str) -> Space:
    (folder / "s.yaml").write_text(text)
    return load_space(folder / "s.yaml")


def score(draw: Draw) -> float:
    """A loss with a term for every decision, wherever its kind of name stands, and every pair."""
    total, chosen = 0.0, []
    for path, value in draw.decisions.items():
        domain, name = draw.domains[path], "/".join(path.split("/")[-2:])
        if isinstance(domain, Choice):
            chosen.append((name, value))
            total += effect(name, value)
        else:
            total += 4 * (share(domain, value) - random.Random(name).random()) ** 2
    return total + sum(effect(*pair) for pair in itertools.combinations(chosen, 2)) / 2


def share(domain: Any, value: Any) -> float:
    """Where a value stands in its range."""
    scale = math.log if domain.log else float
    return (scale(value) - scale(domain.lo)) / (scale(domain.hi) - scale(domain.lo))


def effect(*key: object) -> float:
    return random.Random(repr(key)).gauss(0, 1)


def search(
    space: Space,
    sampler: str,
    seed: int = 0,
    trials: int = 12,
    stored: optuna.Study | None = None,
) -> Proposer:
    """A study of so many candidates, each of which has at once the loss that `score` says."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    chosen = space.file.search.model_copy(update={"sampler": sampler})
    space.file = space.file.model_copy(update={"search": chosen})
    return go_on(space, stored or optuna.create_study(), seed, trials)


def go_on(space: Space, study: optuna.Study, seed: int, trials: int) -> Proposer:
    proposer = Proposer(space, study, seed=seed, trials=trials)
    for entry in iter(proposer.next, None):
        params = study.get_trials(deepcopy=False)[entry.number].params
        loss = 9.0
        if entry.kind == "candidate":
            loss = score(space.resolve(lambda path, _, params=params: params[path]))
        entry.state, entry.loss = "trained", loss
        proposer.settle(entry, TrialState.COMPLETE, (loss,))
    return proposer


def test_all_are_known_by_name() -> None:
    assert [*MANNERS] == [*dict.fromkeys(MANNERS)]
    assert {*MANNERS} == {*get_args(Sampler)}


ALL = [pytest.param(name, marks=pytest.mark.slow if name == "gp" else []) for name in MANNERS]
"""GP thinks for a second each time."""


@pytest.mark.parametrize("name", ALL)
def test_whoever_proposes(name: Any, space: Space) -> None:
    """As many trained as asked for, none twice, none over budget, all of it written down."""
    proposer = search(space, name)
    trained = proposer.ledger.having("trained", kind="candidate")
    assert len(trained) == 12
    assert len({entry.hash for entry in trained}) == 12
    assert max(entry.cost["parameters"] for entry in trained) <= 2800
    assert proposer.ledger.having("over_budget")
    trials = proposer.trials.stored.get_trials(deepcopy=False)
    assert [*proposer.ledger.entries] == [trial.number for trial in trials]
    assert not any(trial.state == TrialState.RUNNING for trial in trials)
    hears_of_each_in_its_form(proposer)
    again = search(space, name).trials.stored.get_trials(deepcopy=False)
    assert [trial.params for trial in again] == [trial.params for trial in trials]


def hears_of_each_in_its_form(proposer: Proposer) -> None:
    whole = proposer.manner.whole
    losses: list[float] = []
    for number, entry in sorted(proposer.ledger.entries.items()):
        trial = proposer.trials.stored.trials[number]
        if entry.state == "over_budget":
            assert trial.constraints["parameters"] > 0
            finished = whole and losses
            assert trial.state == (TrialState.COMPLETE if finished else TrialState.PRUNED)
            assert trial.value == (max(losses) if finished else None)
        if entry.duplicate_of is not None:
            assert (
                trial.constraints == proposer.trials.stored.trials[entry.duplicate_of].constraints
            )
        losses += [entry.loss] if entry.state == "trained" and entry.loss is not None else []
        if whole and trial.state == TrialState.COMPLETE:  # decisions that all have are modelled
            assert {*trial.params} == {*proposer.whole}


@pytest.mark.parametrize("name", ALL)
def test_what_a_sampler_reads_is_what_is_stored(name: Any, space: Space, tmp_path: Path) -> None:
    """Trial by trial, in a database; and of one that goes on, from the start."""
    with connected(f"sqlite:///{tmp_path}/study.db") as storage:
        proposer = search(space, name, stored=study_in(storage, "s", 1))
        for each in (proposer, Proposer(space, proposer.trials.stored, seed=0, trials=0)):
            pairs = zip(each.trials.all, each.trials.stored.trials, strict=True)
            for one, other in pairs:
                same = ("params", "distributions", "state", "values", "system_attrs")
                assert all(getattr(one, key) == getattr(other, key) for key in same)
                assert {*one.user_attrs} == {*other.user_attrs} == {ATTRIBUTE}
                entries = [Entry(**trial.user_attrs[ATTRIBUTE]) for trial in (one, other)]
                assert entries[0] == entries[1] == proposer.ledger.entries[one.number]


def test_a_proposal_is_one_transaction(space: Space, tmp_path: Path) -> None:
    """What is written of it; two more end one that is trained."""
    writes: list[bool] = [False]  # of each transaction, whether it writes

    def statement(_: Any, __: Any, text: str, *more: Any) -> None:
        writes[-1] |= text.startswith(("INSERT", "UPDATE"))

    with connected(f"sqlite:///{tmp_path}/study.db") as storage:
        stored = study_in(storage, "s", 1)
        event.listen(storage.engine, "before_cursor_execute", statement)
        event.listen(storage.engine, "commit", lambda _: writes.append(False))
        proposer = search(space, "tpe", stored=stored)
    trained = len(proposer.ledger.having("trained"))
    assert trained == 13
    assert sum(writes) == len(proposer.ledger.entries) + 2 * trained


def test_another_writer_is_told(space: Space) -> None:
    stored = optuna.create_study()
    one, other = (Proposer(space, stored, seed=seed, trials=9) for seed in range(2))
    assert one.next() is not None
    with pytest.raises(UserError, match=r"trial 0 became trial 1 .*another process writes to it"):
        other.next()
    again = Proposer(space, stored, seed=0, trials=9)  # the one that stays goes on
    assert {*again.ledger.entries} == {0}
    assert again.ledger.entries[0].state == "training"
    entry = again.next()
    assert entry is not None
    assert entry.number == len(stored.trials) - 1 > 1


def test_another_that_closes_our_trial_is_told(space: Space) -> None:
    stored = optuna.create_study()
    first = Proposer(space, stored, seed=0, trials=9)
    entry = first.next()
    assert entry is not None
    one, other = (Proposer(space, stored, seed=0, trials=9) for _ in range(2))
    entry.state, entry.loss = "trained", 1.0
    one.settle(entry, TrialState.COMPLETE, (1.0,))
    with pytest.raises(UserError, match="trial 0 was closed in its storage, so another process"):
        other.settle(entry, TrialState.COMPLETE, (1.0,))


@pytest.mark.parametrize("name", ALL)
def test_going_on_is_not_starting_again(name: Any, space: Space) -> None:
    proposer = search(space, name, trials=5)
    before = len(proposer.trials.stored.get_trials(deepcopy=False))
    longer = go_on(space, proposer.trials.stored, 0, 9)
    assert len(longer.ledger.having("trained", kind="candidate")) == 9
    trials = longer.trials.stored.get_trials(deepcopy=False)
    first, later = trials[: len(trials) - before], trials[before:]
    assert [t.params for t in first][: len(later)] != [t.params for t in later]


def test_all_draws_are_as_many_as_are_counted(space: Space) -> None:
    counted = 0
    for each in [space, *map(load_space, FILES)]:
        size, endless = census.size(each)
        if size <= 400 and not endless:
            draws = [identity(draw) for draw in every(each)]
            assert len(draws) == len({*draws}) == size
            counted += 1
    assert counted >= 4


def test_exhaustive_trains_all_there_is(space: Space) -> None:
    """In two goes; each architecture once, however often it is drawn."""
    search(space, "exhaustive", trials=5)
    proposer = search(space, "exhaustive", trials=100)
    assert proposer.exhausted
    hashes = set()
    for decisions in every(space):
        spec = space.decide(lambda path, _, d=decisions: d[path])
        if space.file.budgets.screen(spec, space.file.ends).excess is None:
            hashes.add(spec.hash())
    trained = proposer.ledger.having("trained", kind="candidate")
    assert {entry.hash for entry in trained} == hashes
    assert len(proposer.trials.stored.trials) == 1 + census.size(space)[0]


def test_what_a_sampler_cannot_do_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SPACE.replace(
        "heads: {choice: [1, 2, 4]}", "decay: {type: learned, half_life: {float: [2, 9]}}"
    )
    text += "search: {sampler: exhaustive}\n"
    with pytest.raises(SpecError, match="half_life is a range without a step; give it one") as told:
        written(tmp_path, text)
    assert "s.yaml:16:19: search.sampler: exhaustive" in str(told.value)
    monkeypatch.setattr(samplers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gp needs .*archsearch\[gp\]"):
        samplers.require("gp")
    samplers.require("evolution")


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
    found = [(lowest(space, True, seed), lowest(space, False, seed)) for seed in range(16)]
    assert sum(evolved < drawn for evolved, drawn in found) >= 13, found


def test_it_ends_with_all_of_a_small_space(tmp_path: Path, monkeypatch: Any) -> None:
    """However alike its population is."""
    monkeypatch.setattr(proposing, "PATIENCE", 60)
    path = tmp_path / "small.yaml"
    path.write_text(
        "archsearch: 1\nname: small\nmodel: {dim: 8, layers: 2, topology: {type: interleave,"
        " major: {choice: [mamba, gru, attention, retention]}, minor: {choice: [mamba, gru, lstm,"
        " rnn, hgrn]}}}\ntasks: [{type: in_context_recall}]\nbaselines: []\n"
    )
    proposer = search(load_space(path), "evolution", 0, 100)
    assert proposer.exhausted
    assert proposer.ledger.counts()["trained"] == 20
