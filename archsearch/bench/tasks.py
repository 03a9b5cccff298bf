"""Presets of tasks measured: what reference architectures reach, over seeds, and how long it takes.

What was measured at the same settings is not measured again, and each preset is written as it is
done: stopping early keeps what is there.
"""

import datetime
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from archsearch.baselines import reference
from archsearch.bench.run import machine
from archsearch.durable import write_atomic
from archsearch.pool import Pool
from archsearch.presets import FOLDER, SEEDS, Kind, expected, measured, preset, presets
from archsearch.recipe import Training
from archsearch.tasks import task
from archsearch.workers import Done, Failed, Job


def measure(
    only: list[str], kind: Kind, device: str, workers: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(task, what was found) of the presets named, or of all that were not measured yet."""
    left = [name for name, kinds in presets().items() if kind in kinds and not expected(name, kind)]
    for name in only or left:
        yield name, _found(name, kind, device, workers)


def keep(name: str, kind: Kind, found: dict[str, Any]) -> None:
    """Adds what was found to expected.json, whole or not at all."""
    text = json.dumps(measured() | {f"{name}/{kind}": found}, indent=1)
    write_atomic(FOLDER / "expected.json", text + "\n")


def _found(name: str, kind: Kind, device: str, workers: int) -> dict[str, Any]:
    at = preset(name, kind)
    asked = task(name, **at.task)
    asked.prepare()  # once, before workers ask for what is kept on disk
    runs: dict[str, dict[str, list[float]]] = {
        name: {"scores": [], "seconds": []} for name in at.references
    }
    with tempfile.TemporaryDirectory() as folder, Pool(workers) as pool:
        jobs = [
            Job(
                number, reference(ref, dim=at.dim, layers=at.layers).model_dump(mode="json"),
                [asked.model_dump(mode="json")], Training(**at.train).model_dump(mode="json"),
                seed, "val", device, str(Path(folder, ref)),
            )
            for number, ref in enumerate(at.references) for seed in range(SEEDS)
        ]  # fmt: skip
        for done in _finished(pool, jobs):
            run = done.run["tasks"][asked.name]
            runs[at.references[done.job.number]]["scores"].append(round(run["score"], 4))
            runs[at.references[done.job.number]]["seconds"].append(run["seconds"])
    where = machine(torch.device(device))["cpu" if device == "cpu" else "gpu"]
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {
        "key": at.key(name),
        "runs": runs,
        "where": f"{date}, torch {torch.__version__}, {where}, {workers} workers",
    }


def _finished(pool: Pool, jobs: list[Job]) -> Iterator[Done]:
    """Every job as it is done; a RuntimeError where one fails."""
    waiting, left = [*jobs], len(jobs)
    while left:
        while waiting and pool.has_room:
            pool.submit(waiting.pop(0))
        for message in pool.messages(timeout=1.0):
            if isinstance(message, Failed):
                raise RuntimeError(f"{message.cause}: {message.message}")
            if isinstance(message, Done):
                left -= 1
                yield message
