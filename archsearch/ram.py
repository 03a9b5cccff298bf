"""Memory of the machine, or of the container we are in, and what processes hold of it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from archsearch.units import BYTES, Cost

GROUPS = (  # by either version of cgroups: where, what it may have, what it has
    ("", "memory.max", "memory.current", ""),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
SPARE = ("inactive_file", "active_file", "slab_reclaimable")
"""What a group has and could give back: copies of files."""
size = Cost("", "", 1024, BYTES).tell
RESERVE = 0.05
"""Of all memory: with less left than that the system is about to end processes, ours or others."""


@dataclass(frozen=True)
class Room:
    """Bytes that are left, of how many."""

    left: int
    total: int

    @property
    def short(self) -> bool:
        return self.left < RESERVE * self.total

    def __str__(self) -> str:
        return f"{size(self.left)} of {size(self.total)} were left"


def room(groups: Path = Path("/sys/fs/cgroup"), told: Path = Path("/proc/self/cgroup")) -> Room:
    """Of the machine, or of the group of processes we are in where that has less.

    Args:
        groups: where the system tells what groups may have.
        told: where it tells which of them is ours.
    """
    machine = psutil.virtual_memory()
    found = [Room(machine.available, machine.total)]
    ours = [line.partition("::")[2] or line.rpartition(":")[2] for line in _lines(told)]
    for place, limit, usage, prefix in GROUPS:
        for path in {folder for own in ours or [""] for folder in _within(own)}:
            group = groups / place / path
            try:
                most, used = (int((group / name).read_text()) for name in (limit, usage))
            except (OSError, ValueError):  # there is none, or it is "max"
                continue
            stat = dict(line.split() for line in _lines(group / "memory.stat"))
            spare = sum(int(stat.get(prefix + name, 0)) for name in SPARE)
            if most < machine.total:
                found.append(Room(most - used + spare, most))
    return min(found, key=lambda room: room.left / room.total)


def _within(group: str) -> list[Path]:
    """A group and all that it is in: each has a limit of its own."""
    path = Path(group.lstrip("/"))
    return [path, *path.parents]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def to_spare(pids: Iterable[int]) -> tuple[int, str] | None:
    """The process to end before the system ends anybody, and why; None where nothing is short.

    The largest, if it holds so much that this mends it: else the memory is with others.
    """
    here = room()
    if not here.short:
        return None
    held, pid = max(((_held(pid), pid) for pid in pids), default=(0, 0))
    if held < RESERVE * here.total:
        return None
    return pid, f"it held {size(held)}, and {here}"


def _held(pid: int) -> int:
    """Bytes that a process alone holds, 0 of one that is gone."""
    try:
        held = psutil.Process(pid).memory_info()
        return held.rss - getattr(held, "shared", 0)
    except psutil.Error:
        return 0


@contextmanager
def peak(device: str) -> Iterator[Callable[[], int | None]]:
    """Gives what a job tells at its end: the most bytes it held, of a GPU or of this process.

    None where the system does not forget what a process held before.
    """
    if device.startswith("cuda"):
        torch.cuda.init()  # in a process that is new; an index alone does not see to it
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        yield lambda: None
    else:
        yield _most


def _most() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024
