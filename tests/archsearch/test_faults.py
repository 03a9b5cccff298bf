"""Whatever is killed, and however often: no finished trial is lost, doubled or changed."""

import errno
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import torch
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from archsearch import study
from archsearch.driver import ATTEMPTS, Driver
from archsearch.durable import is_full, replacing, write_atomic
from archsearch.engines import Local
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.jobs import Jobs
from archsearch.ledger import ATTRIBUTE, Entry
from archsearch.pool import Pool, _serve
from archsearch.proposing import Proposer
from archsearch.space import Space
from archsearch.workers import Done, Failed, run_job

KILLS = 50


STUDY = """
from archsearch import load_space, speed, study
speed.ALLOWANCE = 0.1
study(load_space({root!r} + "/small.yaml"), out={root!r} + "/killed", workers=2)
"""
"""What others kill: told as a text, for a new process cannot import a test."""


def workers_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def finished(folder: StudyFolder) -> dict[int, Any]:
    """What is in the folder of the trials that the search is done with."""
    return {t["number"]: t for t in folder.read_trials() if t["state"] in ("trained", "pruned")}


@pytest.mark.slow
def test_fifty_kills_change_nothing(small: Callable[..., Space], tmp_path: Path) -> None:
    """Drivers and workers, at moments drawn; what was there stays, and the end is the same."""
    raced = {"trials: 8, eta: 2": "trials: 20, eta: 2, seeds: 3", "top: 1": "top: 2"}
    study(small(**raced), out=tmp_path / "whole", workers=2)
    folder, rng = StudyFolder(tmp_path / "killed"), random.Random(0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["archsearch.search"])  # a driver starts at once
    kills, known, in_a_row = 0, {}, 0
    while True:
        code = STUDY.format(root=str(tmp_path))
        driver = context.Process(target=exec, args=(code, {"__name__": "driver"}))
        driver.start()
        assert driver.pid is not None
        while driver.is_alive():
            # The last ones undisturbed; the others often enough that few get through between two.
            driver.join(rng.uniform(0.2, 4.0) if kills < KILLS else None)
            if not driver.is_alive():
                break
            workers = workers_of(driver.pid)
            if workers and in_a_row < ATTEMPTS - 1 and rng.random() < 0.5:
                os.kill(rng.choice(workers), signal.SIGKILL)
                in_a_row += 1
            else:
                driver.kill()
                driver.join()
                in_a_row = 0
            kills += 1
            for number, trial in known.items():
                assert finished(folder)[number]["runs"][:1] == trial["runs"][:1]
            known = finished(folder)
        assert driver.exitcode in (0, -signal.SIGKILL)
        if driver.exitcode == 0:
            break
    assert kills >= KILLS
    same_in_the_end(folder, StudyFolder(tmp_path / "whole"))


