"""The recipe of a study: one for all its architectures, so that none is trained better by accident.

How long is told in one of four ways; the last three make architectures equal in what they read, in
what they compute, or in time:

    steps: 150      tokens: 2M      flops: 3T      seconds: 10
"""

import math
from typing import Annotated, Any, Literal

import pydantic

from archsearch.quantities import Count
from archsearch.validation import Frozen, Positive, told

STEPS = 150
Seconds = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
RATE = {"type": "number", "exclusiveMinimum": 0}
SHARE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
RATES = {"anyOf": [RATE, {"type": "array", "items": RATE, "minItems": 1, "uniqueItems": True}]}


def _rates(value: Any) -> Any:
    """One learning rate, or several; a ValueError in one sentence, where a union would have two."""
    several = value if isinstance(value, list) else [value]
    good = [r for r in several if isinstance(r, int | float) and 0 < r < math.inf and r is not True]
    if not several or len(good) < len(several) or len({*good}) < len(good):
        raise ValueError(f"got {value!r}; must be a number above 0, or a list of different ones")
    return value


def _rungs(value: Any) -> Any:
    """Steps and shares of all; whole numbers stay what they are."""
    rungs = value if isinstance(value, list) else [None]
    whole = [type(r) is int and r > 0 for r in rungs]
    if not all(w or (type(r) is float and 0 < r < 1) for w, r in zip(whole, rungs, strict=True)):
        raise ValueError(f"got {value!r}; must be a list of whole steps, or of shares below 1")
    return value


def _curriculum(value: Any) -> Any:
    """Shares of a task's length, rising."""
    shares = value if isinstance(value, list) else [None]
    good = [share for share in shares if type(share) is float and 0 < share < 1]
    if shares != sorted({*good}):
        raise ValueError(f"got {value!r}; must be a list of shares of a length that rise, below 1")
    return value


class Training(Frozen):
    """How every architecture of a study is trained."""

    steps: Annotated[Positive | None, told(f"optimiser steps on each task; {STEPS} by default")] = (
        None
    )
    tokens: Annotated[Count | None, told("instead of steps: positions read on each task")] = None
    flops: Annotated[Count | None, told("instead: FLOPs of training steps on each task")] = None
    seconds: Annotated[Seconds | None, told("instead: time on each task, never repeated")] = None
    lr: Annotated[
        int | float | list[int | float],
        pydantic.PlainValidator(_rates),
        pydantic.WithJsonSchema(RATES),
        told("learning rate; of several, each candidate has the one with its lowest loss"),
    ] = 8e-3
    optimizer: Annotated[
        Literal["adamw", "muon", "sgd"],
        told("muon for the matrices of linear maps, AdamW for the rest; sgd with momentum .9"),
    ] = "adamw"
    schedule: Annotated[
        Literal["linear", "cosine", "wsd", "constant"],
        told("after the warm-up: down to 0; wsd stays up until the last fifth"),
    ] = "linear"
    warmup: Annotated[int, pydantic.Field(ge=0)] = pydantic.Field(default=20, description="steps")
    weight_decay: Annotated[
        float, pydantic.Field(ge=0, allow_inf_nan=False, description="of the matrices alone")
    ] = 0.01
    clip: Annotated[float, pydantic.Field(gt=0)] = pydantic.Field(
        default=1.0, description="gradient norm"
    )
    dropout: Annotated[
        float, pydantic.Field(ge=0, lt=1), told("of what a layer adds to the residual stream")
    ] = 0.0
    precision: Annotated[
        Literal["float32", "bfloat16"], told("of the passes; weights stay in float32")
    ] = "float32"
    accumulate: Annotated[Positive, told("pieces of a batch, one after the other")] = 1
    recompute: Annotated[
        bool, told("keep no activations of mixers and MLPs, compute them again: less memory")
    ] = False
    curriculum: Annotated[
        list[float],
        pydantic.PlainValidator(_curriculum),
        pydantic.WithJsonSchema({"type": "array", "items": SHARE, "uniqueItems": True}),
        told("shorter sequences first: shares of a task's length, then all of it, in equal stages"),
    ] = []
    rungs: Annotated[
        list[int | float],
        pydantic.PlainValidator(_rungs),
        pydantic.WithJsonSchema({"type": "array", "items": RATE}),
        told("before the end, where the validation loss is measured: steps, or shares below 1"),
    ] = []

    @pydantic.model_validator(mode="before")
    @classmethod
    def _told_once(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        amounts = {key: data.get(key) for key in ("steps", "tokens", "flops", "seconds")}
        said = {key: value for key, value in amounts.items() if value is not None}
        if len(said) > 1:
            raise ValueError(f"{said}: say how long in one way")
        return data if said else {**data, "steps": STEPS}

    @pydantic.model_validator(mode="after")
    def _rungs_within(self) -> "Training":
        if self.steps is None and any(rung >= 1 for rung in self.rungs):
            raise ValueError(f"rungs {self.rungs}: without steps they are shares, below 1")
        at = self.rung_steps(self.steps) if self.steps else self.rungs
        if [*at] != sorted(set(at)) or any(rung > (self.steps or 1) for rung in at):
            raise ValueError(f"rungs {self.rungs} must rise and end by steps ({self.steps})")
        return self

    @pydantic.model_validator(mode="after")
    def _steps_for_all(self) -> "Training":
        if self.steps is not None and self.steps <= len(self.curriculum):
            stages = len(self.curriculum) + 1
            raise ValueError(
                f"a curriculum of {stages} stages needs as many steps, not {self.steps}"
            )
        return self

    @property
    def rates(self) -> list[float]:
        """The learning rates to choose from."""
        return self.lr if isinstance(self.lr, list) else [self.lr]

    @property
    def amount(self) -> str:
        """How long, in words."""
        if self.steps is not None:
            return f"{self.steps:,} steps"
        if self.tokens is not None:
            return f"{self.tokens:,} tokens"
        return f"{self.flops:,} FLOPs" if self.flops is not None else f"{self.seconds:g} s"

    def rung_steps(self, steps: int) -> list[int]:
        """The rungs as steps, of so many in all."""
        return [max(1, round(rung if rung >= 1 else rung * steps)) for rung in self.rungs]

    @property
    def pauses(self) -> list[float]:
        """Where a candidate can wait: the rungs before the end, as shares of a training."""
        steps = self.steps or 1
        marks = self.rung_steps(self.steps) if self.steps else self.rungs
        return [mark / steps for mark in marks if mark < steps]

    def factor(self, step: int, done: float, warm: float) -> float:
        """On the learning rate at a step: up over the warm-up, then as the schedule says.

        Args:
            step: from 0 on.
            done: the share of training behind it.
            warm: the share that was behind it when the warm-up ended.
        """
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        left = (1 - done) / (1 - warm) if warm < 1 else 0.0
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * (1 - left))) / 2
        if self.schedule == "wsd":
            return min(1.0, 5 * left)
        return left if self.schedule == "linear" else 1.0
