"""What a block is, and how it gets a name in YAML.

A block maps a sequence and a state to a sequence and a state, by one method for training, prefill
and decoding:

    y, state = block(x, state)          x, y (B, T, D), any T >= 1; state None at the start

Letters of this folder: B batch, T time, D model width, H heads, K key width and V value width per
head. The laws that every block obeys (causal, streaming, finite, ...) are tests over the catalogue.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeAlias, TypeVar

from torch import Tensor, nn

State: TypeAlias = Any
"""A tree of tensors that only its block looks into; None at the start of a sequence."""
P = TypeVar("P")
Part: TypeAlias = Callable[..., P]
"""A nested part is handed over as its class, or a functools.partial of it; its owner builds it."""


class Family:
    """A kind of part. Direct subclasses are families, named subclasses of those their members.

    `class Retention(Mixer, name="retention")` enters `Mixer.members["retention"]`: the class is the
    whole registration, and its keyword-only parameters are its schema.
    """

    members: ClassVar[dict[str, type]]
    name: ClassVar[str]

    def __init_subclass__(cls, *, name: str | None = None) -> None:
        super().__init_subclass__()
        if Family in cls.__bases__:
            cls.members = {}
        elif name is not None:
            taken = cls.members.setdefault(name, cls)
            if taken is not cls:
                raise ValueError(
                    f"{cls.__module__}.{cls.__qualname__}: the name {name!r} is taken by "
                    f"{taken.__module__}.{taken.__qualname__}; choose another"
                )
            cls.name = name

    @classmethod
    def canonical(cls, options: dict[str, Any], *sizes: int) -> dict[str, Any]:
        """All options in the one way to say them, of a part that is built with these sizes.

        Of several ways that build the same (names and shapes of weights, their birth) and compute
        and learn the same, one is given: what the other options leave without effect has one value,
        null stands where it means the value that was written, and nested parts are canonical in
        turn. What the constructor refuses stays refused, and nothing is raised here. Counts for the
        class that defines it and not for its subclasses, which may compute something else.
        """
        return options


def canonical(part: Callable[..., P], *sizes: int) -> partial[P]:
    """A part with all its options bound, as its class says them in one way."""
    made = part if isinstance(part, partial) else partial(part)
    cls: Any = made.func
    own = "canonical" in vars(cls)
    return partial(cls, **cls.canonical(made.keywords, *sizes)) if own else made


def null_if(value: Any, meant: Any) -> Any:
    """Of an option where null means `meant`, that value too as null."""
    return None if value == meant else value


def hidden_width(expand: float, dim: int) -> int:
    """The hidden width that `expand` times the model width stands for, one channel at least."""
    return max(1, round(expand * dim))


def exact_expand(expand: float, dim: int) -> float:
    """The quotient of the hidden width and the model width; what is refused stays as it is."""
    return hidden_width(expand, dim) / dim if 0 < expand < math.inf else expand


class Block(nn.Module):
    """A sequence map with a state: forward(x (B, T, D), state) -> (y (B, T, D), state).

    `grows` is True for a block whose state grows with the tokens seen (an attention cache).
    `causal` is False for one whose y_t depends on tokens after t: it takes whole sequences, has no
    state and refuses one. `longest` is the most tokens that a block of fixed length takes.
    """

    grows: bool = False
    causal: bool = True
    longest: int | None = None

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        raise NotImplementedError


class Mixer(Block, Family):
    """A block that mixes information over time. Built as Mixer(dim, **options)."""


class ChannelMixer(Block, Family):
    """A block that works on each token alone (its state is None). Built as (dim, **options)."""


def require_divisor(block: str, argument: str, divisor: int, whole: int, of: str) -> None:
    """Refuses a count that is not positive or does not divide what it splits."""
    if divisor < 1 or whole % divisor:
        legal = [n for n in range(1, whole + 1) if whole % n == 0]
        raise ValueError(
            f"{block}: {argument} ({divisor}) must divide {of} ({whole}); allowed: "
            + ", ".join(map(str, legal))
        )


def require_whole(block: str, state: State) -> None:
    """Refuses to go on from a state: of a block that sees the future."""
    if state is not None:
        raise ValueError(
            f"{block}: sees the future, so it takes whole sequences and goes on from no state"
        )


def require_length(block: str, x: Tensor, longest: int) -> int:
    """The length T of x (B, T, D), refused above the block's longest."""
    if x.shape[1] > longest:
        raise ValueError(f"{block}: takes at most length = {longest} tokens, got {x.shape[1]}")
    return x.shape[1]


def require_positive(block: str, **values: float) -> None:
    """Refuses sizes that are not positive."""
    for argument, value in values.items():
        if not value > 0:
            raise ValueError(f"{block}: {argument} must be positive, got {value}")
