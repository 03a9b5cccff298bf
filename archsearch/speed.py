"""How fast an architecture is and what it holds, on a device where nothing else of a study runs.

    train     B T tokens / s      s: of a real step, its data and its optimiser included
    decode    B tokens / s        s: of one more token for each of B sequences, after T
    prefill   s                   of reading one sequence, at each of CONTEXTS
    token     s                   of one more token after it

B, T: batch and length of the first task. Times are medians with quartiles (measuring.py), of new
weights in eval mode and float32, those of training by the study's own recipe.

All but training's share an allowance of seconds. What does not fit in it is left out, as is a
context that a block cannot have, and says why.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from archsearch import measuring, memory
from archsearch.blocks import State
from archsearch.ends import Ends
from archsearch.measuring import FEWEST, Time
from archsearch.model import Model
from archsearch.plugins import load_file
from archsearch.recipe import Training
from archsearch.spec import ModelSpec
from archsearch.tasks import TASKS
from archsearch.tasks.task import Task, stream
from archsearch.training import Run
from archsearch.workers import Job

CONTEXTS = (256, 1024, 4096)
ALLOWANCE = 3.0
"""Seconds for one architecture, at least."""
SHARE = 0.02
"""Of the seconds that its training took, where that is more."""
SLICE = 0.1
"""Of what is left of the allowance: after it no further round of one thing begins."""


class LeftOut(Exception):
    """A thing was not measured; the message says why."""


@dataclass(frozen=True)
class SpeedJob(Job):
    """A trained architecture to measure on the first of its tasks, with an allowance of seconds."""

    seconds: float = ALLOWANCE

    def work(self, report: Callable[..., None]) -> dict[str, Any]:
        """What is `speed` in metrics.json."""
        for path in self.blocks:
            load_file(path)
        spec, data = ModelSpec.model_validate(self.spec), self.tasks[0]
        task = TASKS[data["type"]].model_validate(data)
        training = Training.model_validate(self.training)
        return speed(spec, task, training, device=self.device, seconds=self.seconds)


def allowance(seconds: float) -> float:
    """For measuring an architecture whose training took so many seconds."""
    return max(ALLOWANCE, SHARE * seconds)


def speed(
    spec: ModelSpec, task: Task, training: Training, *, device: str, seconds: float
) -> dict[str, Any]:
    """All of it as plain data; times in seconds.

    `train_memory` is that of an AdamW step in float32: the allocator's peak where the device has
    one that keeps it, else traced.
    """
    machine, began = _machine(device), time.perf_counter()
    with torch.random.fork_rng():
        batch, length = task.sample(task.batch, stream("init", 0))[0].shape[:2]
        size = {"batch": batch, "seq_len": length}
        peak = measuring.train_memory(spec, task.ends, **size, device=device)
        traced = None if peak is not None else memory.train_memory(spec, task.ends, **size).peak
        train, model = step_time(spec, task, training, device, seconds * SLICE)
        reader = Reader(model.eval(), task.ends, device, seconds)
        with torch.inference_mode():
            decode, contexts = reader.decode(batch, length), reader.contexts()
    return {
        "batch": batch,
        "length": length,
        "precision": training.precision,
        "train": _rate(train, batch * length),
        "decode": decode,
        "contexts": contexts,
        "train_memory": peak if traced is None else traced,
        "memory_by": "allocator" if traced is None else "trace",
        "machine": machine,
        "seconds": round(time.perf_counter() - began, 3),
    }


def step_time(
    spec: ModelSpec, task: Task, training: Training, device: str, limit: float
) -> tuple[Time, Model]:
    """The time of a training step, and the model."""
    whole = training.model_copy(update={"curriculum": []})  # its steps are of the full length
    run = Run(spec, task, whole, training.rates[0], 0, device)

    def step() -> None:
        run.gradients()
        run.optimizer.step(0.0)  # the rate is 0: a step beyond the recipe's last never diverges

    return measuring.timed(step, device, limit=limit), run.model


class Reader:
    """Times a model that reads, until its seconds are over."""

    def __init__(self, model: Model, ends: Ends, device: str, seconds: float) -> None:
        self.model, self.ends, self.device = model, ends, device
        self.seconds, self.end = seconds, time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.end - time.perf_counter())

    def decode(self, batch: int, length: int) -> dict[str, Any]:
        """One more token for each sequence of a batch, or why there is none."""
        if not self.model.streams:
            return {"left_out": "it sees the future: it reads whole sequences and does not decode"}
        try:
            inputs, state, _ = self._read(batch, length)
            return _rate(self._token(inputs, state), batch)
        except LeftOut as reason:
            return {"left_out": str(reason)}

    def contexts(self) -> list[dict[str, Any]]:
        """Prefill and one more token at each context, as far as it goes."""
        found: list[dict[str, Any]] = []
        before: tuple[int, float] | None = None
        for context in CONTEXTS:
            entry: dict[str, Any] = {"context": context}
            try:
                self._afford(context, before)
                inputs, state, first = self._read(1, context)
                before = context, first
                if state is not None:
                    entry["state_bytes"] = measuring.held(state)
                    entry["token"] = asdict(self._token(inputs, state))
                entry["prefill"] = asdict(self._time(lambda x=inputs: self.model(x), first))
            except LeftOut as reason:
                entry["left_out"] = str(reason)
            found.append(entry)
        return found

    def _afford(self, context: int, before: tuple[int, float] | None) -> None:
        """LeftOut where one pass may already take more than is left: of attention the square."""
        if before is None:
            return
        shorter, seconds = before
        times = (context / shorter) ** 2
        if seconds * times > self.left:
            raise LeftOut(
                f"{shorter} tokens took {seconds:.2g} s and these may take {times:g} times that; "
                + self._rest()
            )

    def _read(self, batch: int, context: int) -> tuple[Tensor, State, float]:
        """Inputs, the state after them, and the seconds that reading them took once."""
        inputs, after = self.ends.inputs(batch, context).to(self.device), []
        try:
            seconds = self._spent(lambda: after.append(self.model(inputs)[1]))
        except ValueError as error:  # a block of fixed length, and a longer context
            raise LeftOut(str(error)) from None
        except (RuntimeError, MemoryError) as error:
            if not _is_full(error):
                raise
            raise LeftOut("out of memory") from None
        return inputs, after[0], seconds

    def _token(self, inputs: Tensor, state: State) -> Time:
        steps, n = measuring.decoding(self.model, inputs, state)
        return self._time(steps, self._spent(steps)).each(n)

    def _time(self, call: Callable[[], object], first: float) -> Time:
        """Of a call that took `first` seconds once; LeftOut if the fewest rounds do not fit."""
        if self.left / FEWEST < first < self.left:  # it may have been a cold one
            first = self._spent(call)
        if first * FEWEST > self.left:
            told = f"one pass takes {first:.2g} s and {FEWEST} are needed"
            raise LeftOut(f"{told}; {self._rest()}")
        return measuring.timed(call, self.device, warm_up=0, limit=self.left * SLICE)

    def _spent(self, call: Callable[[], object]) -> float:
        """Seconds of the allowance that one call took, whoever else had the machine."""
        began = time.perf_counter()
        measuring.once(call, self.device)
        return time.perf_counter() - began

    def _rest(self) -> str:
        return f"{self.left:.2g} s of {self.seconds:.2g} s are left"


def _rate(time: Time, tokens: int) -> dict[str, Any]:
    """A time and the tokens per second of its median."""
    return asdict(time) | {"tokens_per_second": tokens / time.median}


def _is_full(error: Exception) -> bool:
    """Whether memory was not enough, by the ways of a GPU, of Python and of a CPU's allocator."""
    kinds = torch.OutOfMemoryError, MemoryError
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _machine(device: str) -> dict[str, Any]:
    """What the times depend on beside the architecture."""
    kind = torch.device(device)
    return {
        "device": device,
        "accelerator": torch.cuda.get_device_name(kind) if kind.type == "cuda" else None,
        "cpu": f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "clock": "process time" if measuring.runs_alone(device) else "wall clock",
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
    }
