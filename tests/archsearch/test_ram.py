"""Memory: what is left, who is ended where it runs short, and what a training held."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from archsearch import ram, study
from archsearch.folder import StudyFolder
from archsearch.ram import Room
from archsearch.space import Space

GIB = 2**30


def test_a_container_may_have_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By either version of cgroups; what it could give back is left; "max" is no limit."""
    machine = Room(60 * GIB, 64 * GIB)
    memory = SimpleNamespace(available=machine.left, total=machine.total)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert ram.room(tmp_path, tmp_path / "none") == machine
    (tmp_path / "memory.max").write_text("1073741824\n")
    (tmp_path / "memory.current").write_text("1063741824\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 993\nactive_file 7\n")
    assert ram.room(tmp_path) == Room(10_001_000, GIB)
    assert ram.room(tmp_path).short
    (tmp_path / "memory.max").write_text("max\n")
    assert ram.room(tmp_path).total == machine.total
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text(f"{GIB // 2}")
    (old / "memory.usage_in_bytes").write_text(f"{GIB // 4 + 5}")
    (old / "memory.stat").write_text("total_inactive_file 5\n")
    assert ram.room(tmp_path) == Room(GIB // 4, GIB // 2)
    own, told = tmp_path / "job.slice/step", tmp_path / "told"  # as Slurm has it
    own.mkdir(parents=True)
    told.write_text("0::/job.slice/step/task\n")
    (own / "memory.max").write_text(f"{GIB // 4}")
    (own / "memory.current").write_text(f"{GIB // 4 - 5}")
    (own / "memory.stat").write_text("active_file 2\nslab_reclaimable 3\n")
    assert ram.room(tmp_path, told) == Room(10, GIB // 4)
    assert not ram.room(tmp_path).short
    (old / "memory.limit_in_bytes").write_text(f"{2**62}")  # the first version's "max"
    assert ram.room(tmp_path).total == machine.total


def test_the_largest_is_ended_if_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {1: 3 * GIB, 2: 4 * GIB, 3: GIB}
    monkeypatch.setattr(ram, "_held", held.get)
    monkeypatch.setattr(ram, "room", lambda: Room(GIB, 16 * GIB))
    assert ram.to_spare(held) is None  # there is enough
    monkeypatch.setattr(ram, "room", lambda: Room(GIB // 2, 16 * GIB))
    assert ram.to_spare(held) == (2, "it held 4.00 GiB, and 512 MiB of 16.0 GiB were left")
    held[1] = held[2] = held[3] = GIB // 2
    assert ram.to_spare(held) is None  # others have it
    assert ram.to_spare([]) is None


def test_what_a_job_held_is_its_own() -> None:
    """In a process that held more before."""
    code = """
import psutil, torch
from archsearch import ram
told = []
for size in (60, 300, 40):
    with ram.peak("cpu") as most:
        before = psutil.Process().memory_info().rss
        torch.ones(size << 18).sum()
        told.append((most() - before) / 2**20)
print(*told)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = [float(word) for word in done.stdout.split()]
    assert told == pytest.approx([60, 300, 40], abs=8)


def test_what_fails_within_is_not_hidden() -> None:
    def full() -> None:
        with ram.peak("cpu"):
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        full()


@pytest.mark.slow
def test_a_worker_too_many(
    small: Callable[..., Space], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two do not fit one works, and every job is done; each run tells what it held."""
    sizes: list[int] = []

    def to_spare(pids: Any) -> tuple[int, str] | None:
        sizes.append(len(pids))
        return (max(pids), "it held 9.0 GiB") if len(pids) == 2 else None

    monkeypatch.setattr(ram, "to_spare", to_spare)
    result = study(small(**{"eta: 2": "eta: null"}), trials=4, out=tmp_path / "s", workers=2)
    assert (result.counts["trained"], result.counts["failed"], result.counts["deaths"]) == (5, 0, 1)
    assert sizes.count(2) == 1  # never again: the final runs are done by one, too
    runs = [run for t in StudyFolder(tmp_path / "s").read_trials() for run in t["runs"]]
    assert all(0.1 < run["memory"] / GIB < 2 for run in runs)
