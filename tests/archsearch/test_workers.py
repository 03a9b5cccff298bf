"""Workers: results as trained here, and every way to die reported with its cause."""

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch

from archsearch import reference, task
from archsearch.pool import Pool
from archsearch.provenance import score_key, source_versions
from archsearch.standalone.weights import load_weights
from archsearch.training import Diverged, Training, train
from archsearch.workers import Done, Failed, Job, Message, Progress, run_job

TASK = task("in_context_recall", vocab=8, length=16, batch=4, extrapolate=[2])
SPEC = reference("retnet", dim=16, layers=1)
FOLDER = tempfile.TemporaryDirectory()  # of what jobs leave beside their results
TRAINING = Training(steps=12, rungs=[6])


def job(number: int = 0, steps: int = 12, weights: Path | None = None, **changes) -> Job:
    settings = TRAINING.model_copy(update={"steps": steps})
    fields = {"spec": SPEC.model_dump(mode="json"), "tasks": [TASK.model_dump(mode="json")]}
    return Job(
        number=number, training=settings.model_dump(mode="json"), seed=0, split="val",
        device="cpu", folder=FOLDER.name, weights=str(weights) if weights else None, **(fields | changes),
    )  # fmt: skip


def drain(pool: Pool) -> list[Done | Failed]:
    """The ends of all jobs in a pool."""
    ends, until = [], time.monotonic() + 120
    while pool.running:
        assert time.monotonic() < until
        ends += [m for m in pool.messages(1.0) if isinstance(m, Done | Failed)]
    return ends


def test_a_job_gives_what_training_here_gives(tmp_path: Path) -> None:
    words: list[Progress] = []
    end = run_job(job(weights=tmp_path / "x" / "model.safetensors"), words.append)
    assert isinstance(end, Done)
    here = train(SPEC, TASK, TRAINING, seed=0)
    entry = end.run["tasks"]["in_context_recall"]
    assert entry["loss"] == here.evaluation.loss == end.run["loss"]
    assert entry["curve"] == here.curve
    assert end.run["key"] == score_key(SPEC, [TASK], TRAINING, 0, "val")
    assert end.run["sources"] == source_versions(SPEC)
    assert [w.step for w in words] == [1, 10, 12]
    examples = load_weights(Path(FOLDER.name, "examples-val-0.safetensors"))
    for name, values in here.evaluation.examples.items():
        assert torch.equal(examples[f"in_context_recall/{name}"], values)
    weights = load_weights(tmp_path / "x" / "model.safetensors")
    for name, parameter in here.model.named_parameters():
        assert (weights[name] == parameter).all()
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Diverged("nan"), "diverged"),
        (MemoryError("full"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), "out_of_memory"),
        (RuntimeError("shapes"), "error"),
        (ZeroDivisionError("x"), "error"),
    ],
)
def test_causes(error: Exception, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_, **__):
        raise error

    monkeypatch.setattr("archsearch.training.train", broken)
    end = run_job(job())
    assert isinstance(end, Failed)
    assert end.cause == cause
    assert str(error) in end.message


@pytest.mark.slow
def test_the_death_of_a_worker_takes_its_job_and_nothing_else() -> None:
    with Pool(2) as pool:
        pool.submit(job(0, steps=100_000))
        pool.submit(job(1))
        assert not pool.has_room
        heard: list[Message] = []  # the other job may well be done before this one's first word
        while not any(isinstance(m, Progress) and m.job.number == 0 for m in heard):
            heard += pool.messages(60)
        os.kill(pool.workers[0].process.pid, signal.SIGKILL)
        ends = {
            end.job.number: end for end in [*heard, *drain(pool)] if isinstance(end, Done | Failed)
        }
        assert isinstance(ends[0], Failed) and ends[0].cause == "died"
        assert "SIGKILL; the system may have run out of memory" in ends[0].message
        assert isinstance(ends[1], Done)
        pool.submit(job(2))  # a new worker takes the dead one's place
        (end,) = drain(pool)
        assert isinstance(end, Done) and end.job.number == 2
        children = [w.process for w in pool.workers]
    assert not any(child.is_alive() for child in children)
