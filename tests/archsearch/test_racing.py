"""Racing: what several seeds say of architectures, who is trained again, and when that ends."""

import itertools
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch import load_space, speed, study
from archsearch.driver import Driver
from archsearch.engines import Local
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.ledger import Entry, Ledger
from archsearch.pool import Pool
from archsearch.racing import Noise, Race, expected, noise
from archsearch.report import write_report
from archsearch.report.findings import Findings
from archsearch.storing import connected
from archsearch.workers import Done, Failed

NUMBERS = st.floats(-5, 5).map(lambda x: round(x, 3))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_the_sum_of_both_is_told_apart(data: st.DataObject) -> None:
    """Of any table L = mu + nu with any number of runs for each, both come back, and no noise."""
    seeds = [0.0, *data.draw(st.lists(NUMBERS, min_size=1, max_size=4))]
    worth = data.draw(st.lists(NUMBERS, min_size=1, max_size=6))
    runs = [data.draw(st.integers(1, len(seeds))) for _ in worth]
    table = {
        i: [mu + nu for nu in seeds[:n]] for i, (mu, n) in enumerate(zip(worth, runs, strict=True))
    }
    found = noise(table)
    assert [found.means[i] for i in table] == pytest.approx(worth, abs=1e-9)
    cells, apart = [n for n in runs if n > 1], max(runs) - 1
    assert found.freedom == sum(cells) - len(cells) - (apart if cells else 0)
    assert (found.sigma is None) == (found.freedom == 0)
    assert found.sigma is None or found.sigma < 1e-9


def test_a_seed_that_no_baseline_has_is_known_by_the_others() -> None:
    """Both baselines failed on it, and it is hard for all: whoever ran it is no worse for that."""
    table = {0: [2.0, None, 2.3], 1: [3.0, None, 3.3], 2: [1.0, 1.5, 1.3], 3: [1.1, 1.6]}
    found = noise(table, {0, 1})
    assert [found.means[i] for i in table] == pytest.approx([2.0, 3.0, 1.0, 1.1])


def test_the_noise_floor_is_that_of_the_runs() -> None:
    """Its square is right in the mean, however uneven the table; the worth of each is too."""
    rng, sigma, worth = random.Random(0), 0.3, [1.0, 1.2, 2.0, 0.5]
    squares, means = [], []
    for _ in range(400):
        seeds = [0.0, rng.gauss(0, 2), rng.gauss(0, 2)]
        table = {
            i: [mu + nu + rng.gauss(0, sigma) for nu in seeds[: 1 + i]]
            for i, mu in enumerate(worth)
        }
        found = noise(table)
        assert found.freedom == 8 - 3 - 2
        assert found.sigma is not None
        squares.append(found.sigma**2)
        means.append(list(found.means.values()))
    assert statistics.fmean(squares) == pytest.approx(sigma**2, rel=0.15)
    assert np.mean(means, axis=0) == pytest.approx(worth, abs=0.06)


