"""Jobs, the messages of who does them, and how they are done: anywhere, with plain data alone."""

import multiprocessing
import os
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from archsearch.durable import is_full, replacing

SPENT = ("seconds", "tokens", "flops")
"""What a training takes; FLOPs are those of its steps, without evaluations."""
Split = Literal["val", "test"]


@dataclass(frozen=True)
class Job:
    """An architecture to train on every task with one seed; all of it plain data."""

    number: int
    spec: dict[str, Any]
    tasks: list[dict[str, Any]]
    training: dict[str, Any]
    seed: int
    split: Split
    device: str
    folder: str
    """Where checkpoints are kept while it runs."""
    blocks: list[str] = field(default_factory=list)
    """Files with blocks that are not ours, by absolute path."""
    weights: str | None = None
    """Where to put the weights trained on the first task, or None to drop them."""
    budgets: dict[str, Any] | None = None
    """Limits to hold the trained model to, by what can be measured of it; None for none."""
    attempt: int = 0
    """How often the worker that had it died."""
    pause: int | None = None
    """The rung, from 0 on, behind which it waits for what others reach; None to go to the end."""

    def work(self, report: Any) -> dict[str, Any]:
        """What is to be done in a worker: its entry in metrics.json."""
        return _train_all(self, report)


@dataclass(frozen=True)
class Progress:
    """How far a job is: `step` of the training on `task`."""

    job: Job
    task: str
    step: int
    loss: float


@dataclass(frozen=True)
class Done:
    """A job that came to its end, or to where it pauses. `run` is its entry in metrics.json."""

    job: Job
    run: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """A job that ended otherwise: `cause` in one word, `message` in full."""

    job: Job
    cause: Literal["diverged", "out_of_memory", "disk_full", "unseen", "error", "died"]
    message: str


Message = Progress | Done | Failed


def end_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone, whatever it is at.

    Two that train one trial would take each other's checkpoint away.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def unseen(job: Job) -> Failed | None:
    """What keeps a machine from doing a job: that it does not see the study's folder."""
    study = Path(job.folder).parents[1]
    if study.is_dir():
        return None
    return Failed(job, "unseen", f"{os.uname().nodename} does not see {study}")


def run_job(job: Job, report: Any = lambda message: None) -> Done | Failed:
    """Does a job; every way to fail comes back as a Failed with its cause."""
    import torch

    from archsearch.training import Diverged

    try:
        return Done(job, job.work(report))
    except Diverged as error:
        return Failed(job, "diverged", str(error))
    except torch.OutOfMemoryError as error:
        return Failed(job, "out_of_memory", str(error))
    except Exception as error:  # the boundary of a trial: whatever a block raises fails it alone
        if is_full(error):
            return Failed(job, "disk_full", str(error))
        oom = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        text = "".join(traceback.format_exception(error, limit=-4)).strip()
        return Failed(job, "out_of_memory" if oom else "error", text)


def _train_all(job: Job, report: Any) -> dict[str, Any]:
    """A job's entry in metrics.json: of several learning rates, the one with the lowest loss."""
    from archsearch import ram
    from archsearch.budgets import Budgets
    from archsearch.plugins import load_file
    from archsearch.provenance import score_key, source_versions
    from archsearch.recipe import Training
    from archsearch.spec import ModelSpec
    from archsearch.tasks import TASKS
    from archsearch.tasks.task import widest

    for path in job.blocks:
        load_file(path)
    spec = ModelSpec.model_validate(job.spec)
    training = Training.model_validate(job.training)
    tasks = [TASKS[data["type"]].model_validate(data) for data in job.tasks]
    key = score_key(spec, tasks, training, job.seed, job.split)
    sources = source_versions(spec)  # now, when what has run is what was read
    with ram.peak(job.device) as held:
        run, first, examples = _best_rate(job, spec, training, tasks, report)
        run["memory"] = held()
    identity = {"seed": job.seed, "split": job.split, "key": key, "sources": sources}
    if "paused" in run:
        return identity | {"key": None} | run
    if job.weights:
        save_tensors(first.model.state_dict(), Path(job.weights))
    save_tensors(examples, Path(job.folder, f"examples-{job.split}-{job.seed}.safetensors"))
    measured: dict[str, float] = {}
    if job.budgets is not None:
        budgets = Budgets.model_validate(job.budgets)
        measured = budgets.measure(spec, widest(tasks), job.device)
    return {**identity, "measured": measured, **run}


def _best_rate(
    job: Job, spec: Any, training: Any, tasks: list[Any], report: Any
) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """The run at the learning rate of the lowest loss: see `_train_at`.

    A rate at which training diverges is no choice; Diverged if there is no other.
    """
    from archsearch.training import Diverged

    found: list[tuple[dict[str, Any], Any, dict[str, Any]]] = []
    losses: dict[float, float | None] = {}
    for lr in training.rates:
        try:
            found.append(_train_at(lr, job, spec, training, tasks, report))
            losses[lr] = found[-1][0]["loss"]
        except Diverged:
            losses[lr] = None
            if not found and lr == training.rates[-1]:
                raise
    run, first, examples = min(found, key=lambda made: made[0]["loss"])
    took = spent(made[0] for made in found)
    return {**run, "losses_by_lr": [*losses.items()], **took}, first, examples


def spent(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What runs took together."""
    listed = [*runs]
    return {key: round(sum(run[key] for run in listed), 3) for key in SPENT}


def _train_at(
    lr: float, job: Job, spec: Any, training: Any, tasks: list[Any], report: Any
) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """What one learning rate gives on every task, the first outcome, all examples' metrics."""
    from archsearch.training import train

    entries: dict[str, Any] = {}
    examples: dict[str, Any] = {}
    first: Any = None
    paused: dict[str, Any] = {}
    for task in tasks:
        outcome = train(
            spec, task, training, seed=job.seed, lr=lr, split=job.split, device=job.device,
            report=lambda step, loss, name=task.name: report(Progress(job, name, step, loss)),
            checkpoint=Path(job.folder, f"{task.name}-{lr:g}-{job.seed}.checkpoint"),
            pause=job.pause,
        )  # fmt: skip
        first = first or outcome
        paused |= {"paused": True} if outcome.paused else {}
        measured = outcome.evaluation.examples.items()
        examples |= {f"{task.name}/{name}": values for name, values in measured}
        entries[task.name] = {
            "loss": outcome.evaluation.loss,
            "score": outcome.score,
            "metrics": outcome.evaluation.metrics,
            "curve": outcome.curve,
            "rungs": outcome.rungs,
            "seconds": round(outcome.seconds, 3),
            "tokens": outcome.tokens,
            "flops": outcome.flops(spec, task),
        }
    loss = sum(e["loss"] for e in entries.values()) / len(entries)
    return (
        {"lr": lr, "loss": loss, **spent(entries.values()), "tasks": entries, **paused},
        first,
        examples,
    )


def save_tensors(tensors: dict[str, Any], path: Path) -> None:
    """Tensors by name as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    with replacing(path) as partial:
        save_file({name: x.cpu().contiguous() for name, x in tensors.items()}, partial)
