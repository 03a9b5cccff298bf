"""What a study takes, told before it starts: counts as they will be, times of what is timed."""

import json
from pathlib import Path
from typing import Any

import pytest

from archsearch import estimate, load_space, speed, study
from archsearch.document import Final
from archsearch.estimate import Load, raced, share, starting
from archsearch.folder import StudyFolder
from archsearch.measuring import Time
from archsearch.racing import expected
from archsearch.space import Space

SPACE = """
archsearch: 1
name: told
model:
  dim: 8
  layers: 2
  topology: {type: interleave, major: {choice: [gru, lstm]}, minor: attention}
tasks:
  - {type: in_context_recall, vocab: 8, length: 16, batch: 4}
  - {type: parity, length: 12, batch: 3}
train: {steps: 9, rungs: [3], lr: [1e-3, 3e-3], curriculum: [0.5]}
search: {sampler: exhaustive, trials: 2, eta: null}
baselines: [gla]
final: {top: 1, seeds: 2}
"""


def written(folder: Path, old: str = "", new: str = "", trials: int = 2) -> Space:
    assert old in SPACE
    text = SPACE.replace(old, new).replace("trials: 2", f"trials: {trials}")
    (folder / "told.yaml").write_text(text)
    return load_space(folder / "told.yaml")


def test_tokens_and_flops_are_those_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all its runs: several rates in the search, the chosen one after it; lessons and all."""
    monkeypatch.setattr(speed, "ALLOWANCE", 0.1)
    space = written(tmp_path, "{choice: [gru, lstm]}", "gru", trials=1)
    told = estimate.estimate(space, 1, "cpu")
    study(space, out=tmp_path / "s", workers=1)
    runs = [run for trial in StudyFolder(tmp_path / "s").read_trials() for run in trial["runs"]]
    assert told.trainings == len(runs)
    assert told.work.tokens == sum(run["tokens"] for run in runs)
    assert told.work.flops == sum(run["flops"] for run in runs)


def test_seconds_are_of_steps_and_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9 steps of 1 s and two evaluations of 10 s on each of two tasks, so often as is trained."""
    monkeypatch.setattr(estimate, "step_time", lambda *_: (Time(1.0, 1.0, 1.0, 5), None))
    monkeypatch.setattr(estimate.measuring, "once", lambda *_: 10.0)
    one = 2 * (9 + 2 * 10)
    told = estimate.estimate(written(tmp_path), 4, "cpu")
    trained = 3 * 2 + 2 * 2  # two rates of two candidates and a baseline, then two seeds of two
    assert told.work.seconds == pytest.approx(one * trained)
    assert told.measuring == 2 * speed.ALLOWANCE
    assert told.seconds == told.least == told.most
    assert told.seconds == pytest.approx(one * trained / 4 + told.measuring)


def test_a_baseline_over_budget_is_not_trained(tmp_path: Path) -> None:
    told = [
        estimate.estimate(written(tmp_path, "baselines", f"budgets: {budget}\nbaselines"), 1, "cpu")
        for budget in ("{parameters: {max: 1800}}", "{parameters: {max: 2100}}")  # gla has 2020
    ]
    assert [each.trainings for each in told] == [2 + 2, 2 + 1 + 2 + 2]


def test_a_race_is_counted_as_if_it_were_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both candidates lead and have all three seeds, and so has the baseline; at one rate then."""
    monkeypatch.setattr(estimate, "step_time", lambda *_: (Time(1.0, 1.0, 1.0, 5), None))
    monkeypatch.setattr(estimate.measuring, "once", lambda *_: 0.0)
    alone = estimate.estimate(written(tmp_path), 1, "cpu")
    told = estimate.estimate(written(tmp_path, "search: {", "search: {seeds: 3, "), 1, "cpu")
    assert told.trainings - alone.trainings == 3 * 2
    assert told.work.seconds - alone.work.seconds == pytest.approx(3 * 2 * 9 * 2)
    halved = written(tmp_path, "trials: 2, eta: null", "trials: 2, seeds: 3, eta: 2", trials=40)
    assert raced(halved.file) == expected(20, 1, 3)


def test_rungs_leave_a_share(tmp_path: Path) -> None:
    assert share(written(tmp_path).file) == 1.0
    halved = written(tmp_path, "eta: null", "eta: 3", trials=10)
    assert starting(halved.file) == [10, 4]  # one in three, rounded up
    assert share(halved.file) == pytest.approx(3 / 9 + 6 / 9 * 4 / 10)
    kept = halved.file.model_copy(update={"final": Final(top=6)})
    assert starting(kept) == [10, 6]
    assert Load(1.0, 2.0, 3.0) * 2 + Load(1.0) == Load(3.0, 4.0, 6.0)


@pytest.mark.parametrize(
    ("seconds", "told"), [(3.2, "3 s"), (119, "119 s"), (252, "4.2 min"), (27000, "7.5 h")]
)
def test_durations(seconds: float, told: str) -> None:
    assert estimate.duration(seconds) == told


def test_the_command(tmp_path: Path, command: Any) -> None:
    written(tmp_path)
    code, out, _ = command("cost", str(tmp_path / "told.yaml"), "--workers", "3")
    assert code == 0
    assert "7, final runs included" in out
    assert "with 3 " in out
    code, out, _ = command("cost", str(tmp_path / "told.yaml"), "--json")
    assert json.loads(out)["trainings"] == 7
