"""Budgets: what a candidate may cost, known before it is trained.

    budgets:
      parameters:      {max: 400k}
      flops_per_token: {max: 1.5M, context: 256}            forward pass
      state:           {max: 640KiB, context: 4096}         of one sequence after `context` tokens
      train_memory:    {max: 600MiB, batch: 32, length: 256}

All of them for the largest vocabulary among the tasks. Counts take k, M, G, T (powers of 1000);
bytes take B, KiB, MiB, GiB (powers of 1024) or kB, MB, GB (of 1000).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic

from archsearch.costs import forward_flops, parameters, state_bytes, train_memory
from archsearch.spec import ModelSpec
from archsearch.validation import Frozen, Positive, told

COUNT = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def quantity(units: dict[str, int]) -> Callable[[Any], Any]:
    """A reader of numbers with a unit, such as 400k or 600MiB."""

    def read(value: Any) -> Any:
        if isinstance(value, str):
            match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", value)
            if not match or match[2] not in units or match[1].count(".") > 1 or match[1] == ".":
                names = ", ".join(unit for unit in units if unit)
                raise ValueError(f"got {value!r}; must be a number with a unit of {names}")
            return round(float(match[1]) * units[match[2]])
        return value

    return read


def _written(units: dict[str, int]) -> pydantic.WithJsonSchema:
    """The JSON Schema of a quantity as it stands in a file."""
    told = "a number with a unit of " + ", ".join(unit for unit in units if unit)
    form = rf"^([0-9]+\.?[0-9]*|\.[0-9]+)\s*({'|'.join(units)})$"
    text = {"type": "string", "pattern": form, "patternErrorMessage": told}
    return pydantic.WithJsonSchema({"anyOf": [text, {"type": "integer", "minimum": 1}]})


Count = Annotated[
    int,
    pydantic.BeforeValidator(quantity(COUNT)),
    pydantic.Field(ge=1),
    _written(COUNT),
]
Bytes = Annotated[
    int,
    pydantic.BeforeValidator(quantity(BYTES)),
    pydantic.Field(ge=1),
    _written(BYTES),
]


MOST = "a candidate over it is never trained; null only records the cost"


class Parameters(Frozen):
    """Trainable numbers of the model."""

    max: Annotated[Count | None, told(MOST)] = None

    def measure(self, spec: ModelSpec, vocab: int) -> int:
        return parameters(spec, vocab=vocab)


class FlopsPerToken(Frozen):
    """Forward FLOPs per token at a context."""

    max: Annotated[Count | None, told(MOST)] = None
    context: Annotated[Positive, told("tokens of the sequence")] = 256

    def measure(self, spec: ModelSpec, vocab: int) -> int:
        total = forward_flops(spec, batch=1, seq_len=self.context, vocab=vocab)
        return round(total / self.context)


class StateBytes(Frozen):
    """Bytes that decoding carries for one sequence after `context` tokens."""

    max: Annotated[Bytes | None, told(MOST)] = None
    context: Annotated[Positive, told("tokens seen before")] = 4096

    def measure(self, spec: ModelSpec, vocab: int) -> int:
        return state_bytes(spec, batch=1, seq_len=self.context, vocab=vocab)


class TrainMemory(Frozen):
    """Peak bytes of an AdamW step at a batch and length."""

    max: Annotated[Bytes | None, told(MOST)] = None
    batch: Annotated[Positive, told("sequences of a step")] = 32
    length: Annotated[Positive, told("tokens of a sequence")] = 256

    def measure(self, spec: ModelSpec, vocab: int) -> int:
        return train_memory(spec, batch=self.batch, seq_len=self.length, vocab=vocab)


Budget = Parameters | FlopsPerToken | StateBytes | TrainMemory


@dataclass(frozen=True)
class Excess:
    """A budget that a candidate breaks."""

    budget: str
    cost: int
    max: int

    @property
    def ratio(self) -> float:
        """How far over, as a fraction of what is allowed."""
        return self.cost / self.max - 1


class Budgets(Frozen):
    """What is measured of every candidate; without `max` a cost is only recorded."""

    parameters: Parameters = Parameters()
    flops_per_token: FlopsPerToken = FlopsPerToken()
    state: StateBytes = StateBytes()
    train_memory: TrainMemory = TrainMemory()

    def items(self) -> Iterator[tuple[str, Budget]]:
        """Every budget by name, cheapest to measure first."""
        return ((name, getattr(self, name)) for name in type(self).model_fields)

    def screen(self, spec: ModelSpec, vocab: int) -> tuple[dict[str, int], Excess | None]:
        """The costs by name, and the first limit broken; what is dearer is then not traced."""
        costs: dict[str, int] = {}
        for name, budget in self.items():
            costs[name] = budget.measure(spec, vocab)
            if budget.max is not None and costs[name] > budget.max:
                return costs, Excess(name, costs[name], budget.max)
        return costs, None