def same_in_the_end(folder: StudyFolder, whole: StudyFolder) -> None:
    """All there, each once, with the losses of a study that nobody disturbed."""
    mine, its = ({t["hash"]: t for t in f.read_trials()} for f in (folder, whole))
    assert mine.keys() == its.keys()
    assert len(mine) == len(folder.read_trials())
    for one, other in ((mine[key], its[key]) for key in mine):
        assert one["state"] in ("trained", "pruned"), one
        assert all(a == b for a, b in zip(one["rungs"], other["rungs"], strict=False))
        losses = [{(r["split"], r["seed"]): r["loss"] for r in t["runs"]} for t in (one, other)]
        assert len(losses[0]) == len(one["runs"])  # none twice
        assert all(losses[1].get(key, loss) == loss for key, loss in losses[0].items())
    stored = optuna.load_study(study_name=None, storage=folder.storage)
    entries = [Entry(**trial.user_attrs[ATTRIBUTE]) for trial in stored.trials]
    for entry, trial in zip(entries, stored.trials, strict=True):
        ended = {"trained": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
        assert trial.state == ended[entry.state]
    counts = folder.read_record()["counts"]
    assert counts["trained"] + counts["pruned"] == len(mine)
    assert counts["proposed"] == len(stored.trials)
    assert not folder.checkpoints()
    assert not [*folder.path.rglob("*.partial")]


@pytest.mark.slow
def test_a_job_whose_worker_dies_is_begun_again_a_few_times(
    small: Callable[..., Space], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that kills its worker each time fails at last, with its cause."""
    submitted: list[Any] = []

    class Deadly(Pool):
        """A pool in which the first candidate's workers die always, the second's once."""

        def submit(self, job: Any) -> None:
            submitted.append(job)
            super().submit(job)

        def messages(self, timeout: float) -> Any:
            for message in super().messages(timeout):
                job = message.job
                deadly = job.number == 1 or (job.number == 2 and job.attempt == 0)
                ended = isinstance(message, Done) and job.split == "val"
                yield Failed(job, "died", "killed") if ended and deadly else message

    monkeypatch.setattr("archsearch.engines.Pool", Deadly)
    space = small(**{"trials: 8, eta: 2": "trials: 3, eta: null", "steps: 60": "steps: 21"})
    result = study(space, out=tmp_path / "s", workers=1)
    trials = {t["number"]: t for t in StudyFolder(tmp_path / "s").read_trials()}
    assert (trials[1]["state"], trials[1]["cause"]) == ("failed", "died")
    assert trials[1]["deaths"] == ATTEMPTS - 1
    assert [job.attempt for job in submitted if job.number == 1] == [*range(ATTEMPTS)]
    assert (trials[2]["state"], trials[2]["deaths"]) == ("trained", 1)
    assert result.counts["deaths"] == ATTEMPTS


@pytest.mark.slow
def test_best_is_mended_when_a_study_goes_on(small: Callable[..., Space], tmp_path: Path) -> None:
    """Killed between a result and its copy, or in the middle of the copy."""
    space = small(**{"trials: 8, eta: 2": "trials: 3, eta: null", "steps: 60": "steps: 21"})
    study(space, out=tmp_path / "s", workers=1)
    folder = StudyFolder(tmp_path / "s")
    right = folder.best_number
    others = [t["number"] for t in folder.read_trials() if t["number"] != right]
    for spoil in (
        lambda: folder.publish_best(others[0]),
        lambda: folder.best.rename(tmp_path / "x"),
    ):
        spoil()
        driver = Driver(space, folder, Local("cpu"))
        driver.open(RDBStorage(driver.folder.storage))
        assert folder.best_number == right


def test_what_fails_leaves_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "half \udcff")
    with replacing(path) as partial:  # two processes would not meet
        assert str(os.getpid()) in partial.name
        partial.write_text(json.dumps({"new": time.time()}))
        assert path.read_text() == "old"
    assert "new" in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]


def test_what_the_killed_left_is_cleared(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    left = [folder.path / ".record.json.77.partial", folder.trial(3) / ".x.safetensors.9.partial"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    folder.clear()
    assert not any(path.exists() for path in left)


def test_what_others_are_writing_stays(small: Callable[..., Space], tmp_path: Path) -> None:
    """Workers of a crew go on when their driver is gone: the next one leaves their files alone."""
    folder = StudyFolder(tmp_path / "s")
    half = folder.trial(0) / ".x.checkpoint.77.partial"
    half.parent.mkdir(parents=True)

    class Busy(Local):
        at_work = True  # type: ignore[assignment]

    for engine, stays in ((Busy("cpu"), True), (Local("cpu"), False)):
        half.write_text("half")
        driver = Driver(small(), folder, engine)
        driver.open(RDBStorage(folder.storage))
        assert half.exists() == stays


def test_the_best_is_copied_without_what_is_being_trained(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    for name in ("metrics.json", "spec.yaml", "recall-0.01-3.checkpoint", ".x.9.partial"):
        write_atomic(folder.trial(4) / name, "{}")
    folder.publish_best(4)
    assert {path.name for path in folder.best.iterdir()} == {"metrics.json", "spec.yaml"}


def test_a_best_that_cannot_be_read_is_made_anew(tmp_path: Path) -> None:
    """A power cut may leave its files empty: it is a copy, and no reason to begin a study anew."""
    folder = StudyFolder(tmp_path / "s")
    write_atomic(folder.trial(4) / "metrics.json", '{"number": 4}')
    folder.publish_best(4)
    assert folder.best_number == 4
    (folder.best / "metrics.json").write_bytes(b"")
    assert folder.best_number is None
    folder.publish_best(4)
    assert folder.best_number == 4


def test_a_stray_file_among_the_trials_is_no_trial(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    write_atomic(folder.trial(4) / "metrics.json", '{"number": 4}')
    (folder.path / "trials" / ".DS_Store").write_text("")
    assert [trial["number"] for trial in folder.read_trials()] == [4]


def test_a_rate_that_diverged_stays_out(small: Callable[..., Space], tmp_path: Path) -> None:
    """Behind every rung, the second one too."""
    space = small()
    train = space.file.train.model_copy(update={"lr": [1e-3, 1e-2, 1.0]})
    space.file = space.file.model_copy(update={"train": train})
    spec = space.sample(0)
    entry = Entry(0, "candidate", "trial 0", "training", spec=spec.model_dump(mode="json"))
    folder = StudyFolder(tmp_path / "s")
    for known, kept in (
        ([[1e-3, 1.0], [1e-2, 1.1], [1.0, None]], [1e-3, 1e-2]),
        ([[1e-3, 1.0], [1e-2, None]], [1e-3]),
        ([[1e-3, 1.0]], [1e-3]),
    ):
        folder.write_trial(0, spec, {"waiting": {"losses_by_lr": known}})
        assert Jobs(space, folder, "cpu", 0).search(entry).training["lr"] == kept
    folder.write_trial(0, spec, {})
    assert Jobs(space, folder, "cpu", 0).search(entry).training["lr"] == [1e-3, 1e-2, 1.0]


def test_a_killed_driver_takes_its_workers_along() -> None:
    """At once, whatever they are at."""
    code = """
import multiprocessing, os, time
from archsearch.workers import end_with_parent

def work():
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context("fork").Process(target=work).start()
    time.sleep(60)
"""
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    worker = int(driver.stdout.readline())
    assert psutil.pid_exists(worker)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    gone, _ = psutil.wait_procs([psutil.Process(worker)] if psutil.pid_exists(worker) else [], 10)
    assert not psutil.pid_exists(worker) or gone


def test_no_room_is_known_as_such(tmp_path: Path) -> None:
    """As Python, torch, and a database tell of it; other errors are not."""
    errors: list[Exception] = [OSError(errno.EDQUOT, "quota")]
    for write in (
        lambda file: file.write(b"x"),
        lambda file: torch.save({"x": torch.zeros(9)}, file),
    ):
        with pytest.raises((OSError, RuntimeError)) as told, open("/dev/full", "wb", 0) as file:
            write(file)
        errors.append(told.value)
    small = sqlite3.connect(tmp_path / "small.db")
    small.execute("pragma max_page_count = 1")
    with pytest.raises(sqlite3.OperationalError) as full:
        small.execute("create table t (x)")
    errors.append(SQLAlchemyError(str(full.value)))
    assert [error for error in errors if not is_full(error)] == []
    assert not any(map(is_full, (OSError(errno.EPERM, "no"), ValueError("full"))))


def replaced_then_full() -> Any:
    """A rename that finds room the first time only."""
    room = iter([True])

    def rename(one: Path, other: Path) -> None:
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.rename(one, other)

    return rename


def test_a_full_disk_fails_no_trial(
    small: Callable[..., Space], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = small()
    entry = Entry(
        0, "candidate", "trial 0", "training", spec=space.sample(0).model_dump(mode="json")
    )
    job = Jobs(space, StudyFolder(tmp_path / "s"), "cpu", 0).search(entry)
    with monkeypatch.context() as patch:
        patch.setattr("archsearch.training.SAVE_EVERY", 0.0)
        patch.setattr("archsearch.durable.os.replace", replaced_then_full())
        end = run_job(job)
    assert isinstance(end, Failed)
    assert end.cause == "disk_full"
    assert len(StudyFolder(tmp_path / "s").checkpoints()) == 1  # from which it goes on
    assert isinstance(run_job(job), Done)


@pytest.mark.slow
def test_with_room_again_a_study_goes_on(
    small: Callable[..., Space], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = small(**{"trials: 8, eta: 2": "trials: 2, eta: null", "steps: 60": "steps: 21"})

    class Crowded(Pool):
        def messages(self, timeout: float) -> Any:
            for message in super().messages(timeout):
                done = isinstance(message, Done) and message.job.number == 1
                text = "No space left on device"
                yield Failed(message.job, "disk_full", text) if done else message

    with monkeypatch.context() as patch:
        patch.setattr("archsearch.engines.Pool", Crowded)
        with pytest.raises(UserError, match=r"no room left .* Make room, and the same command"):
            study(space, out=tmp_path / "s", workers=1)
    assert study(space, out=tmp_path / "s", workers=1).counts["failed"] == 0
    trials = StudyFolder(tmp_path / "s").read_trials()
    assert all(trial["state"] == "trained" and not trial["failures"] for trial in trials)


class Broken:
    """A pipe whose other end is gone, after a job came through it."""

    def __init__(self, job: Any) -> None:
        self.jobs = [job]

    def recv(self) -> Any:
        return self.jobs.pop()

    def send(self, message: Any) -> None:
        raise BrokenPipeError


def test_a_worker_whose_driver_is_gone_leaves_the_checkpoint(
    small: Callable[..., Space], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job has not failed: the next driver goes on from there."""
    monkeypatch.setattr("archsearch.training.SAVE_EVERY", 0.0)
    monkeypatch.setattr("archsearch.pool.signal.signal", lambda *_: None)
    monkeypatch.setattr("archsearch.pool.end_with_parent", lambda: None)  # it is the test's own
    space = small()
    entry = Entry(
        0, "candidate", "trial 0", "training", spec=space.sample(0).model_dump(mode="json")
    )
    folder = StudyFolder(tmp_path / "s")
    path = folder.trial(0) / "in_context_recall-0.008-0.checkpoint"
    job = Jobs(space, folder, "cpu", 0).search(entry)
    report = run_job(job, lambda _: path.exists() and path.rename(tmp_path / "kept"))
    assert isinstance(report, Done)
    (tmp_path / "kept").rename(path)
    with pytest.raises(SystemExit):
        _serve(Broken(job))  # type: ignore[arg-type]
    assert path.exists()


def test_a_trial_whose_end_the_storage_did_not_hear_is_told(
    small: Callable[..., Space], tmp_path: Path
) -> None:
    """Killed between the entry and the state."""
    space = small()
    stored = optuna.create_study()
    proposer = Proposer(space, stored, seed=0, trials=5)
    ends = ("trained", "pruned", "failed", "over_budget")
    for state in ends:
        entry = proposer.next()
        assert entry is not None
        entry.state, entry.loss = state, 1.0 if state == "trained" else None
        proposer.keep(entry)
    assert {trial.state for trial in stored.trials} == {TrialState.RUNNING}
    Proposer(space, stored, seed=0, trials=5)
    complete, pruned, fail = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
    assert [trial.state for trial in stored.trials] == [complete, pruned, fail, pruned]
