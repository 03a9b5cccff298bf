"""Workers of a batch system: all processes that run a study on one PostgreSQL URL are of the crew.

    each     keeps workers of its own, processes that take jobs from the board
    one      is the driver too: whoever holds its lock; when it is gone the next one goes on

They share a database and a folder. The driver is the only one that writes the study, as elsewhere;
what workers are at when it dies they go on with, and the next driver hears of it.
"""

import multiprocessing
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from archsearch import preflight, ram
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.storing import masked
from archsearch.workers import Failed, Job, Message, Progress, end_with_parent, run_job, unseen

SAY_EVERY = 1.0
"""Seconds between two words of a job on how far it is."""
PATIENCE = 300.0
"""Seconds that a new driver waits for the folder: a file server's lock outlives its holder."""
BARREN = 10
"""Workers in a row that could not begin, before their process gives up."""


class Recalled(BaseException):
    """A job was taken from its worker: it stops, and is no failure."""


def _serve(url: str, study: str, me: int, device: str) -> None:
    """A worker's life: jobs from the board, until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import torch

    from archsearch.board import Board, unless_lost

    torch.set_num_threads(1)
    try:
        board = Board(url, study)
    except UserError:  # its parent counts those
        sys.exit(BARREN)
    board.enlist(me)
    end_with_parent()
    while True:
        with unless_lost():
            claimed = board.claim(me)
            if claimed is None:
                board.wait(1.0)
                continue
        number, job = claimed
        job = replace(job, device=device)
        heard = 0.0

        def report(message: Message, number: int = number) -> None:
            nonlocal heard
            if isinstance(message, Progress) and time.monotonic() - heard < SAY_EVERY:
                return
            heard = time.monotonic()
            with unless_lost():
                if not board.say(number, me, message):
                    raise Recalled

        with suppress(Recalled):
            report(unseen(job) or run_job(job, report))


class Crew(AbstractContextManager["Crew"]):
    """One process of the crew, with `size` workers of its own.

    Raises:
        UserError: the storage is no PostgreSQL, or nobody answers there.
    """

    def __init__(self, device: str, url: str | None, study: str, size: int) -> None:
        if url is None or not url.startswith("postgresql"):
            came = "no --storage" if url is None else f"--storage {masked(url)}"
            raise UserError(
                f"--engine postgresql: {came}; its processes share one database: add --storage "
                "postgresql+psycopg://USER@HOST/DATABASE"
            )
        if find_spec("psycopg") is None:
            raise UserError(
                "--engine postgresql needs psycopg; pip install 'archsearch[postgresql]'"
            )
        self.device, self.url, self.study, self.size = device, url, study, size
        self.own: dict[int, Any] = {}  # worker -> its process
        self.barren = 0  # workers that could not begin, since one did

    def __enter__(self) -> "Crew":
        from archsearch.board import Board

        self.board = Board(self.url, self.study)
        return self

    def __exit__(self, *exc: object) -> None:
        """Its workers end, and what they had is for others: leaving is no death."""
        import psycopg

        with suppress(psycopg.Error):
            self.board.free([*self.own])
        for process in self.own.values():
            process.terminate()
        for process in self.own.values():
            process.join(5)
            process.kill()
        with suppress(psycopg.Error):
            self.board.free([*self.own])  # what they took meanwhile
        self.board.close()

    def require(self) -> None:
        """UserError when torch cannot put a tensor on the device."""
        preflight.require_device(self.device)

    @property
    def at_work(self) -> bool:
        """Workers go on when their driver is gone."""
        return bool(self.board.alive())

    def turn(self, folder: StudyFolder) -> bool:
        """Works for whoever is the driver, until nobody is; then this process is."""
        waited = False
        while not self.board.lead():
            waited = True
            self.tend()
            time.sleep(0.5)
        until = time.monotonic() + PATIENCE
        while folder.busy and time.monotonic() < until:
            self.tend()
            time.sleep(0.2)
        return waited

    def workers(self, limit: int | None = None) -> "Hands":
        """All that there are, of every process, at most so many at a time."""
        return Hands(self, limit)

    def describe(self) -> dict[str, Any]:
        """Its name."""
        return {"name": "postgresql"}

    def tend(self) -> None:
        """Starts those of its workers that are not there: the first time, or as they died.

        Where memory runs short the largest is ended, and one less works from then on.
        """
        processes = {process.pid: process for process in self.own.values()}
        if (found := ram.to_spare(processes)) is not None:
            processes[found[0]].kill()
            processes[found[0]].join()
            self.size = max(1, self.size - 1)
        for worker in [worker for worker, process in self.own.items() if not process.is_alive()]:
            ended = self.own.pop(worker)
            ended.join()
            self.barren = self.barren + 1 if ended.exitcode == BARREN else 0
        if self.barren >= BARREN:
            raise UserError(
                f"{masked(self.url)}: {BARREN} workers in a row could not connect, as this process"
                " can; raise max_connections of the server, or take fewer --workers"
            )
        context = multiprocessing.get_context("spawn")
        while len(self.own) < self.size:
            me = 1 + secrets.randbelow(2**31 - 1)
            args = (self.url, self.study, me, self.device)
            self.own[me] = context.Process(target=_serve, args=args, daemon=True)
            self.own[me].start()


class Hands(AbstractContextManager["Hands"]):
    """The workers of all the crew, as its driver has them."""

    def __init__(self, crew: Crew, limit: int | None) -> None:
        self.crew, self.board, self.limit = crew, crew.board, limit
        self.jobs: dict[str, Job] = {}
        self.over: list[str] = []  # heard of, to be taken down when that is written
        self.said: dict[str, str] = {}

    def __enter__(self) -> "Hands":
        """What workers left that died while nobody drove is for others.

        What stopped the last driver, a full disk or a folder unseen, may be no more: it is asked
        again.
        """
        from archsearch.board import stops

        rows = self.board.rows()
        self.board.drop([row.key for row in rows if row.ended and stops(row.ended)])
        self.board.free([*{row.worker for row in rows if row.worker} - self.board.alive()])
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """All is done: what a race no longer asks for is taken down. If not, the next goes on."""
        if kind is None:
            self.board.drop([row.key for row in self.board.rows()])

    @property
    def size(self) -> int:
        """The workers there are now, one at least: they are starting."""
        there = max(1, len(self.board.alive()))
        return there if self.limit is None else min(there, self.limit)

    @property
    def running(self) -> list[Job]:
        return [*self.jobs.values()]

    @property
    def has_room(self) -> bool:
        return len(self.jobs) < self.size

    def submit(self, job: Job) -> None:
        """Puts a job on the board."""
        from archsearch.board import key

        self.jobs[key(job)] = job
        self.board.post(key(job), job)

    def messages(self, timeout: float) -> Iterator[Message]:
        """What workers have said; waits up to `timeout` seconds for a first word."""
        self.crew.tend()
        self.board.drop(self.over)
        self.over.clear()
        news = [*self._news()]
        if not news:
            self.board.wait(timeout)
            news = self._news()
        yield from news

    def _news(self) -> Iterator[Message]:
        from archsearch.board import message, stops

        rows = [row for row in self.board.rows() if row.key in self.jobs]
        alive = self.board.alive()  # after the rows: who claimed one was alive then
        for key, worker, said, ended in rows:
            job = self.jobs[key]
            if ended is not None:
                del self.jobs[key]
                end = message(job, ended)
                if stops(ended):
                    self.board.drop([key])  # the study stops by it, and goes on without it
                self.over.append(key)
                yield end
            elif worker is not None and worker not in alive:
                if self.board.bury(key, worker):
                    del self.jobs[key]
                    yield Failed(job, "died", "the worker's process or its node ended")
            elif said is not None and said != self.said.get(key):
                self.said[key] = said
                yield message(job, said)
