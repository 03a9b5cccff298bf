"""Workers on a Ray cluster: a job is a task on whichever node has a core, or a GPU, for it.

    driver -- job --> task on a node -- Progress, Progress, ..., Done --> driver

Ray re-runs nothing by itself: the driver hears of a worker or a node that dies, and decides. Nodes
write checkpoints and weights into the study's folder, so all of them have to see it.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any, cast

from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.workers import Done, Failed, Job, Message, run_job, unseen

PATIENCE = 60.0
"""Seconds without any node that could do a job, before a study gives up."""


def _work(job: Job) -> Iterator[Message]:
    """On a node: the messages of a job as they come, its end the last."""
    import torch

    torch.set_num_threads(1)
    if (failed := unseen(job)) is not None:
        yield failed
        return
    said: SimpleQueue[Message] = SimpleQueue()
    threading.Thread(target=lambda: said.put(run_job(job, said.put)), daemon=True).start()
    while True:
        message = said.get()
        yield message
        if isinstance(message, Done | Failed):
            return


class Cluster(AbstractContextManager["Cluster"]):
    """A Ray cluster while a study runs on it.

    Raises:
        UserError: Ray is not installed, no cluster is there, or none of its nodes can do a trial.
    """

    def __init__(
        self,
        device: str,
        address: str | None = None,
        gpus: float = 1.0,
        size: int | None = None,
    ) -> None:
        if gpus > 1 and gpus != int(gpus):
            raise UserError(f"--gpus-per-trial {gpus:g}: a share of one below 1, or whole ones")
        self.device, self.address, self.limit = device, address, size
        self.needs = {"CPU": 1.0} | ({"GPU": gpus} if device.startswith("cuda") else {})

    def __enter__(self) -> "Cluster":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray listens on every interface
        if find_spec("ray") is None:
            raise UserError("--engine ray needs Ray; pip install 'archsearch[ray]'")
        import ray  # reads those when it is imported
        from ray.exceptions import RayError

        ours = signal.getsignal(signal.SIGTERM)
        try:
            self._knock()
            ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            ray.shutdown()
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"--address {self.address}: {reason}. Give HOST:PORT as `ray start --head` told "
                "it, and the nodes one token (`ray get-auth-token --generate`); without --address "
                "a cluster of this machine is started"
            ) from None
        if ours is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)  # Ray puts its own there
        return self

    def _knock(self) -> None:
        """OSError where nobody listens, which Ray would try for minutes."""
        host, _, port = (self.address or "").rpartition(":")
        if host and port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()

    def __exit__(self, *exc: object) -> None:
        import ray

        ray.shutdown()

    def nodes(self) -> list[dict[str, float]]:
        """The resources of each node that is alive."""
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def room(self) -> int:
        """The trials that the cluster can do at a time."""
        return sum(self._room_of(node) for node in self.nodes())

    def _room_of(self, node: dict[str, float]) -> int:
        """The trials that a node can; several share a GPU, but none has pieces of two."""
        cores, share = int(node.get("CPU", 0) / self.needs["CPU"]), self.needs.get("GPU")
        if share is None:
            return cores
        gpus = int(node.get("GPU", 0))
        return min(cores, gpus * int(1 / share) if share < 1 else int(gpus / share))

    @property
    def at_work(self) -> bool:
        """Tasks end with their driver."""
        return False

    def turn(self, folder: StudyFolder) -> bool:
        """A cluster has one driver, this process."""
        return False

    def require(self) -> None:
        """UserError where Ray would let a trial wait for ever."""
        room, size = self.room(), self.limit
        if room == 0:
            raise UserError(f"{self.wanted()}, which no node of the cluster has: {self.told()}")
        if size is not None and size > room:
            raise UserError(
                f"--workers {size}: {self.wanted()}, and the cluster has room for {room}: "
                f"{self.told()}. Leave --workers out to use what there is"
            )

    def workers(self, limit: int | None = None) -> "Tasks":
        """As many as there is room for, nodes that come later included, unless told."""
        return Tasks(self, limit or self.limit)

    def describe(self) -> dict[str, Any]:
        """Its nodes and what a trial has of one."""
        import ray

        return {
            "name": "ray",
            "version": ray.__version__,
            "trial": self.needs,
            "nodes": self.hosts(),
        }

    def hosts(self) -> list[dict[str, float]]:
        """What each node that is alive has of cores, GPUs and memory."""
        kinds = ("CPU", "GPU", "memory")
        return [{kind: node[kind] for kind in kinds if kind in node} for node in self.nodes()]

    def wanted(self) -> str:
        """What a trial takes, in words."""
        return "a trial wants " + " and ".join(f"{n:g} {what}" for what, n in self.needs.items())

    def told(self) -> str:
        """What there is, in words."""
        nodes = [", ".join(f"{kind} {n:g}" for kind, n in host.items()) for host in self.hosts()]
        return "; ".join(node or "nothing" for node in nodes) or "no nodes"


class Tasks(AbstractContextManager["Tasks"]):
    """Jobs as Ray tasks, at most `limit` at a time if it is not None."""

    def __init__(self, cluster: Cluster, limit: int | None) -> None:
        import ray

        self.cluster, self.limit = cluster, limit
        self.streams: dict[Any, Job] = {}
        self.alone_since: float | None = None
        share = {"num_cpus": cluster.needs["CPU"], "num_gpus": cluster.needs.get("GPU", 0)}
        self.task = ray.remote(_work).options(max_retries=0, num_returns="streaming", **share)

    def __exit__(self, *exc: object) -> None:
        import ray

        for stream in self.streams:
            ray.cancel(stream, force=True)

    @property
    def size(self) -> int:
        """The jobs that can run at a time, as the cluster is now."""
        room = self.cluster.room()
        return room if self.limit is None else min(room, self.limit)

    @property
    def running(self) -> list[Job]:
        return [*self.streams.values()]

    @property
    def has_room(self) -> bool:
        return len(self.streams) < self.size

    def submit(self, job: Job) -> None:
        """Hands a job to the cluster."""
        self.streams[self.task.remote(job)] = job

    def messages(self, timeout: float) -> Iterator[Message]:
        """What the tasks have said; waits up to `timeout` seconds for a first word.

        UserError when for PATIENCE seconds no node could do a job.
        """
        import ray

        self._hope()
        if not self.streams:
            time.sleep(timeout)
            return
        ready, _ = ray.wait([*self.streams], num_returns=1, timeout=timeout)
        for stream in ready:
            message = self._next(stream)
            if isinstance(message, Done | Failed):
                del self.streams[stream]
            yield message

    def _next(self, stream: Any) -> Message:
        """What a task said, or how it ended otherwise."""
        import ray
        from ray.exceptions import RayError

        job = self.streams[stream]
        try:
            return cast(Message, ray.get(next(stream)))
        except RayError as error:  # out of a node's memory among them: by whom, nobody says
            return Failed(job, "died", f"{type(error).__name__}: {error}".splitlines()[0])

    def _hope(self) -> None:
        """Notes since when no node could do a job."""
        if self.cluster.room():
            self.alone_since = None
            return
        now = time.monotonic()
        self.alone_since = self.alone_since or now
        if now - self.alone_since > PATIENCE:
            raise UserError(
                f"no node of the cluster can do a trial any more: {self.cluster.wanted()}, and "
                f"there is {self.cluster.told()}. What finished is kept; the same command goes on"
            )