def test_a_run_that_failed_is_no_number() -> None:
    """It is left out; what stands beside it is not moved to its seed."""
    whole = {0: [1.0, 3.0, 4.0], 1: [2.0, 4.0, 5.0]}
    holed = whole | {2: [0.5, None, 3.5]}
    found = noise(holed)
    assert found.means == pytest.approx({0: 1.0, 1: 2.0, 2: 0.5})
    assert found.sigma == pytest.approx(0, abs=1e-9)
    interval = Noise({}, 1.0, 9).interval([1.0, None, 5.0], [0.0, 9.0, 2.0], 1)
    assert interval is not None
    assert sum(interval) / 2 == pytest.approx(2.0)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Looked at after each run, one that excludes 0 for two of the same worth is rare."""
    rng, wrong, times = random.Random(1), 0, 1500
    for _ in range(times):
        seeds = [rng.gauss(0, 1) for _ in range(4)]
        table = {i: [nu + rng.gauss(0, 0.2) for nu in seeds] for i in range(4)}  # two are compared
        found = noise(table)
        looks = [found.interval(table[0][:n], table[1][:n], 4) for n in (1, 2, 3, 4)]
        wrong += any(look is not None and (look[0] > 0 or look[1] < 0) for look in looks)
    assert wrong / times <= 0.05
    assert wrong  # else intervals say nothing


def test_leaders_fall_back_to_what_they_are_worth() -> None:
    """Of thirty of the same worth the best three led by luck; baselines tell what seeds do."""
    rng, first, after = random.Random(2), [], []
    for _ in range(300):
        luck = sorted(rng.gauss(0, 1) for _ in range(30))[:3]
        table = {i: [x, *(rng.gauss(0, 1) for _ in range(3))] for i, x in enumerate(luck)}
        table |= {10 + i: [rng.gauss(0, 1) for _ in range(4)] for i in range(4)}
        means = noise(table, range(10, 14)).means
        first.append(statistics.fmean(luck))
        after.append(statistics.fmean(means[i] for i in range(3)))
    assert statistics.fmean(first) < -1.5
    assert statistics.fmean(after) == pytest.approx(statistics.fmean(first) / 4, abs=0.1)


def entry(number: int, kind: Any = "candidate", **more: Any) -> Entry:
    return Entry(number, kind, f"trial {number}", "trained", **more)


def raced(
    worth: list[float],
    sigma: float,
    seed: int,
    workers: int = 1,
    seeds: int = 4,
    top: int = 3,
    baselines: int = 2,
    fails: float = 0.0,
    objectives: tuple[str, ...] = ("loss",),
    costs: list[float] | None = None,
) -> Race:
    """A search of made-up losses whose candidates come one after the other, raced to its end."""
    rng = random.Random(seed)
    effects = [0.0, *(rng.gauss(0, 1) for _ in range(seeds - 1))]
    race = Race(Ledger([]), seeds, top, objectives)
    coming = [
        entry(i, "baseline" if i < baselines else "candidate", cost={"state": c})
        for i, c in enumerate(costs or [0.0] * len(worth))
    ]
    running: list[Entry] = []

    def loss(of: Entry) -> float:
        return worth[of.number] + effects[len(of.losses)] + rng.gauss(0, sigma)

    while True:
        while len(running) < workers:
            again = race.next()
            if again is None and not coming:
                break
            running.append(again or coming.pop(0))
        if not running:
            return race
        ended = running.pop(rng.randrange(len(running)))
        if not ended.losses:
            ended.loss = loss(ended)
            ended.losses = [ended.loss]
            race.ledger.add(ended)
            continue
        race.hear(ended, None if rng.random() < fails else loss(ended))


@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.parametrize("sigma", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("fails", [0.0, 0.2])
def test_a_race_ends_when_all_is_settled(workers: int, sigma: float, fails: float) -> None:
    """Baselines have all seeds; of the leaders nobody stands open that has seeds left."""
    for seed in range(20):
        worth = [random.Random(seed + 100 * i).random() for i in range(20)]
        race = raced(worth, sigma, seed, workers, fails=fails)
        entries = race.ledger.entries.values()
        assert all(len(e.losses) <= 4 for e in entries)
        assert all(len(e.losses) == 4 for e in entries if e.kind == "baseline")
        assert all(len(e.losses) == 4 for e in race.undecided())
        assert len(race.ledger.ranking()) == 18
        if fails == 0 and sigma == 0:  # the best is known by its first run
            assert race.ledger.ranking()[0].number == 2 + worth[2:].index(min(worth[2:]))


def test_more_seeds_find_the_better_one() -> None:
    """Of twenty candidates within the noise, the one chosen by racing is worth more."""
    chosen: dict[int, list[float]] = {1: [], 6: []}
    for seed in range(200):
        worth = [random.Random(seed + 100 * i).gauss(0, 0.5) for i in range(22)]
        for seeds, found in chosen.items():
            race = raced(worth, 0.7, seed, seeds=seeds)
            found.append(worth[race.ledger.ranking()[0].number])
    assert statistics.fmean(chosen[6]) < statistics.fmean(chosen[1]) - 0.1


def test_who_is_beaten_is_not_trained_again() -> None:
    """One far behind has one run; two that lie together have all."""
    race = raced([0.0, 0.0, 1.0, 1.001, 9.0], 0.01, 0, top=3)
    runs = {e.number: len(e.losses) for e in race.ledger.entries.values()}
    assert runs == {0: 4, 1: 4, 2: 4, 3: 4, 4: 1}


def test_a_race_parts_equals_as_rarely_as_it_says() -> None:
    """Two of the same worth, looked at after each run: one is left behind in 5 % of races."""
    left = 0
    for seed in range(300):
        race = raced([0.0] * 5, 1.0, seed, seeds=5, top=2, baselines=3)
        left += any(len(e.losses) < 5 for e in race.ledger.entries.values())
    assert 0 < left / 300 <= 0.05


def test_a_seed_that_fails_puts_behind_all_that_do_not() -> None:
    race = Race(Ledger([]), 3, 2, ("loss",))
    for each in (entry(0, loss=1.0, losses=[1.0]), entry(1, loss=2.0, losses=[2.0])):
        race.ledger.add(each)
    first = race.next()
    assert first is not None
    race.hear(first, None)
    assert [e.number for e in race.ledger.ranking()] == [1, 0]
    assert race.next() is None  # it is settled by that


def test_a_cheaper_one_is_not_beaten_by_its_loss() -> None:
    """With costs among the objectives a leader races with those that cost as much or less."""
    costs = [0.0, 0.0, 1.0, 2.0, 3.0]
    both: tuple[str, ...] = ("loss", "state")
    race = raced([0.0, 0.0, 9.0, 5.0, 1.0], 0.01, 0, objectives=both, costs=costs)
    assert not race.undecided()[3:]
    a, b, c = (race.ledger.entries[i] for i in (2, 3, 4))
    assert not any(race.beats(one, other) for one, other in itertools.permutations((a, b, c), 2))
    dear = raced([0.0, 0.0, 1.0, 5.0, 9.0], 0.01, 0, objectives=both, costs=costs)
    assert dear.beats(dear.ledger.entries[2], dear.ledger.entries[4])


def test_as_many_lead_as_chance_makes() -> None:
    """Where nothing is ever told apart and noise is all; more, as leaders fall back."""
    spent = [raced([0.0] * 32, 1.0, seed, seeds=2, baselines=2, top=3).begun for seed in range(40)]
    assert 0.9 * expected(30, 3, 2) < statistics.fmean(spent) < 1.6 * expected(30, 3, 2)
    assert expected(30, 3, 1) == expected(1, 3, 9) == 0
    assert expected(2, 5, 4) == 6


SPACE = """
archsearch: 1
name: raced
model:
  dim: 8
  layers: 2
  topology:
    type: interleave
    major: {choice: [mamba, gru, attention]}
    minor: {choice: [mamba, lstm, rnn]}
