"""ListOps: nested lists of digits under operators, reduced to one digit.   N sequences, T time."""

import functools
import random
import sys
from collections.abc import Callable
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from archsearch.ends import Classes, Ends, Tokens
from archsearch.tasks import cache, synthetic
from archsearch.tasks.classification import Classification
from archsearch.tasks.synthetic import belongs
from archsearch.tasks.task import Purpose, TaskError, stream

SPLITS: tuple[Purpose, ...] = ("train", "val", "test")
PAD = 0
DIGITS = range(1, 11)  # the ids of 0 to 9
OPERATORS = range(11, 15)  # the ids of MIN, MAX, MED and SM
CLOSE = 15
NEST = 0.25  # how often an argument is an expression of its own
HELD_OUT = 512  # expressions of val, and of test: a standard error of .02 in accuracy
CHUNK = 1024  # drawn between two looks at what is still missing
TRIES = 1000  # for each expression, before a grammar is said to have too few of them


class ListOps(Classification, frozen=True):
    """What does [MAX 2 9 [MIN 4 7 ] 0 ] come to?

    ListOps (Nangia and Bowman 2018, arXiv 1804.06028) in the grammar of Long Range Arena (Tay et
    al. 2021, arXiv 2011.04006; code google-research/long-range-arena cd31e5c): an operator takes 2
    to `args` arguments, each of them an expression of its own with probability 1/4, else one of ten
    digits; at `depth` all are digits. MIN, MAX, MED (the median, rounded down) and SM (the sum
    modulo 10) are as frequent. Tokens are the operators, digits and "]": 15 ids, and one that fills
    up shorter expressions at their end.

    The published setting is `depth: 10, args: 10, shortest: 501, longest: 1999, train: 96000`; it
    takes minutes to draw, once on a machine. As there, no expression comes twice. Unlike there, a
    hash of an expression tells its split, where the published code goes by the order of a Python
    set.

    Who knows the outermost operator alone guesses best in 36.7% of the published setting, where
    Transformers were reported at 36.4%: that rule is the floor.
    """

    type: Literal["listops"] = "listops"
    depth: int = Field(default=4, ge=2, le=50, description="Levels of lists and digits, at most.")
    args: int = Field(default=4, ge=2, description="Arguments of an operator, at most.")
    shortest: int = Field(
        default=8, ge=4, description="Tokens of the shortest: an operator has two, a digit one."
    )
    longest: int = Field(
        default=48, ge=4, description="Tokens of the longest, to which all are filled up."
    )
    train: int = Field(default=7000, ge=1, description="Expressions to train on.")
    batch: int = Field(default=32, ge=1, description="Training expressions per step.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        most = _longest(self.depth, self.args)
        if self.shortest > min(self.longest, most):
            raise ValueError(
                f"no expression has {self.shortest} tokens at least (`shortest`) and "
                f"{self.longest} at most (`longest`): depth {self.depth} with {self.args} args "
                f"reaches {most}"
            )
        return self

    @property
    def ends(self) -> Ends:
        return Ends(Tokens(CLOSE + 1, pad=PAD), Classes(self.classes))

    @property
    def classes(self) -> int:
        return 10

    def examples(self, purpose: Purpose) -> tuple[Tensor, Tensor]:
        sets = _sets(self.depth, self.args, self.shortest, self.longest, self.train)
        return sets[purpose]

    def rules(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"class given the root operator": lambda inputs: inputs[:, 0]} | super().rules()


@functools.lru_cache(maxsize=8)
def _sets(
    depth: int, args: int, shortest: int, longest: int, train: int
) -> dict[Purpose, tuple[Tensor, Tensor]]:
    """(ids, classes) by split, ids in uint8; drawn once, and kept."""
    asked = [depth, args, shortest, longest, train]
    identity = {"asked": asked, "code": cache.code(sys.modules[__name__], synthetic)}
    kept = cache.arrays("listops", identity, lambda: _drawn(depth, args, shortest, longest, train))
    return dict(zip(SPLITS, zip(kept[::2], kept[1::2], strict=True), strict=True))


def _drawn(depth: int, args: int, shortest: int, longest: int, train: int) -> list[Tensor]:
    """Ids and classes of each split, drawn in one stream until each has what it needs."""
    missing: dict[Purpose, int] = {"train": train, "val": HELD_OUT, "test": HELD_OUT}
    found: dict[Purpose, list[tuple[Tensor, Tensor]]] = {split: [] for split in missing}
    grammar = f"listops/{depth}/{args}/{shortest}/{longest}"
    rng = random.Random(stream("val", grammar).initial_seed())
    seen: set[bytes] = set()
    while any(missing.values()):
        drawn = _distinct(rng, depth, args, (shortest, longest), seen)
        padded = [list(row) + [PAD] * (longest - len(row)) for row in drawn]
        ids, classes = torch.tensor(padded, dtype=torch.uint8), torch.tensor([*drawn.values()])
        for split in missing:
            mine = belongs(ids, split)
            found[split].append((ids[mine][: missing[split]], classes[mine][: missing[split]]))
            missing[split] -= len(found[split][-1][0])
    return [torch.cat(column) for split in SPLITS for column in zip(*found[split], strict=True)]


def _distinct(
    rng: random.Random, depth: int, args: int, bounds: tuple[int, int], seen: set[bytes]
) -> dict[bytes, int]:
    """Expressions not seen before, and their values."""
    drawn: dict[bytes, int] = {}
    for _ in range(TRIES * CHUNK):
        ids = bytearray()
        value = _expression(rng, depth - 1, args, bounds[1], ids)
        row = bytes(ids)
        if bounds[0] <= len(row) <= bounds[1] and row not in seen:
            seen.add(row)
            drawn[row] = value
            if len(drawn) == CHUNK:
                return drawn
    raise TaskError(
        f"listops: of {TRIES * CHUNK} expressions of depth {depth} and {args} args, "
        f"{CHUNK - len(drawn)} of {CHUNK} wanted were of other than {bounds[0]} to {bounds[1]} "
        "tokens, or known. Raise `depth` or `args`, widen `shortest` to `longest`, or lower `train`"
    )


def _expression(rng: random.Random, below: int, args: int, most: int, ids: bytearray) -> int:
    """Appends an operator, its arguments and "]"; gives the value.

    One that grows beyond the most is left unfinished: it is thrown away. Draws are of `random`
    alone, which is the same in every version of Python.
    """
    operator = int(rng.random() * len(OPERATORS))
    ids.append(OPERATORS[operator])
    values = []
    for _ in range(2 + int(rng.random() * (args - 1))):
        if len(ids) > most:
            break
        if below > 1 and rng.random() < NEST:
            values.append(_expression(rng, below - 1, args, most, ids))
        else:
            values.append(int(rng.random() * 10))
            ids.append(DIGITS[values[-1]])
    ids.append(CLOSE)
    return _reduced(operator, values)


def _reduced(operator: int, values: list[int]) -> int:
    if operator == 3 or not values:  # none: an expression left unfinished
        return sum(values) % 10
    ordered, n = sorted(values), len(values)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) // 2
    return (ordered[0], ordered[-1], middle)[operator]


def _longest(depth: int, args: int) -> int:
    """Tokens of an expression whose arguments are all lists, down to digits at `depth`."""
    tokens = 1
    for _ in range(depth - 1):
        tokens = 2 + args * tokens
    return tokens
