"""One loop for every candidate and every baseline, by one recipe.

The initial weights come from one stream and the training data from another, both derived from the
seed, so all architectures see the same batches and a model's seed never changes its data. A run
that was stopped goes on from its checkpoint to the same weights, bit for bit.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from archsearch.blocks.auxiliary import scaled_losses
from archsearch.counting import Counts
from archsearch.curriculum import lesson_at, lessons, steps_within
from archsearch.durable import is_full, replacing
from archsearch.errors import UserError
from archsearch.model import Model, build
from archsearch.optimizing import Optimizer
from archsearch.provenance import differences, source_versions
from archsearch.recipe import Training
from archsearch.spec import ModelSpec
from archsearch.tasks.task import Evaluation, Split, Task, stream

CURVE_EVERY = 10
"""Steps between two points of a training curve, and between two checks for finite numbers."""
SAVE_EVERY = 60.0
"""Seconds between two checkpoints."""


class Diverged(RuntimeError):
    """The training loss or a gradient left the finite numbers."""


@dataclass(frozen=True)
class Outcome:
    """What training one architecture on one task gave, and what it took.

    `curve` holds (step, training loss), `rungs` (step, validation loss), in the task's unit. Of a
    training that paused, evaluation and score are those at its last rung. `read` counts the batches
    of each shape (B, T).
    """

    evaluation: Evaluation
    score: float
    curve: list[tuple[int, float]]
    rungs: list[tuple[int, float]]
    seconds: float
    read: dict[tuple[int, int], int]
    model: Model
    paused: bool

    @property
    def tokens(self) -> int:
        """The positions read."""
        return sum(b * t * n for (b, t), n in self.read.items())

    def flops(self, spec: ModelSpec, task: Task) -> int:
        """Of the steps of training, without evaluations."""
        counts = Counts(spec, task.ends)
        return sum(counts.train(*shape).flops * n for shape, n in self.read.items())


Report = Callable[[int, float], None]
"""Called with (step, training loss) as training goes."""


def train(
    spec: ModelSpec,
    task: Task,
    training: Training,
    *,
    seed: int,
    lr: float | None = None,
    split: Split = "val",
    device: str = "cpu",
    report: Report = lambda step, loss: None,
    checkpoint: Path | None = None,
    pause: int | None = None,
) -> Outcome:
    """Trains a spec on a task and evaluates it on `split`.

    Args:
        spec: the architecture.
        task: what it learns.
        training: the recipe.
        seed: of its weights and its data.
        lr: the learning rate, the recipe's first if None.
        split: what it is measured on.
        device: where.
        report: hears of the loss.
        checkpoint: a file to save to each minute and to go on from, if it is there.
        pause: the rung, from 0 on, behind which it stops and leaves a checkpoint.

    Raises:
        Diverged: the loss, or a gradient, is not finite.
        UserError: the checkpoint is of other versions of the blocks or kernels.
    """
    with _seeded(seed, device):
        run = Run(spec, task, training, training.rates[0] if lr is None else lr, seed, device)
        if checkpoint is not None and checkpoint.exists():
            run.load(checkpoint)
        with _spoiled(checkpoint):
            evaluation = run.finish(split, report, checkpoint, pause)
        if checkpoint is not None and run.done >= 1:
            checkpoint.unlink(missing_ok=True)
    seconds = run.before + time.monotonic() - run.saved
    score = task.score(evaluation)
    paused = run.done < 1
    return Outcome(evaluation, score, run.curve, run.rungs, seconds, run.read, run.model, paused)


def steps_of(training: Training, spec: ModelSpec, task: Task) -> int | None:
    """How many steps a recipe means for a model of a task; None where only time tells."""
    if training.seconds is not None:
        return None
    if training.steps is not None:
        return training.steps
    drawn = [lesson.sample(task.batch, stream("init", 0)) for lesson in lessons(training, task)]
    read = [inputs.shape[:2] for inputs, _ in drawn]
    if training.tokens is not None:
        return steps_within(training.tokens, [shape.numel() for shape in read])
    assert training.flops is not None
    counts = Counts(spec, task.ends)
    return steps_within(training.flops, [counts.train(*shape).flops for shape in read])


class Run:
    """A training in progress: all that decides how it goes on.

    `elapsed` are seconds within steps, `before` all those until `saved`, the moment of the latest
    checkpoint or of the beginning, `warm` the share of training that was behind it when the warm-up
    ended, `sources` the versions of its blocks and kernels.
    """

    def __init__(
        self, spec: ModelSpec, task: Task, training: Training, lr: float, seed: int, device: str
    ) -> None:
        self.saved = time.monotonic()
        self.task, self.training, self.device = task, training, device
        self.lessons = lessons(training, task)
        self.steps, self.sources = steps_of(training, spec, task), source_versions(spec)
        self.model = build(spec, task.ends).to(device)
        self.model.dropout, self.model.recompute = training.dropout, training.recompute
        self.optimizer = Optimizer(self.model, training, lr)
        self.data = stream("train", f"{seed}/{task.name}")
        self.step, self.elapsed, self.warm, self.before = 0, 0.0, 0.0, 0.0
        self.curve: list[tuple[int, float]] = []
        self.rungs: list[tuple[int, float]] = []
        self.read: dict[tuple[int, int], int] = {}

    @property
    def done(self) -> float:
        """The share of training that is behind it."""
        if self.steps is not None:
            return self.step / self.steps
        assert self.training.seconds is not None
        return self.elapsed / self.training.seconds

    @property
    def lesson(self) -> Task:
        """The task as it is read now."""
        count = len(self.lessons)
        if self.steps is not None:
            return self.lessons[lesson_at(self.step, self.steps, count)]
        return self.lessons[int(self.done * count)]

    def finish(
        self, split: Split, report: Report, checkpoint: Path | None, pause: int | None
    ) -> Evaluation:
        """The steps up to a pause, or all that are left, and the evaluation there."""
        measured = None
        while self.done < 1:
            if pause is not None and len(self.rungs) > pause:
                assert checkpoint is not None, "a pause without a checkpoint is an end"
                self.save(checkpoint)
                return measured or self.evaluate(split)
            self.learn(report)
            measured = self.climb(split)
            if checkpoint is not None and time.monotonic() - self.saved > SAVE_EVERY:
                self.save(checkpoint)
        evaluation = self.evaluate(split)
        self.rungs.append((self.step, evaluation.loss))
        return evaluation

    def evaluate(self, split: Split) -> Evaluation:
        """The model as it is now; Diverged where its loss is no number."""
        evaluation = self.task.evaluate(self.model, split)
        if not math.isfinite(evaluation.loss):
            told = f"{split} loss is {evaluation.loss} after step {self.step}"
            raise Diverged(f"{self.task.name}: {told}")
        return evaluation

    def learn(self, report: Report) -> None:
        """One step of the optimiser."""
        began = time.monotonic()
        factor = self.training.factor(self.step, self.done, self.warm)
        loss, norm = self.gradients()
        self.optimizer.step(factor)
        self.step, self.elapsed = self.step + 1, self.elapsed + time.monotonic() - began
        if self.step == self.training.warmup:
            self.warm = self.done
        if self.step % CURVE_EVERY == 0 or self.step == 1 or self.done >= 1:
            for name, value in (("training loss", loss.item()), ("gradient norm", norm.item())):
                if not math.isfinite(value):
                    raise Diverged(f"{self.task.name}: {name} is {value} at step {self.step}")
            self.curve.append((self.step, loss.item()))
            report(self.step, loss.item())

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Those of one batch, clipped; its loss, and their norm before."""
        inputs, targets = self.lesson.sample(self.task.batch, self.data)
        ends, pieces = self.task.ends, self.training.accumulate
        shape = (inputs.shape[0], inputs.shape[1])
        self.read[shape] = self.read.get(shape, 0) + 1
        half, total = self.training.precision == "bfloat16", torch.zeros((), device=self.device)
        for x, y in zip(inputs.chunk(pieces), targets.chunk(pieces), strict=True):
            with scaled_losses(self.model, len(x) / len(inputs)):
                with torch.autocast(total.device.type, torch.bfloat16, enabled=half):
                    out, _ = self.model(x.to(self.device))
                loss = ends.loss(out.float() if half else out, y.to(self.device))
                if pieces > 1:  # each weighs as much as it has answers
                    loss = loss.nan_to_num() * (ends.scored(y) / ends.scored(targets))
                loss.backward()
            total = total + loss.detach()
        return total, nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)

    def climb(self, split: Split) -> Evaluation | None:
        """Measures the validation loss where a rung is reached before the end."""
        rungs, measured = self.training.rungs, None
        marks = self.training.rung_steps(self.steps) if self.steps else rungs
        at = self.step if self.steps else self.done
        while self.done < 1 and len(self.rungs) < len(rungs) and at >= marks[len(self.rungs)]:
            measured = measured or self.evaluate(split)
            self.rungs.append((self.step, measured.loss))
        return measured

    def save(self, path: Path) -> None:
        """All of it, whole or not at all."""
        now = time.monotonic()
        self.before, self.saved = self.before + now - self.saved, now
        state = {name: getattr(self, name) for name in SAVED} | {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "data": self.data.get_state(),
            "random": _random_states(self.model),
            "sources": self.sources,
        }
        with replacing(path) as partial:
            torch.save(state, partial)

    def load(self, path: Path) -> None:
        """What was saved."""
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if changed := differences(state.get("sources", {}), self.sources):
            raise UserError(
                f"{path}: saved with another version of {', '.join(changed)}; a training by two "
                "versions is one by neither. Go back to that one, or delete the file to begin anew"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.data.set_state(state["data"])
        _set_random_states(self.model, state["random"])
        for name in SAVED:
            setattr(self, name, state[name])


@contextmanager
def _spoiled(checkpoint: Path | None) -> Iterator[None]:
    """Removes a checkpoint when its run ends by an error: it would end so again.

    A run that is stopped, which raises no Exception, goes on from it, as does one that found no
    room to write.
    """
    try:
        yield
    except Exception as error:
        if checkpoint is not None and not is_full(error):
            checkpoint.unlink(missing_ok=True)
        raise


SAVED = ("step", "elapsed", "warm", "curve", "rungs", "read", "before")


@contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """Torch's own generators set by the seed, and put back as they were."""
    kind = torch.device(device)
    devices = [kind] if kind.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(stream("init", seed).initial_seed())
        yield


def _random_states(model: Model) -> list[Tensor]:
    cuda = next(model.parameters()).is_cuda
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if cuda else [])]


def _set_random_states(model: Model, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], next(model.parameters()).device)
