"""Budgets: what a candidate may cost, known before it is trained.

    budgets:
      parameters:      {max: 400k}                          embedding: false leaves those out
      flops_per_token: {max: 1.5M, context: 256}            forward pass
      train_flops:     {max: 5M, context: 256}              per token, forward and backward
      decode_flops:    {max: 1M, context: 4096}             of one token after `context` tokens
      bytes_moved:     {max: 100MiB, context: 256}          forward pass over one sequence
      state:           {max: 640KiB, context: 4096}         of one sequence after `context` tokens
      train_memory:    {max: 600MiB, batch: 32, length: 256}
      decode_latency:  {max: 4ms, context: 1024}            timed on the study's device
      train_time:      {max: 200ms, batch: 32, length: 256} timed, of one step

All of them with the largest ends among the tasks (a vocabulary, mostly). A candidate over a budget
is never trained, but with `soft: true` it is, and the sampler is told how far it is over. The units
are those of quantities.py.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch

from archsearch import measuring
from archsearch.counting import Counts
from archsearch.ends import Ends
from archsearch.memory import train_memory
from archsearch.quantities import Bytes, Count, Seconds
from archsearch.spec import ModelSpec
from archsearch.validation import Frozen, Positive, told

MOST = "a candidate over it is never trained, unless soft; null only records the cost"


class Budget(Frozen):
    """A cost with its context and perhaps a limit; a subclass says which cost."""

    max: Any = None
    soft: Annotated[bool, told("train it all the same, and tell the sampler")] = False
    timed: ClassVar[bool] = False

    def cost(self, counts: Counts, device: str) -> float:
        """The cost of a candidate; only a timed one looks at the device."""
        raise NotImplementedError

    def measure(self, spec: ModelSpec, ends: Ends, device: str) -> float | None:
        """The same of the model as built, by what it really holds; None where nothing tells."""


class Parameters(Budget):
    """Trainable numbers of the model. Measured: those of the model as built."""

    max: Annotated[Count | None, told(MOST)] = None
    embedding: Annotated[bool, told("count the embedding too")] = True

    def cost(self, counts: Counts, device: str) -> int:
        return counts.parameters - (0 if self.embedding else counts.embedding_parameters)

    def measure(self, spec: ModelSpec, ends: Ends, device: str) -> int:
        embedding = 0 if self.embedding else ends.parameters(spec.dim)
        return measuring.parameters(spec, ends) - embedding


class FlopsPerToken(Budget):
    """Forward FLOPs per token at a context."""

    max: Annotated[Count | None, told(MOST)] = None
    context: Annotated[Positive, told("tokens of the sequence")] = 256

    def cost(self, counts: Counts, device: str) -> int:
        return round(counts.forward(1, self.context).flops / self.context)


class TrainFlops(Budget):
    """FLOPs of a training step, forward and backward, per token at a context."""

    max: Annotated[Count | None, told(MOST)] = None
    context: Annotated[Positive, told("tokens of the sequence")] = 256

    def cost(self, counts: Counts, device: str) -> int:
        return round(counts.train(1, self.context).flops / self.context)


class DecodeFlops(Budget):
    """FLOPs of one token after `context` tokens; 0 of a model that cannot decode."""

    max: Annotated[Count | None, told(MOST)] = None
    context: Annotated[Positive, told("tokens seen before")] = 4096

    def cost(self, counts: Counts, device: str) -> int:
        step = counts.decode(1, self.context)
        return step.flops if step is not None else 0


class BytesMoved(Budget):
    """Bytes that the operators of a forward pass over one sequence read and write, float32."""

    max: Annotated[Bytes | None, told(MOST)] = None
    context: Annotated[Positive, told("tokens of the sequence")] = 256

    def cost(self, counts: Counts, device: str) -> int:
        return counts.forward(1, self.context).bytes_moved


class StateBytes(Budget):
    """Bytes that decoding carries for one sequence after `context` tokens.

    Measured: those of the tensors of a real state on the study's device.
    """

    max: Annotated[Bytes | None, told(MOST)] = None
    context: Annotated[Positive, told("tokens seen before")] = 4096
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], told("of the activations")] = (
        "float32"
    )

    def cost(self, counts: Counts, device: str) -> int:
        kind = getattr(torch, self.dtype)
        if not counts.streams:
            return 0
        counts = counts if counts.dtype == kind else Counts(counts.spec, counts.ends, kind)
        return counts.state_bytes(1, self.context)

    def measure(self, spec: ModelSpec, ends: Ends, device: str) -> int:
        kind = getattr(torch, self.dtype)
        return measuring.state_bytes(spec, ends, context=self.context, dtype=kind, device=device)


class TrainMemory(Budget):
    """Peak bytes of an AdamW step at a batch and length.

    Measured on a GPU only: its allocator keeps the peak, a CPU's does not.
    """

    max: Annotated[Bytes | None, told(MOST)] = None
    batch: Annotated[Positive, told("sequences of a step")] = 32
    length: Annotated[Positive, told("tokens of a sequence")] = 256

    def cost(self, counts: Counts, device: str) -> int:
        size = {"batch": self.batch, "seq_len": self.length}
        return train_memory(counts.spec, counts.ends, **size).peak

    def measure(self, spec: ModelSpec, ends: Ends, device: str) -> int | None:
        size = {"batch": self.batch, "seq_len": self.length}
        return measuring.train_memory(spec, ends, **size, device=device)


class DecodeLatency(Budget):
    """Seconds for one token of one sequence after `context` tokens; 0 if it cannot decode."""

    max: Annotated[Seconds | None, told(MOST)] = None
    context: Annotated[Positive, told("tokens seen before")] = 1024
    measured: Annotated[Literal[True], told("timed on the device of the study")] = True
    timed: ClassVar[bool] = True

    def cost(self, counts: Counts, device: str) -> float:
        time = measuring.decode_latency(
            counts.spec, counts.ends, context=self.context, device=device
        )
        return time.median if time is not None else 0.0


class TrainTime(Budget):
    """Seconds of one AdamW step at a batch and length."""

    max: Annotated[Seconds | None, told(MOST)] = None
    batch: Annotated[Positive, told("sequences of a step")] = 32
    length: Annotated[Positive, told("tokens of a sequence")] = 256
    measured: Annotated[Literal[True], told("timed on the device of the study")] = True
    timed: ClassVar[bool] = True

    def cost(self, counts: Counts, device: str) -> float:
        size = {"batch": self.batch, "seq_len": self.length}
        return measuring.train_time(counts.spec, counts.ends, **size, device=device).median


@dataclass(frozen=True)
class Excess:
    """A budget that a candidate breaks; `reason` says why where it has no cost at all."""

    budget: str
    cost: float
    max: float
    reason: str | None = None

    @property
    def ratio(self) -> float:
        """How far over, as a fraction of what is allowed; 1 where there is no cost."""
        return 1.0 if self.reason else self.cost / self.max - 1

    def __str__(self) -> str:
        told = self.reason or f"is {self.cost}, max is {self.max}"
        return f"{self.budget} {told}"


@dataclass
class Screening:
    """What a screen found.

    Attributes:
        costs: by name, as far as they were counted.
        excess: the first hard limit broken, behind which nothing was counted.
        soft: cost / max - 1 for every soft limit: positive where it is broken.
    """

    costs: dict[str, float] = field(default_factory=dict)
    excess: Excess | None = None
    soft: dict[str, float] = field(default_factory=dict)


class Budgets(Frozen):
    """What is counted of every candidate, cheapest first; without `max` it is only recorded.

    The first three always, the others where a space names them.
    """

    parameters: Annotated[Parameters, told("trainable numbers")] = Parameters()
    flops_per_token: Annotated[FlopsPerToken, told("forward FLOPs per token")] = FlopsPerToken()
    state: Annotated[StateBytes, told("bytes carried from token to token")] = StateBytes()
    decode_flops: Annotated[DecodeFlops | None, told("FLOPs of one more token")] = None
    bytes_moved: Annotated[BytesMoved | None, told("bytes read and written")] = None
    train_flops: Annotated[TrainFlops | None, told("training FLOPs per token")] = None
    train_memory: Annotated[TrainMemory | None, told("peak bytes of a step")] = None
    decode_latency: Annotated[DecodeLatency | None, told("seconds of one more token")] = None
    train_time: Annotated[TrainTime | None, told("seconds of a step")] = None

    def items(self) -> Iterator[tuple[str, Budget]]:
        """Those that there are, by name."""
        named = ((name, getattr(self, name)) for name in type(self).model_fields)
        return ((name, budget) for name, budget in named if budget is not None)

    def screen(self, spec: ModelSpec, ends: Ends, device: str | None = None) -> Screening:
        """The costs up to the first hard limit broken; timed ones only on a device given."""
        counts, found = Counts(spec, ends), Screening()
        for name, budget in self.items():
            if budget.timed and device is None:
                continue
            cost, reason = math.inf, None
            try:
                cost = found.costs[name] = budget.cost(counts, device or "cpu")
            except ValueError as error:  # a block of fixed length, and a longer context
                reason = f"cannot be counted: {error}"
            if budget.max is None:
                continue
            excess = Excess(name, cost, budget.max, reason)
            if budget.soft:
                found.soft[name] = excess.ratio
            elif excess.ratio > 0:
                found.excess = excess
                break
        return found

    def measure(self, spec: ModelSpec, ends: Ends, device: str) -> dict[str, float]:
        """What can be measured of the limits, on the model as built: see each budget.

        The timed ones are measured when they are screened, and not again.
        """
        limits = ((name, budget) for name, budget in self.items() if budget.max is not None)
        found: dict[str, float] = {}
        for name, budget in limits:
            with contextlib.suppress(ValueError):  # a soft limit, of what cannot be counted either
                if (value := budget.measure(spec, ends, device)) is not None:
                    found[name] = value
        return found

    def breaches(self, measured: dict[str, float]) -> list[Excess]:
        """The limits, soft ones too, that measured costs are over."""
        limits = ((name, getattr(self, name), value) for name, value in measured.items())
        found = (Excess(name, value, budget.max) for name, budget, value in limits)
        return [excess for excess in found if excess.ratio > 0]
