"""Where the jobs of a study are done: by processes of this machine, or by the nodes of a cluster.

The driver proposes, hears, and is the only writer, wherever its workers are.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from archsearch import preflight
from archsearch.errors import UserError
from archsearch.pool import Pool
from archsearch.workers import Job, Message

Name = Literal["local", "ray"]
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

    def require(self, size: int | None) -> None:
        """UserError where so many jobs, or one if None, could not be done at a time."""

    def workers(self, size: int | None) -> Workers:
        """So many, as many as make sense if None."""
        ...

    def describe(self) -> dict[str, Any]:
        """What record.json says of it."""
        ...


class Local(AbstractContextManager["Local"]):
    """Processes of this machine, one for each core, or one for an accelerator."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __exit__(self, *exc: object) -> None:
        """Nothing outlives its pools."""

    def require(self, size: int | None) -> None:
        """UserError when torch cannot put a tensor on the device."""
        preflight.require_device(self.device)

    def workers(self, size: int | None) -> Pool:
        """At most MAX_WORKERS unless told."""
        return Pool(size or (1 if self.device != "cpu" else min(cores(), MAX_WORKERS)))

    def describe(self) -> dict[str, Any]:
        """Its name."""
        return {"name": "local"}


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make(name: Name, device: str, address: str | None, gpus: float | None) -> Engine:
    """The engine of a name.

    Args:
        name: local, or ray.
        device: where models are trained.
        address: of a Ray cluster.
        gpus: what a trial on CUDA has of one, on a cluster; a whole one if None.

    Raises:
        UserError: something is said that the engine has no use for.
    """
    if name == "local" and address is not None:
        raise UserError(f"--address {address}: of a Ray cluster; add --engine ray, or drop it")
    if gpus is not None and (name == "local" or not device.startswith("cuda")):
        raise UserError(
            f"--gpus-per-trial {gpus:g}: of a Ray cluster and --device cuda; elsewhere --workers "
            "says how many trainings share a device"
        )
    if name == "local":
        return Local(device)
    from archsearch.cluster import Cluster

    return Cluster(device, address, 1.0 if gpus is None else gpus)
