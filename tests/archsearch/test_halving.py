"""Successive halving: who goes on behind a rung, from its checkpoint, and what that cannot change."""

import json
import math
import random
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from archsearch import evolution, load_space, reference, speed, study
from archsearch.counting import Counts
from archsearch.document import SpaceFile
from archsearch.errors import SpecError
from archsearch.folder import StudyFolder
from archsearch.ledger import STARTED, Entry
from archsearch.proposing import Proposer
from archsearch.recipe import Training
from archsearch.space import Space
from archsearch.tasks import task
from archsearch.training import train

SPACE = """
archsearch: 1
name: halved
model:
  dim: 8
  layers: 2
  topology:
    type: parallel
    branches:
      - {choose: {retention: {heads: {choice: [1, 2, 4]}}, mamba: {state: {choice: [2, 4, 8]}}}}
      - {choice: [mamba, gru, attention, lstm, retention]}
    merge: {choose: {sum: {}, gate: {per: {choice: [token, channel]}}}}
tasks: [{type: in_context_recall, vocab: 8, length: 16, batch: 4, extrapolate: [2]}]
train: {steps: 20, rungs: [3, 0.5]}
search: {sampler: SAMPLER, trials: 10, eta: 3}
baselines: [gla]
final: {top: 1, seeds: 1}
"""
RUNGS = 2


def written(folder: Path, sampler: str = "evolution", **changes: str) -> Space:
    text = SPACE.replace("SAMPLER", sampler)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "halved.yaml").write_text(text)
    return load_space(folder / "halved.yaml")


def quality(entry: Entry) -> float:
    """What a candidate is worth, made up of its name."""
    return random.Random(entry.hash).random()


def halved(
    space: Space, trials: int, workers: int, noise: float, seed: int = 0, fails: float = 0.0
) -> Proposer:
    """A study of made-up losses in which whoever is first to end is drawn; each promotion checked.

    The loss at a rung is the quality, and noise that gets less from one to the next.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rng = random.Random(seed)
    proposer = Proposer(space, optuna.create_study(), seed=seed, trials=trials)
    running: list[Entry] = []
    while True:
        while len(running) < workers and (entry := proposer.next()) is not None:
            assert entry.state == "training"
            if entry.rungs:
                among_the_best(entry, proposer, running)
            running.append(entry)
        if not running:
            break
        entry = running.pop(rng.randrange(len(running)))
        if entry.rungs and rng.random() < fails:
            entry.state, entry.loss = "failed", None
            proposer.settle(entry, TrialState.FAIL)
            continue
        entry.loss = quality(entry) + noise * rng.gauss(0, 1) / (1 + len(entry.rungs))
        if entry.kind == "candidate" and len(entry.rungs) < RUNGS:
            entry.rungs, entry.state = [*entry.rungs, entry.loss], "paused"
            proposer.keep(entry)
        else:
            entry.state = "trained"
            proposer.settle(entry, TrialState.COMPLETE, (entry.loss,))
    return proposer


def among_the_best(entry: Entry, proposer: Proposer, running: list[Entry]) -> None:
    """One in eta of those that reached its rung; rounded up when no other comes to the rung."""
    eta, least = proposer.space.file.search.eta, proposer.space.file.final.top
    assert eta is not None
    rung = len(entry.rungs) - 1
    reached = [e for e in candidates(proposer) if len(e.rungs) > rung]
    better = [e for e in reached if e.rungs[rung] < entry.rungs[rung]]
    if len(better) < len(reached) // eta:
        return
    assert proposer.exhausted or len(candidates(proposer)) >= proposer.wanted
    assert not any(len(e.rungs) <= rung for e in running if e.kind == "candidate")
    well = sum(e.state != "failed" for e in reached)
    assert sum(e.state != "failed" for e in better) < max(least, math.ceil(well / eta))


def candidates(proposer: Proposer) -> list[Entry]:
    return [e for e in proposer.ledger.entries.values() if e.kind == "candidate" and e.spec]


@pytest.mark.parametrize("sampler", ["evolution", "random", "exhaustive"])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_best_go_on(sampler: str, workers: int, noise: float, tmp_path: Path) -> None:
    """Everyone is measured at the first rung; where a rung tells the truth, the best is trained."""
    for top in (1, 5):
        space = written(tmp_path, sampler, **{"top: 1": f"top: {top}"})
        proposer = halved(space, 30, workers, noise, seed=top)
        started = [e for e in candidates(proposer) if e.state in ("paused", "trained")]
        trained = [e for e in started if e.state == "trained"]
        assert len(started) == 30
        assert all(e.rungs for e in started)
        assert top <= len(trained) <= 15
        for rung in range(RUNGS):
            reached = [e for e in started if len(e.rungs) > rung]
            behind = [e for e in reached if e.state == "trained" or len(e.rungs) > rung + 1]
            assert len(behind) >= min(len(reached), max(top, math.ceil(len(reached) / 3)))
        if not noise:
            assert min(started, key=quality) in trained


@pytest.mark.parametrize("seed", range(3))
def test_failures_cost_nobody_else_the_place(seed: int, tmp_path: Path) -> None:
    """However many fail behind a rung, as many as there are finalists come to the end, if they can."""
    space = written(tmp_path, "random", **{"top: 1": "top: 3"})
    proposer = halved(space, 12, 2, noise=0.1, seed=seed, fails=0.5)
    ends = [e.state for e in candidates(proposer) if e.state in ("paused", "trained", "failed")]
    assert "failed" in ends
    assert ends.count("trained") >= 3 or "paused" not in ends


def test_it_costs_less_and_finds_as_much(tmp_path: Path) -> None:
    """Beside training everyone, by the steps of the recipe's 20 that were made."""
    proposer = halved(written(tmp_path, "random"), 45, 1, noise=0.02)
    marks = [3, 10, 20]
    steps = sum(
        marks[len(e.rungs) - 1] if e.state == "paused" else marks[-1]
        for e in candidates(proposer)
        if e.state in ("paused", "trained")
    )
    assert steps < 0.5 * 45 * marks[-1]


