"""The study: propose, screen, train, record, until the trials are done; then test the best again.

    proposer -> jobs -> worker processes -> metrics in the folder -> the proposer hears the loss

At the end, when nothing else of it runs, it measures how fast the best are.

This process is the only writer. Whatever is killed at whatever moment, the same command goes on:
jobs without a result run again under their own number, and nothing finished is lost.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from archsearch import preflight, samplers
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.jobs import Jobs
from archsearch.ledger import Entry, Ledger, environment
from archsearch.proposing import Proposer
from archsearch.space import Space
from archsearch.spec import ModelSpec
from archsearch.speed import SpeedJob
from archsearch.workers import Done, Failed, Job, Message, Pool, Progress

MAX_WORKERS = 8
"""Default limit; a worker holds about 400 MB."""


@dataclass
class Status:
    """A snapshot for whoever watches a study."""

    ledger: Ledger
    running: dict[tuple[int, int], Progress | None]
    """(trial, seed) -> the latest word from its worker."""
    phase: str
    jobs: int
    jobs_done: int
    seconds_left: float | None


@dataclass
class Result:
    """What a study found."""

    folder: Path
    best: ModelSpec | None
    """The candidate with the lowest validation loss, if any was trained."""
    best_entry: Entry | None
    counts: dict[str, Any]
    exhausted: bool
    """True when the space had nothing new left within the budgets."""


Watch = Callable[[Status], None]


def study(
    space: Space,
    *,
    trials: int | None = None,
    workers: int | None = None,
    out: str | Path | None = None,
    storage: str | None = None,
    device: str = "cpu",
    seed: int | None = None,
    watch: Watch = lambda status: None,
) -> Result:
    """Runs a study to its end, or goes on with it where it stopped.

    Args:
        space: what is searched.
        trials: candidates to train; the space's own number if None.
        workers: processes; one per core, at most 8, if None (one on an accelerator).
        out: the study's folder; studies/<name> if None.
        storage: an Optuna storage URL; SQLite in the folder if None.
        device: where models are trained.
        seed: the space's own if None.
        watch: called with a Status whenever something happened.

    Raises:
        NoFeasibleCandidate: nothing fits the budgets.
        UserError: the folder holds a study of another space, or a task cannot be prepared.
    """
    driver = Driver(space, StudyFolder(out or Path("studies") / space.name), device, seed, trials)
    driver.preflight()
    with driver.folder.locked():
        driver.open(storage)
        return driver.run(workers or default_workers(device), watch)


def default_workers(device: str) -> int:
    """One per core, at most MAX_WORKERS; one on an accelerator."""
    return 1 if device != "cpu" else min(cores(), MAX_WORKERS)


def open_storage(url: str, name: str) -> optuna.Study:
    """Optuna's study of this name, created if it is not there."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(
            storage=url, study_name=name, direction="minimize", load_if_exists=True
        )
    except (SQLAlchemyError, ImportError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"storage {url}: {reason}; check the URL and its driver") from None


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Driver:
    """One study in progress: its jobs, its workers, its folder."""

    def __init__(
        self, space: Space, folder: StudyFolder, device: str, seed: int | None, trials: int | None
    ) -> None:
        self.space, self.file, self.folder, self.device = space, space.file, folder, device
        self.seed = self.file.seed if seed is None else seed
        self.trials = trials or self.file.search.trials
        self.jobs = Jobs(space, folder, device, self.seed)
        self.running: dict[tuple[int, int], Progress | None] = {}
        self.seconds: list[float] = []  # of the jobs finished here, for the time left
        self.jobs_done = 0

    def preflight(self) -> None:
        """Finds what is wrong before anything is written."""
        preflight.require_device(self.device)
        samplers.require(self.file.search.sampler)
        for task in self.file.tasks:
            task.prepare()
        preflight.require_same_space(self.folder, self.document())
        preflight.require_same_blocks(self.folder, self.space)
        preflight.require_same_sources(self.folder)
        preflight.require_same_checkpoints(self.folder)
        preflight.require_feasible(self.space, self.seed)

    def document(self) -> dict[str, Any]:
        """The space as this study resolves it."""
        data = self.file.model_dump(mode="json")
        data["blocks"] = list(self.space.blocks)
        data["seed"], data["search"]["trials"] = self.seed, self.trials
        return data

    def open(self, storage: str | None) -> None:
        """Creates or loads the storage, and takes up what an earlier process left unfinished."""
        stored = open_storage(storage or self.folder.storage, self.space.name)
        self.folder.write_blocks(self.space.blocks)
        self.folder.write_space(self.document())
        self.proposer = Proposer(
            self.space, stored, seed=self.seed, trials=self.trials, device=self.device
        )
        self.ledger = self.proposer.ledger
        for entry in self.ledger.having("training"):
            if (trial := self.folder.read_trial(entry.number)) is not None:
                self.close(entry, trial)  # the result was written, the storage not yet told
        self.left_over = [self.jobs.search(entry) for entry in self.ledger.having("training")]
        trials = self.folder.read_trials()
        if missing := self.ledger.numbers("trained") - {trial["number"] for trial in trials}:
            raise UserError(
                f"{storage or self.folder.storage}: its study {self.space.name!r} has trials "
                f"{sorted(missing)} that {self.folder.path} has not; name the folder it was run in"
                " with --out, or another storage"
            )
        self.jobs_done = sum(len(t["runs"]) + len(t["failures"]) for t in trials)
        self.environment = environment(self.device)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        past = self.folder.read_record() if self.folder.record.exists() else {"started": now}
        self.times = {"started": past["started"], "resumed": past.get("resumed", [])}
        if self.folder.record.exists():
            self.times["resumed"].append(now)
        self.write_record()

    def run(self, workers: int, watch: Watch) -> Result:
        """Keeps the workers busy until nothing is left to do."""
        with Pool(workers) as pool:
            self._drain(pool, "search", self.search_jobs(), watch)
            self._drain(pool, "final", self.jobs.final(self.ledger), watch)
        with Pool(1) as alone:  # the workers are gone: a time is of what has the machine for itself
            self._drain(alone, "speed", self.jobs.speed(self.ledger), watch)
        self.write_record(finished=datetime.now(UTC))
        best = next(iter(self.ledger.ranking()), None)
        spec = ModelSpec.model_validate(best.spec) if best else None
        return Result(self.folder.path, spec, best, self.ledger.counts(), self.proposer.exhausted)

    def search_jobs(self) -> Iterator[Job]:
        """The jobs of the search, each proposed only when it is asked for."""
        yield from self.left_over
        while (entry := self.proposer.next()) is not None:
            yield self.jobs.search(entry)

    def _drain(self, pool: Pool, phase: str, jobs: Iterator[Job], watch: Watch) -> None:
        """Feeds jobs to the pool as it has room, one ready ahead of need, and hears it out."""
        ahead = next(jobs, None)
        while ahead is not None or pool.running:
            while ahead is not None and pool.has_room:
                pool.submit(ahead)
                self.running[ahead.number, ahead.seed] = None
                watch(self.status(phase, pool.size))
                ahead = next(jobs, None)
            for message in pool.messages(0.5):
                self.hear(message)
            watch(self.status(phase, pool.size))

    def hear(self, message: Message) -> None:
        """Writes down what a worker said: the folder first, then the storage."""
        job = message.job
        if isinstance(message, Progress):
            self.running[job.number, job.seed] = message
            return
        del self.running[job.number, job.seed]
        entry = self.ledger.entries[job.number]
        trial = self.folder.read_trial(job.number) or self._new_trial(entry)
        if isinstance(job, SpeedJob):
            failed = isinstance(message, Failed)
            trial["speed"] = {"left_out": message.message} if failed else message.run
            self.folder.write_trial(job.number, ModelSpec.model_validate(entry.spec), trial)
            return
        self.jobs_done += 1
        if isinstance(message, Done):
            self.seconds.append(message.run["seconds"])
            trial["runs"].append(message.run)
            news = {"state": "trained", "loss": message.run["loss"]}
        else:
            news = {"state": "failed", "cause": message.cause, "message": message.message}
            trial["failures"].append({"seed": job.seed, "split": job.split, **news})
        if job.split == "val":
            trial |= news
            if isinstance(message, Done):
                over = self.file.budgets.breaches(message.run["measured"])
                trial["breaches"] = [asdict(excess) for excess in over]
        self.folder.write_trial(job.number, ModelSpec.model_validate(entry.spec), trial)
        if job.split == "val":
            self.close(entry, trial)
        self.write_record()

    def close(self, entry: Entry, trial: dict[str, Any]) -> None:
        """Ends a trial of the search as its metrics say, and moves best/ to it if it leads."""
        for key in ("state", "loss", "cause", "message"):
            setattr(entry, key, trial[key])
        state = TrialState.COMPLETE if entry.state == "trained" else TrialState.FAIL
        self.proposer.settle(entry, state, entry.loss)
        if self.ledger.ranking()[:1] == [entry]:
            self.folder.publish_best(entry.number)

    @staticmethod
    def _new_trial(entry: Entry) -> dict[str, Any]:
        """metrics.json of a trial before its first result."""
        return {**entry.brief(), "runs": [], "failures": []}

    def write_record(self, finished: datetime | None = None) -> None:
        """record.json: what ran where, and every proposal counted."""
        unseen = ("over_budget", "duplicate", "invalid", "failed", "interrupted")
        self.folder.write_record(
            {
                "name": self.space.name,
                "seed": self.seed,
                "seeds": {
                    "search": self.seed,
                    "final": [self.seed + 1 + i for i in range(self.file.final.seeds)],
                },
                **self.environment,
                **self.times,
                "finished": finished.isoformat(timespec="seconds") if finished else None,
                "exhausted": self.proposer.exhausted,
                "counts": self.ledger.counts(),
                "tasks": {
                    task.name: {
                        "fingerprint": task.fingerprint(),
                        "unit": task.unit,
                        "floors": task.floors(),
                    }
                    for task in self.file.tasks
                },
                "untrained": [entry.brief() for entry in self.ledger.having(*unseen)],
            }
        )

    def status(self, phase: str, workers: int) -> Status:
        finals = (self.file.final.top + len(self.file.baselines)) * self.file.final.seeds
        jobs = self.trials + len(self.file.baselines) + finals
        left = jobs - self.jobs_done
        mean = sum(self.seconds) / len(self.seconds) if self.seconds else None
        seconds_left = None if mean is None else mean * max(0, left) / workers
        return Status(self.ledger, self.running, phase, jobs, self.jobs_done, seconds_left)
