"""Several objectives: every sampler hears of all, rungs keep the front, the report shows it."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from archsearch import load_space, speed, study
from archsearch.errors import SpecError
from archsearch.folder import StudyFolder
from archsearch.halving import promotable
from archsearch.ledger import Entry
from archsearch.proposing import Proposer
from archsearch.ranking import fronts, point
from archsearch.report import write_report
from archsearch.samplers import MANNERS
from archsearch.space import Space

SPACE = """
archsearch: 1
name: two
model:
  dim: 8
  layers: 2
  topology:
    type: parallel
    branches:
      - {choose: {retention: {heads: {choice: [1, 2, 4]}}, mamba: {state: {choice: [2, 4, 8, 16]}}}}
      - {choice: [mamba, gru, attention, lstm, retention]}
    merge: {choice: [sum, gate]}
budgets: {state: {context: 64}, parameters: {}}
objectives: [loss, state, parameters]
tasks: [{type: in_context_recall, vocab: 8, length: 16, batch: 4, extrapolate: [2]}]
train: {steps: 20, rungs: [3, 0.5]}
search: {sampler: SAMPLER, trials: 10, eta: null}
baselines: [gla]
final: {top: 3, seeds: 1}
"""
OBJECTIVES = ["loss", "state", "parameters"]


def written(folder: Path, sampler: str = "evolution", **changes: str) -> Space:
    text = SPACE.replace("SAMPLER", sampler)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "two.yaml").write_text(text)
    return load_space(folder / "two.yaml")


def searched(space: Space, trials: int, seed: int = 0) -> Proposer:
    """A study whose made-up losses are less where more is carried: every trade-off is one."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    stored = optuna.create_study(directions=[StudyDirection.MINIMIZE] * len(space.file.objectives))
    proposer = Proposer(space, stored, seed=seed, trials=trials)
    for entry in iter(proposer.next, None):
        entry.loss = 1e3 / entry.cost["state"] + int(entry.hash or "0", 16) % 7 / 5
        if space.file.search.eta and entry.kind == "candidate" and len(entry.rungs) < 2:
            entry.rungs, entry.state = [*entry.rungs, entry.loss], "paused"
            proposer.keep(entry)
            continue
        entry.state = "trained"
        proposer.settle(entry, TrialState.COMPLETE, point(entry, space.file.objectives))
    return proposer


ALL = [pytest.param(name, marks=pytest.mark.slow if name == "gp" else []) for name in MANNERS]


@pytest.mark.parametrize("name", ALL)
def test_every_sampler_hears_of_all_objectives(name: str, tmp_path: Path) -> None:
    proposer = searched(written(tmp_path, name), 14)
    trained = proposer.ledger.having("trained", kind="candidate")
    assert len(trained) == 14
    told = {
        t.number: t.values for t in proposer.trials.stored.trials if t.state == TrialState.COMPLETE
    }
    for entry in trained:
        assert told[entry.number] == [*point(entry, OBJECTIVES)]
    for entry in proposer.ledger.having("duplicate"):
        assert entry.duplicate_of is not None
        assert told.get(entry.number) == told.get(entry.duplicate_of)


def test_rungs_keep_the_front(tmp_path: Path) -> None:
    """Who nobody beats goes on before who somebody does, and costs count from the first rung."""
    proposer = searched(written(tmp_path, "random", **{"eta: null": "eta: 3"}), 30)
    started = [e for e in proposer.ledger.entries.values() if e.kind == "candidate" and e.rungs]
    trained = [e for e in started if e.state == "trained"]
    assert 3 <= len(trained) < 30
    layer = {}
    for number, indices in enumerate(fronts([point(e, OBJECTIVES, rung=0) for e in started])):
        layer |= {started[i].number: number for i in indices}
    ended = [layer[e.number] for e in trained]
    waiting = [layer[e.number] for e in started if e.state == "paused"]
    assert sum(ended) / len(ended) < sum(waiting) / len(waiting)
    leader = min(started, key=lambda e: e.rungs[0])
    assert leader in trained


def test_a_rung_is_left_by_the_front_and_not_by_the_loss(tmp_path: Path) -> None:
    """The cheapest goes on for all its loss; with the loss alone it is the second best."""
    waiting = [
        Entry(i, "candidate", "", "paused", rungs=[float(i)], loss=float(i), cost={"state": cost})
        for i, cost in enumerate([100.0, 100.0, 100.0, 100.0, 100.0, 1.0])
    ]
    for objectives, second in ((["loss", "state"], 5), (["loss"], 1)):
        for entry in waiting:
            entry.state = "paused"
        first = promotable(waiting, 3, objectives)
        assert first is not None and first is waiting[0]
        first.state = "training"
        assert promotable(waiting, 3, objectives) is waiting[second]


@pytest.mark.slow
def test_a_study_of_several_objectives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its finalists are of the front, spread over it; the report has the front, baselines included."""
    monkeypatch.setattr(speed, "ALLOWANCE", 0.1)
    space = written(tmp_path, **{"trials: 10": "trials: 6"})
    result = study(space, out=tmp_path / "s", workers=2)
    folder = StudyFolder(tmp_path / "s")
    trials = {t["number"]: t for t in folder.read_trials()}
    candidates = [Entry(t["number"], "candidate", "", "trained", loss=t["loss"], cost=t["cost"])
                  for t in trials.values() if t["kind"] == "candidate"]  # fmt: skip
    first = {candidates[i].number for i in fronts([point(e, OBJECTIVES) for e in candidates])[0]}
    finals = {n for n, t in trials.items() if t["kind"] == "candidate" and len(t["runs"]) > 1}
    assert len(finals) == 3
    assert finals <= first or first <= finals
    assert result.best_entry is not None
    assert result.best_entry.number in finals
    assert result.best_entry.loss == min(e.loss for e in candidates if e.loss is not None)
    page = write_report(tmp_path / "s").read_text(encoding="utf-8")
    assert "What nobody beats" in page
    assert result.best_entry.name in page.split("What nobody beats")[1].split("</section>")[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"[loss, state, parameters]": "[loss, stat]"},
            "'stat' is none of loss, parameters, state",
        ),
        ({"[loss, state, parameters]": "[loss, train_flops]"}, "is named under budgets"),
        ({"[loss, state, parameters]": "[state]"}, "the loss first"),
        ({"[loss, state, parameters]": "[loss, state, state]"}, "each once"),
    ],
)
def test_objectives_that_are_none(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        written(tmp_path, **changes)
