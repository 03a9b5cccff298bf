"""The driver: a study in progress, its jobs, its workers, its folder.

    proposer -> jobs -> workers -> metrics in the folder -> the proposer hears the loss

It is the only writer. Whatever is killed at whatever moment, the same command goes on: jobs without
a result run again under their own number, and nothing finished is lost.
"""

import errno
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from optuna.storages import RDBStorage
from optuna.trial import TrialState

from archsearch import preflight, ranking, samplers, storing
from archsearch.engines import Engine, Workers
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.jobs import Jobs
from archsearch.ledger import STARTED, Entry, Ledger
from archsearch.proposing import Proposer
from archsearch.racing import Race
from archsearch.record import Record
from archsearch.space import Space
from archsearch.spec import ModelSpec
from archsearch.speed import SpeedJob
from archsearch.status import Status, Watch
from archsearch.workers import SPENT, Done, Failed, Job, Message, Progress, spent

ATTEMPTS = 3
"""How often a job is begun whose worker dies: what kills it may be the job itself."""


class Driver:
    """One study in progress: its jobs, its workers, its folder."""

    def __init__(
        self,
        space: Space,
        folder: StudyFolder,
        engine: Engine,
        *,
        seed: int | None = None,
        trials: int | None = None,
    ) -> None:
        self.space, self.file, self.folder = space, space.file, folder
        self.device = engine.device
        self.engine = engine
        self.seed = self.file.seed if seed is None else seed
        self.trials = trials or self.file.search.trials
        self.jobs = Jobs(space, folder, self.device, self.seed)
        self.running: dict[tuple[int, int], Progress | None] = {}
        self.seconds: list[float] = []  # of the trainings that came to their end here
        self.jobs_done = 0
        self.told = -math.inf
        self.again: list[Job] = []  # whose worker died

    def preflight(self) -> None:
        """Finds what is wrong before anything is written."""
        self.engine.require()
        if any(budget.timed for _, budget in self.file.budgets.items()):
            preflight.require_device(self.device)  # candidates are timed in this process
        samplers.require(self.file.search.sampler)
        for task in self.file.tasks:
            task.prepare()
        self.require_same()
        preflight.feasible(self.space, self.seed)

    def require_same(self) -> None:
        """UserError when the folder is of another study, or of other blocks and kernels."""
        preflight.require_same_space(self.folder, self.document())
        preflight.require_same_blocks(self.folder, self.space)
        preflight.require_same_sources(self.folder)
        preflight.require_same_checkpoints(self.folder)

    def document(self) -> dict[str, Any]:
        """The space as this study resolves it."""
        data = self.file.model_dump(mode="json")
        data["blocks"] = list(self.space.blocks)
        data["seed"], data["search"]["trials"] = self.seed, self.trials
        return data

    def open(self, storage: RDBStorage) -> None:
        """Creates or loads the study, and takes up what an earlier process left unfinished.

        What is wrong is found once more: another process may have begun a study here meanwhile.
        """
        self.require_same()
        stored = storing.study_in(storage, self.space.name, len(self.file.objectives))
        known = Ledger(stored.get_trials(deepcopy=False))
        preflight.require_same_trials(self.folder, known, storing.masked(storage.url))
        if not self.engine.at_work:
            self.folder.clear()
        self.settled = self.folder.finished(self.trials)
        self.folder.write_blocks(self.space.blocks)
        self.folder.write_space(self.document())
        self.proposer = Proposer(
            self.space, stored, seed=self.seed, trials=self.trials, device=self.device
        )
        self.ledger = self.proposer.ledger
        for entry in self.ledger.having("training"):
            trial = self.folder.read_trial(entry.number)
            if trial is not None and self._is_news(entry, trial):
                self.close(entry, trial)  # the result was written, the storage not yet told
        self.left_over = [self.jobs.search(entry) for entry in self.ledger.having("training")]
        trials = self.folder.read_trials()
        for trial in trials:
            self._recall(trial)
        search, final = self.file.search, self.file.final
        self.race = Race(self.ledger, search.seeds, final.top, self.file.objectives)
        self.publish()
        ended = [len(t["runs"]) + len(t["failures"]) + ("waiting" in t) for t in trials]
        self.jobs_done = sum(ended)
        self.record = Record(self.jobs, self.engine)
        if self.settled:
            self.proposer.exhausted = self.folder.read_record()["exhausted"]
            return
        self.record.write(self.proposer, self.race)
        self.folder.write_status(self.status("search", 1).snapshot())

    def run(self, watch: Watch) -> None:
        """Keeps the workers busy until nothing is left to do."""
        with self.engine.workers() as pool:
            self._drain(pool, "search", self.next_job, watch)
            self.prune()
            self._drain(pool, "final", partial(next, self.jobs.final(self.ledger), None), watch)
        with self.engine.workers(1) as alone:  # a time is of what has the machine for itself
            self._drain(alone, "speed", partial(next, self.jobs.speed(self.ledger), None), watch)
        self.folder.clear()
        for leader in self.ledger.ranking()[:1]:
            self.folder.publish_best(leader.number)  # once more, with what was added to it
        self.record.write(self.proposer, self.race, finished=datetime.now(UTC))
        self.tell(watch, "finished", 1)

    def next_job(self) -> Job | None:
        """Of the search: what was left over, who races, what is proposed when it is asked for."""
        if self.left_over:
            return self.left_over.pop(0)
        if (entry := self.race.next()) is not None:
            return self.jobs.again(entry)
        entry = self.proposer.next()
        return None if entry is None else self.jobs.search(entry)

    def prune(self) -> None:
        """Ends the search for candidates that still wait: they go no further."""
        for entry in self.ledger.having("paused"):
            trial = self.folder.read_trial(entry.number) or self._new_trial(entry)
            trial["state"] = entry.state = "pruned"
            self.folder.write_trial(entry.number, ModelSpec.model_validate(entry.spec), trial)
            self.folder.drop_checkpoints(entry.number)
            self.proposer.settle(entry, TrialState.PRUNED)

    def _drain(
        self, pool: Workers, phase: str, take: Callable[[], Job | None], watch: Watch
    ) -> None:
        """Feeds jobs to the pool as it has room, one ready ahead of need, and hears it out.

        What a dead worker had comes first.
        """
        ahead = take()
        while ahead is not None or self.again or pool.running:
            while pool.has_room and (job := self.again[0] if self.again else ahead) is not None:
                pool.submit(job)
                self.running[job.number, job.seed] = None
                self.tell(watch, phase, pool.size)
                if self.again:
                    self.again.pop(0)
                else:
                    ahead = take()
            for message in pool.messages(0.5):
                self.hear(message)
            self.tell(watch, phase, pool.size)
            ahead = ahead or take()  # who waits may go on by what was heard

    def hear(self, message: Message) -> None:
        """Writes down what a worker said: the folder first, then the storage."""
        job = message.job
        if isinstance(message, Progress):
            self.running[job.number, job.seed] = message
            return
        del self.running[job.number, job.seed]
        entry = self.ledger.entries[job.number]
        if self._begins_again(entry, message):
            return
        _stop(message)
        trial = self.folder.read_trial(job.number) or self._new_trial(entry)
        if isinstance(job, SpeedJob):
            failed = isinstance(message, Failed)
            trial["speed"] = {"left_out": message.message} if failed else message.run
            self.folder.write_trial(job.number, ModelSpec.model_validate(entry.spec), trial)
            return
        self.jobs_done += not job.pause  # further ones of a candidate are of the same
        trial.pop("waiting", None)
        news = self._news(entry, trial, message)
        trial["deaths"] = entry.deaths
        first, races = job.seed == self.seed, job.split == "val" and job.seed != self.seed
        if first:
            trial |= news
        elif races:
            took = [trial["spent"], *([news["spent"]] if "spent" in news else [])]
            trial["spent"] = entry.spent = spent(took)
        self.folder.write_trial(job.number, ModelSpec.model_validate(entry.spec), trial)
        if first:
            self.close(entry, trial)
        elif races:
            self.race.hear(entry, news["loss"])
            self.publish()
        self.record.write(self.proposer, self.race)

    def _begins_again(self, entry: Entry, message: Message) -> bool:
        """Whether a worker died over a training that may be begun once more; if so, it is."""
        job = message.job
        died = isinstance(message, Failed) and message.cause == "died"
        if not died or isinstance(job, SpeedJob) or job.attempt + 1 >= ATTEMPTS:
            return False
        entry.deaths += 1
        if job.seed == self.seed:
            self.proposer.keep(entry)
        self.again.append(replace(job, attempt=job.attempt + 1))
        return True

    def _news(self, entry: Entry, trial: dict[str, Any], message: Done | Failed) -> dict[str, Any]:
        """What an end means for its trial, where it is put: as done, failed, or to go on."""
        job = message.job
        if isinstance(message, Failed):
            why = {"state": "failed", "cause": message.cause, "message": message.message}
            trial["failures"].append({"seed": job.seed, "split": job.split, **why})
            return why | {"loss": None}
        run = message.run
        news = {"loss": run["loss"], "spent": {key: run[key] for key in SPENT}}
        if run.pop("paused", False):
            trial["waiting"] = run
            return news | {"state": "paused", "rungs": [*entry.rungs, run["loss"]]}
        trial["runs"].append(run)
        self.seconds.append(run["seconds"])
        if job.budgets is not None:
            over = self.file.budgets.breaches(run["measured"])
            trial["breaches"] = [asdict(excess) for excess in over]
        return news | {"state": "trained"}

    @staticmethod
    def _is_news(entry: Entry, trial: dict[str, Any]) -> bool:
        """Whether metrics.json has a trial further than the entry of one that trains."""
        waits = trial["state"] == "paused" and trial["rungs"] != entry.rungs
        return waits or trial["state"] in ("trained", "failed")

    def close(self, entry: Entry, trial: dict[str, Any]) -> None:
        """Ends a trial of the search as its metrics say, and moves best/ to it if it leads."""
        for key in ("state", "loss", "cause", "message", "rungs", "spent"):
            setattr(entry, key, trial.get(key, getattr(entry, key)))
        if entry.state == "paused":
            self.proposer.keep(entry)
            return
        self.folder.drop_checkpoints(entry.number)  # of what ended otherwise than by training
        state = TrialState.COMPLETE if entry.state == "trained" else TrialState.FAIL
        done = entry.state == "trained"
        values = ranking.point(entry, self.file.objectives) if done else None
        entry.losses = [entry.loss] if done else []
        self.proposer.settle(entry, state, values)
        if self.ledger.ranking()[:1] == [entry]:
            self.publish()

    def _recall(self, trial: dict[str, Any]) -> None:
        """What racing added to a trial: Optuna keeps no news of one that is complete."""
        entry = self.ledger.entries[trial["number"]]
        if entry.state == "trained":
            entry.losses = self.jobs.losses(trial)
            entry.spent, entry.deaths = trial["spent"], trial["deaths"]

    def publish(self) -> None:
        """Makes best/ the leader, if it is not."""
        leader = next(iter(self.ledger.ranking()), None)
        if leader is not None and self.folder.best_number != leader.number:
            self.folder.publish_best(leader.number)

    @staticmethod
    def _new_trial(entry: Entry) -> dict[str, Any]:
        """metrics.json of a trial before its first result."""
        return {**entry.brief(), "runs": [], "failures": []}

    def tell(self, watch: Watch, phase: str, workers: int) -> None:
        """Says how it stands to who watches here, and once a second to who reads the folder."""
        status, now = self.status(phase, workers), time.monotonic()
        if now - self.told >= 1 or phase == "finished":
            self.folder.write_status(status.snapshot())
            self.told = now
        watch(status)

    def status(self, phase: str, workers: int) -> Status:
        search, started = self.file.search, self.ledger.having(*STARTED, kind="baseline")
        known = sum(e.kind == "baseline" for e in self.ledger.entries.values())
        baselines = len(self.file.baselines) - known + len(started)  # some are over budget
        finals = (self.file.final.top + baselines) * self.file.final.seeds
        wanted = self.trials
        if self.proposer.exhausted:  # no more will come than there are
            wanted = len(self.ledger.having(*STARTED, kind="candidate"))
        jobs = wanted + baselines * search.seeds + self.race.begun + finals
        left = jobs - self.jobs_done
        open_ended = phase == "search" and search.eta is not None  # how many go on?
        mean = None if open_ended or not self.seconds else statistics.fmean(self.seconds)
        seconds_left = None if mean is None else mean * max(0, left) / max(1, workers)
        return Status(self.ledger, self.running, phase, jobs, self.jobs_done, seconds_left)


def _stop(message: Done | Failed) -> None:
    """Raises what no trial has failed by, which stays open: it is the study's."""
    if isinstance(message, Failed) and message.cause == "disk_full":
        raise OSError(errno.ENOSPC, message.message)
    if isinstance(message, Failed) and message.cause == "unseen":
        raise UserError(
            f"{message.message}; put the study where every node sees it (--out), and the same "
            "command goes on"
        )