def test_parents_are_past_their_first_rung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten at least, and none that failed; who came further is better."""
    asked: list[Proposer] = []
    bred = 0
    propose, breed = Proposer._proposal, evolution.child

    def proposal(self: Proposer) -> Any:
        asked.append(self)
        return propose(self)

    def child(space: Space, parents: list[evolution.Individual], rng: random.Random) -> Any:
        nonlocal bred
        bred += 1
        trials = asked[-1].trials.all
        entries = asked[-1].ledger.having(*STARTED, kind="candidate")
        by_genes = {repr(trials[e.number].params): e for e in entries}
        known = [by_genes[repr(parent.genes)] for parent in parents]
        assert {e.number for e in known} == {
            e.number for e in entries if e.state != "failed" and len(e.rungs) > 1
        }
        assert len(known) >= 10
        best = min(zip(parents, known, strict=True), key=lambda pair: pair[0].rank)[1]
        assert (best.state == "trained") == any(e.state == "trained" for e in known)
        return breed(space, parents, rng)

    monkeypatch.setattr(Proposer, "_proposal", proposal)
    monkeypatch.setattr(evolution, "child", child)
    proposer = halved(written(tmp_path), 60, 2, noise=0.1, fails=0.2)
    assert bred > 20
    assert any(e.state == "failed" and len(e.rungs) > 1 for e in candidates(proposer))


def test_a_seed_repeats(tmp_path: Path) -> None:
    runs = [halved(written(tmp_path), 20, 1, noise=0.3) for _ in range(2)]
    one, other = ([(e.hash, e.state, e.rungs) for e in candidates(run)] for run in runs)
    assert one == other


@pytest.mark.parametrize("budget", [{"steps": 20}, {"tokens": 1200}])
def test_a_pause_changes_nothing(budget: dict[str, Any], tmp_path: Path) -> None:
    """From rung to rung, the run ends with the weights of one in one go, bit for bit."""
    spec = reference("mamba", dim=8, layers=2)
    recall = task("in_context_recall", vocab=8, length=16, batch=4, extrapolate=[2])
    recipe = Training(**budget, rungs=[0.15, 0.5], dropout=0.1)
    whole = train(spec, recall, recipe, seed=0)
    file = tmp_path / "a.checkpoint"
    for rung in range(RUNGS):
        for _ in range(2):  # asked again, as after a crash, it is where it was
            part = train(spec, recall, recipe, seed=0, checkpoint=file, pause=rung)
            assert part.paused
            assert file.exists()
            assert part.rungs == whole.rungs[: rung + 1]
            assert part.evaluation.loss == whole.rungs[rung][1]
    last = train(spec, recall, recipe, seed=0, checkpoint=file, pause=RUNGS)
    assert not last.paused
    assert not file.exists()
    assert (last.rungs, last.curve) == (whole.rungs, whole.curve)
    steps = whole.curve[-1][0]
    assert last.read == whole.read == {(4, 16): steps}
    assert last.tokens == steps * 4 * 16
    assert last.flops(spec, recall) == steps * Counts(spec, recall.ends).train(4, 16).flops
    pairs = zip(last.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(mine, its) for mine, its in pairs)


def test_seconds_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a checkpoint is written."""
    clock = iter(range(10**6))
    monkeypatch.setattr("archsearch.training.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("archsearch.training.SAVE_EVERY", 0.0)
    recall = task("in_context_recall", vocab=8, length=16, batch=4, extrapolate=[2])
    spec, file = reference("gla", dim=8, layers=1), tmp_path / "a.checkpoint"
    outcome = train(spec, recall, Training(steps=20), seed=0, checkpoint=file)
    assert outcome.seconds <= next(clock)


class Stop(KeyboardInterrupt):
    """Stands for Ctrl-C."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "ALLOWANCE", 0.1)


@pytest.mark.slow
def test_a_halved_study(tmp_path: Path) -> None:
    """Its pruned are counted, each at its rung, and leave no checkpoint; stopped, it goes on."""
    space = written(tmp_path, "exhaustive")
    result = study(space, out=tmp_path / "whole", workers=1)
    counts = result.counts
    assert counts["trained"] + counts["pruned"] == 11
    assert counts["trained"] >= 2
    assert sum(counts["pruned_by"].values()) == counts["pruned"] >= 5
    assert counts["unfinished"] == 0
    folder = StudyFolder(tmp_path / "whole")
    assert not folder.checkpoints()
    for trial in folder.read_trials():
        assert trial["state"] in ("trained", "pruned")
        assert (trial["state"] == "trained") == bool(trial["runs"])
        weights = folder.weights(trial["number"]).exists()
        assert weights == (trial["state"] == "trained")
    states = {t.state for t in optuna.load_study(study_name=None, storage=folder.storage).trials}
    assert states <= {TrialState.COMPLETE, TrialState.PRUNED}
    record = json.loads(folder.record.read_text())
    assert sum(e["state"] == "pruned" for e in record["untrained"]) == counts["pruned"]
    again, stops = StudyFolder(tmp_path / "again"), 0
    for patience in (9, 3, 10**6):
        heard = iter(range(patience))

        def watch(status: Any, heard: Any = heard) -> None:
            if next(heard, None) is None:
                raise Stop

        try:
            study(space, out=again.path, workers=1, watch=watch)
        except Stop:
            stops += 1
    assert stops == 2
    for mine, its in zip(again.read_trials(), folder.read_trials(), strict=True):
        assert mine["hash"] == its["hash"]
        assert all(a == b for a, b in zip(mine["rungs"], its["rungs"], strict=False))
        if mine["state"] == its["state"] == "trained":
            assert mine["loss"] == its["loss"]
    assert again.read_record()["counts"]["unfinished"] == 0
    assert not again.checkpoints()


@pytest.mark.parametrize(
    ("sampler", "changes", "eta"),
    [
        ("evolution", {}, 3),
        ("random", {}, 3),
        ("evolution", {", rungs: [3, 0.5]": ""}, None),  # nobody could wait
        ("evolution", {"rungs: [3, 0.5]": "rungs: [20]"}, None),
        ("tpe", {}, None),
        ("evolution", {"trials: 10": "trials: 10, eta: null"}, None),
    ],
)
def test_rungs_are_for_leaving_behind(
    sampler: str, changes: dict[str, str], eta: int | None, tmp_path: Path
) -> None:
    """Unless it is said otherwise; and a resolved space says it again."""
    space = written(tmp_path, sampler, **{", eta: 3": ""} | changes)
    assert space.file.search.eta == eta
    again = SpaceFile.model_validate(space.file.model_dump(mode="json"))
    assert again.search.eta == eta


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {", rungs: [3, 0.5]": ""},
            "search: eta is 3, but there is no rung before .* add train.rungs",
        ),
        ({"rungs: [3, 0.5]": "rungs: [20]"}, "no rung before the end"),
        ({"SAMPLER": "tpe"}, "search: eta is 3, but tpe learns only of .* take evolution, random"),
        ({"eta: 3": "eta: 1"}, "eta: .*1"),
    ],
)
def test_what_cannot_be_halved_is_told(
    changes: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        written(tmp_path, changes.pop("SAMPLER", "evolution"), **changes)