tasks: [{type: in_context_recall, vocab: 8, length: 16, batch: 4}]
train: {steps: 12, lr: [1e-3, 1e-2]}
search: {sampler: random, trials: 4, seeds: 3}
baselines: [gla, mamba]
final: {top: 2, seeds: 2}
"""


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(speed, "ALLOWANCE", 0.1)
    (tmp_path / "raced.yaml").write_text(SPACE)
    return load_space(tmp_path / "raced.yaml")


def searched(folder: StudyFolder) -> dict[int, list[tuple[int, float]]]:
    trials = folder.read_trials()
    return {
        t["number"]: [(r["seed"], r["loss"]) for r in t["runs"] if r["split"] == "val"]
        for t in trials
    }


def test_a_study_races(space: Any, tmp_path: Path) -> None:
    """Seeds of the search are none of the final runs; page, ledger and folder say the same."""
    result = study(space, out=tmp_path / "s", workers=1)
    folder = StudyFolder(tmp_path / "s")
    record, runs = folder.read_record(), searched(folder)
    assert record["seeds"] == {"search": [0, 3, 4], "final": [1, 2]}
    assert all([seed for seed, _ in of] == [0, 3, 4][: len(of)] for of in runs.values())
    assert [len(runs[number]) for number in (0, 1)] == [3, 3]
    found = Findings.read(folder)
    assert found.best is not None and result.best_entry is not None
    assert (found.best.number, found.best.loss) == (
        result.best_entry.number,
        result.best_entry.loss,
    )
    assert (found.noise.sigma, found.noise.freedom) == (
        record["noise"]["sigma"],
        record["noise"]["freedom"],
    )
    assert folder.best_number == result.best_entry.number
    spent = sum(
        run["tokens"] for t in folder.read_trials() for run in t["runs"] if run["split"] == "val"
    )
    assert record["counts"]["spent"]["tokens"] == spent
    assert all(run["lr"] == t["runs"][0]["lr"] for t in folder.read_trials() for run in t["runs"])
    page = write_report(tmp_path / "s").read_text()
    assert "The race over seeds" in page
    assert f"Noise floor: one run is off by a standard deviation of {found.noise.sigma:.3g}" in page
    status = folder.read_status()
    assert (
        status["runs"] == status["runs_done"] == sum(len(t["runs"]) for t in folder.read_trials())
    )


@pytest.mark.slow
def test_a_race_that_was_stopped_goes_on(space: Any, tmp_path: Path) -> None:
    """Stopped among the baselines and among the leaders, what was there stays, and all is settled in the end."""
    text = SPACE.replace("random", "exhaustive")
    (tmp_path / "raced.yaml").write_text(text)
    space = load_space(tmp_path / "raced.yaml")
    study(space, out=tmp_path / "whole", workers=1)
    whole, folder = searched(StudyFolder(tmp_path / "whole")), StudyFolder(tmp_path / "s")
    stops = [4, 9]

    def watch(status: Any) -> None:
        if stops and status.jobs_done >= stops[0]:
            stops.pop(0)
            raise KeyboardInterrupt

    while stops:
        before = searched(folder) if folder.record.exists() else {}
        with pytest.raises(KeyboardInterrupt):
            study(space, out=folder.path, workers=1, watch=watch)
        after = searched(folder)
        assert all(after[number][: len(runs)] == runs for number, runs in before.items())
    study(space, out=folder.path, workers=1)
    mine = searched(folder)
    assert mine.keys() == whole.keys()
    pairs = [pair for n in whole for pair in zip(mine[n], whole[n], strict=False)]
    assert all(one == other for one, other in pairs)
    assert len(pairs) >= len(whole) + 4  # more than the first runs and the baselines'
    found = Findings.read(folder)
    race = Race(Ledger([]), 3, 2, ("loss",))
    for t in found.candidates:
        race.ledger.add(Entry(t.number, t.kind, t.name, "trained", loss=t.loss, losses=t.losses))
    race.noise = found.noise
    assert all(len(e.losses) == 3 for e in race.undecided())


@pytest.mark.slow
def test_a_run_of_the_race_that_fails_is_told_and_no_trial_is_lost(
    space: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Pool):
        """Where the second seed of every candidate diverges."""

        def messages(self, timeout: float) -> Any:
            for message in super().messages(timeout):
                job = message.job
                ended = isinstance(message, Done) and job.split == "val" and job.number > 1
                diverged = Failed(job, "diverged", "loss is nan")
                yield diverged if ended and job.seed else message

    monkeypatch.setattr("archsearch.engines.Pool", Failing)
    result = study(space, out=tmp_path / "s", workers=1)
    again = study(space, out=tmp_path / "s", workers=1)
    assert result.counts == again.counts
    assert (result.counts["trained"], result.counts["failed"]) == (6, 0)
    folder = StudyFolder(tmp_path / "s")
    failed = {t["number"] for t in folder.read_trials() if t["failures"]}
    assert result.best_entry is not None
    assert failed and result.best_entry.number not in failed  # which did not lead any more
    assert ">failed<" in write_report(tmp_path / "s").read_text()


def test_a_folder_of_another_storage_is_refused(space: Any, tmp_path: Path) -> None:
    """Else its trials would be written over."""
    folder = StudyFolder(tmp_path / "s")
    folder.write_trial(7, space.sample(0), {"number": 7, "hash": "", "runs": [], "failures": []})
    with connected(f"sqlite:///{tmp_path / 'other.db'}") as storage:
        driver = Driver(space, folder, Local("cpu"))
        with pytest.raises(UserError, match=r"has trials \[7\] that .* does not know"):
            driver.open(storage)
