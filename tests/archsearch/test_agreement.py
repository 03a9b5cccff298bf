"""What ranks alike: the correlation is Spearman's, its interval covers, a low one is warned of."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

from archsearch.folder import StudyFolder
from archsearch.report.agreement import FEWEST, Agreement, agreement, agreements, spearman
from archsearch.report.findings import Findings


@pytest.mark.parametrize("seed", range(5))
def test_it_is_spearmans(seed: int) -> None:
    rng = random.Random(seed)
    pairs = [(rng.gauss(0, 1), float(rng.randrange(6))) for _ in range(20)]  # with ties
    expected: Any = spearmanr(pairs)
    assert spearman(pairs) == pytest.approx(expected.statistic, abs=1e-5)  # torchmetrics' own


def test_too_few_or_all_alike_say_nothing() -> None:
    assert spearman([(float(i), float(i)) for i in range(FEWEST - 1)]) is None
    assert spearman([(1.0, float(i)) for i in range(9)]) is None
    assert spearman([(float(i), -float(i)) for i in range(FEWEST)]) == pytest.approx(-1)
    assert Agreement("a", "b", 9, None).interval is None
    assert Agreement("a", "b", 9, 1.0).interval == (1, 1)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_the_interval_covers(rho: float) -> None:
    """In 95 of 100 samples of two normal variables, the rank correlation of all of them."""
    rng, truth = random.Random(0), 6 / math.pi * math.asin(rho / 2)
    inside = 0
    for _ in range(600):
        xs = [rng.gauss(0, 1) for _ in range(25)]
        ys = [rho * x + math.sqrt(1 - rho**2) * rng.gauss(0, 1) for x in xs]
        interval = Agreement("", "", 25, spearman([*zip(xs, ys, strict=True)])).interval
        assert interval is not None
        inside += interval[0] <= truth <= interval[1]
    assert 0.92 <= inside / 600 <= 0.98


def study(path: Path, trials: int, noise: float) -> StudyFolder:
    """A folder in which rung 1 is the loss at the end with noise, and task b is a reversed."""
    folder, rng = StudyFolder(path), random.Random(1)
    folder.write_record({"name": "demo", "tasks": {"a": {}, "b": {}}, "finished": None})
    folder.write_space({"search": {"trials": trials}})
    for i in range(trials):
        loss = rng.random()
        early = loss + noise * rng.gauss(0, 1)
        tasks = {
            name: {"loss": loss, "score": score, "rungs": [[5, early], [9, loss]], "curve": []}
            for name, score in (("a", -loss), ("b", loss))
        }
        runs = [{"seed": 0, "split": "val", "loss": loss, "tasks": tasks}]
        runs += [{"seed": s, "split": "test", "loss": loss, "tasks": tasks} for s in (1, 2)]
        trial = {"number": i, "kind": "candidate", "name": f"trial {i}", "state": "trained"}
        metrics = trial | {"loss": loss, "runs": runs, "failures": [], "cost": {}}
        (folder.trial(i)).mkdir(parents=True)
        (folder.trial(i) / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_rungs_tasks_and_seeds_are_compared(tmp_path: Path) -> None:
    found = agreements(Findings.read(study(tmp_path, 12, noise=0.0)))
    told = [(each.first, each.second, each.n, each.r) for each in found]
    assert told == [
        ("loss at rung 1", "loss at the end", 12, pytest.approx(1)),
        ("score of a", "b", 12, pytest.approx(-1)),
        ("loss of the search", "loss of the final runs", 12, pytest.approx(1)),
        ("final run of seed 1", "seed 2", 12, pytest.approx(1)),
    ]
    assert [each.low for each in found] == [False, True, False, False]


def test_a_low_one_is_warned_of(tmp_path: Path) -> None:
    page = agreement(Findings.read(study(tmp_path / "noise", 40, noise=9.0)))
    assert page.count("below 0.6: no guide") == 2
    page = agreement(Findings.read(study(tmp_path / "less", 6, noise=0.9)))
    assert page.count("below 0.6: too few to tell") == 1
    assert "What ranks alike" in page
    few = agreement(Findings.read(study(tmp_path / "few", 3, noise=0.0)))
    assert few.count("–") >= 8
    assert "no guide" not in few
    assert agreement(Findings.read(study(tmp_path / "none", 0, noise=0.0))) == ""
