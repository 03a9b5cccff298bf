"""Worker processes on this machine: each does one job at a time, on one thread, and reports.

The driver is the only one that writes the study. A worker that dies takes its own job with it and
nothing else: the pipe closes, the driver hears of it at once and starts another. Workers ignore
Ctrl-C (the driver decides) and end with the driver, at once. When memory runs short the largest is
ended, and one less works from then on.
"""

import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from archsearch import ram
from archsearch.workers import Done, Failed, Job, Message, end_with_parent, run_job


def _serve(pipe: Connection) -> None:
    """A worker's life: jobs in, messages out, until the driver hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import torch

    end_with_parent()
    torch.set_num_threads(1)  # two spinning thread pools on shared cores are slower than one thread

    def report(message: Message) -> None:
        try:
            pipe.send(message)
        except OSError:  # the driver is gone: no failure of the job, whose checkpoint stays
            raise SystemExit from None

    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        report(run_job(job, report))


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: Job | None = None
    spared: str = ""
    """Why we ended it ourselves."""


@dataclass
class Pool:
    """`size` workers, started when first needed. Use as a context manager: it ends them all."""

    size: int
    workers: list[_Worker] = field(default_factory=list)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self.workers:
            self._end(worker)

    @property
    def running(self) -> list[Job]:
        return [worker.job for worker in self.workers if worker.job is not None]

    @property
    def has_room(self) -> bool:
        return len(self.running) < self.size

    def submit(self, job: Job) -> None:
        """Hands a job to an idle worker, starting one if there is none."""
        for worker in [w for w in self.workers if w.job is None]:
            try:
                worker.pipe.send(job)
            except OSError:  # it died while it had nothing to do
                self._bury(worker)
                continue
            worker.job = job
            return
        worker = self._start()
        self.workers.append(worker)
        worker.job = job
        worker.pipe.send(job)

    def messages(self, timeout: float) -> Iterator[Message]:
        """What the workers have said; waits up to `timeout` seconds for a first word."""
        self._spare()
        pipes = {worker.pipe: worker for worker in self.workers}
        for pipe in wait(list(pipes), timeout):
            worker = pipes[pipe]  # type: ignore[index]
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):  # the latter in the middle of a message
                message = self._bury(worker)
            if isinstance(message, Done | Failed):
                worker.job = None
            if message is not None:
                yield message

    def _spare(self) -> None:
        """Ends the largest worker before the system ends anybody; from then on there is one less.

        Its job has died, and is begun again with more room; where it is alone, it is too large.
        """
        busy = {worker.process.pid: worker for worker in self.workers if worker.job is not None}
        if (found := ram.to_spare(busy)) is not None:
            pid, why = found
            busy[pid].spared = f"; {why}"
            busy[pid].process.kill()
            busy[pid].process.join()
            self.size = max(1, self.size - 1)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")  # fork after torch has threads can deadlock
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _bury(self, worker: _Worker) -> Failed | None:
        worker.process.join()
        self.workers.remove(worker)
        code = worker.process.exitcode
        why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if worker.job is None:
            return None
        if code == -signal.SIGKILL:
            why += worker.spared or "; the system may have run out of memory"
        return Failed(worker.job, "died", f"the worker process ended with {why}")

    @staticmethod
    def _end(worker: _Worker) -> None:
        worker.pipe.close()
        worker.process.terminate()
        worker.process.join(5)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
