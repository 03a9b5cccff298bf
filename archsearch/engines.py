"""Where the jobs of a study are done: by processes here, a Ray cluster, or a batch system's crew.

The driver proposes, hears, and is the only writer, wherever its workers are.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from archsearch import preflight
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.pool import Pool
from archsearch.workers import Job, Message

Name = Literal["local", "ray", "postgresql"]
MAX_WORKERS = 8
"""Default limit on one machine; a worker holds about 400 MB."""


class Workers(AbstractContextManager["Workers"], Protocol):
    """Who does jobs, `size` at a time; leaving the context ends what is not done."""

    @property
    def size(self) -> int: ...
    @property
    def running(self) -> list[Job]: ...
    @property
    def has_room(self) -> bool: ...
    def submit(self, job: Job) -> None: ...
    def messages(self, timeout: float) -> Iterator[Message]: ...


class Engine(AbstractContextManager["Engine"], Protocol):
    """Workers of one kind, for as long as a study runs."""

    device: str
    """Where models are trained."""

    @property
    def at_work(self) -> bool:
        """Whether workers may be at what an earlier driver gave them."""
        ...

    def require(self) -> None:
        """UserError where jobs could not be done, or not so many at a time as is wanted."""

    def turn(self, folder: StudyFolder) -> bool:
        """Returns when this process is the driver of the study; whether others were before."""
        ...

    def workers(self, limit: int | None = None) -> Workers:
        """All of them, or at most so many."""
        ...

    def describe(self) -> dict[str, Any]:
        """What record.json says of it."""
        ...


class Local(AbstractContextManager["Local"]):
    """Processes of this machine, one for each core, or one for an accelerator."""

    def __init__(self, device: str, size: int | None = None) -> None:
        self.device, self.size = device, size or default(device)

    def __exit__(self, *exc: object) -> None:
        """Nothing outlives its pools."""

    def require(self) -> None:
        """UserError when torch cannot put a tensor on the device."""
        preflight.require_device(self.device)

    @property
    def at_work(self) -> bool:
        """Workers end with their driver."""
        return False

    def turn(self, folder: StudyFolder) -> bool:
        """Nobody else drives here: the folder's lock sees to that."""
        return False

    def workers(self, limit: int | None = None) -> Pool:
        """Processes that end with the pool."""
        return Pool(limit or self.size)

    def describe(self) -> dict[str, Any]:
        """Its name."""
        return {"name": "local"}


def default(device: str) -> int:
    """Workers of a process that was not told how many: one for each core or accelerator."""
    return 1 if device != "cpu" else min(cores(), MAX_WORKERS)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make(
    name: Name,
    device: str,
    size: int | None,
    *,
    address: str | None,
    gpus: float | None,
    storage: str | None,
    study: str,
) -> Engine:
    """The engine of a name.

    Args:
        name: local, ray or postgresql.
        device: where models are trained.
        size: trainings at a time; of a crew, by each of its processes.
        address: of a Ray cluster.
        gpus: what a trial on CUDA has of one, on a cluster; a whole one if None.
        storage: the URL that a crew shares.
        study: the name by which it knows the study there.

    Raises:
        UserError: something is said that the engine has no use for, or not said that it needs.
    """
    if name != "ray" and address is not None:
        raise UserError(f"--address {address}: of a Ray cluster; add --engine ray, or drop it")
    if gpus is not None and (name != "ray" or not device.startswith("cuda")):
        raise UserError(
            f"--gpus-per-trial {gpus:g}: of a Ray cluster and --device cuda; elsewhere --workers "
            "says how many trainings share a device"
        )
    if name == "local":
        return Local(device, size)
    if name == "postgresql":
        from archsearch.crew import Crew

        return Crew(device, storage, study, size or default(device))
    from archsearch.cluster import Cluster

    return Cluster(device, address, 1.0 if gpus is None else gpus, size)
