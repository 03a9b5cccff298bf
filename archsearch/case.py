"""A case of a law: a block, and what it is given."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from archsearch.blocks import Block

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Of what should be equal but for rounding, as a part of the largest value, at least 1.

A wrong block is off by the size of its values; the room of the short types is for gradients, which
add up, and for recurrences, which amplify.
"""


@dataclass(frozen=True)
class Case:
    """A block and what it is given: `make(dim)` builds it, a class or a functools.partial of one.

    `splits` are places at which a sequence is cut; those outside of (0, length) are left out.
    """

    make: Callable[[int], Block]
    dim: int = 16
    batch: int = 2
    length: int = 67
    splits: tuple[int, ...] = (1, 2, 33, 64)
    dtype: torch.dtype = torch.float64
    seed: int = 0

    def __str__(self) -> str:
        return (
            f"{name_of(self.make)}, dim {self.dim}, batch {self.batch}, length {self.length}, "
            f"splits {self.cuts}, {str(self.dtype).removeprefix('torch.')}, seed {self.seed}"
        )

    @property
    def cuts(self) -> list[int]:
        """The splits that lie within the sequence, in order."""
        return sorted({t for t in self.splits if 0 < t < self.length})

    def construct(self) -> Block:
        """The block as it is born; Refused when its constructor refuses the sizes."""
        try:
            return self.make(self.dim)
        except ValueError as error:
            raise Refused(str(error)) from error

    def block(self) -> Block:
        """In evaluation mode, every parameter off its birth value: zeros there hide mistakes."""
        block = self.construct().to(self.dtype).eval()
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return block

    def noise(self, batch: int | None = None, length: int | None = None) -> Tensor:
        """Normal input, (batch, length, dim)."""
        B, T = self.batch if batch is None else batch, self.length if length is None else length
        return torch.randn(B, T, self.dim, dtype=self.dtype)

    def close(self, what: str, a: Any, b: Any) -> None:
        """Broken unless two trees of tensors are equal but for rounding."""
        leaves, others = tensors(a), tensors(b)
        if [x.shape for x in leaves] != [x.shape for x in others]:
            shapes = [[tuple(x.shape) for x in side] for side in (leaves, others)]
            raise Broken(f"{what} have shapes {shapes[0]} and {shapes[1]}")
        for x, y in zip(leaves, others, strict=True):
            if not x.numel():
                continue
            x, y = x.detach().double(), y.detach().double()
            allowed = TOLERANCE[self.dtype] * max(1.0, y.abs().max().item())
            away = (x - y).abs()
            if not away.max() <= allowed:  # a NaN is not close to anything
                raise Broken(f"{what} differ by {largest(away)}; rounding explains {allowed:.1e}")


class Broken(Exception):
    """What a law found, without saying which law or case."""


class Refused(ValueError):
    """A constructor said that it cannot be built in these sizes, as it may."""


def name_of(part: Any) -> str:
    """`retention(heads=2,decay=fixed())`; of a plain value, its text."""
    if not isinstance(part, partial):
        return getattr(part, "name", None) or getattr(part, "__name__", str(part))
    options = ",".join(f"{k}={name_of(v)}" for k, v in part.keywords.items())
    return f"{name_of(part.func)}({options})"


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a state."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def largest(values: Tensor) -> str:
    """The largest value of a tensor and where it stands."""
    flat = int(values.isnan().flatten().int().argmax() if values.isnan().any() else values.argmax())
    at = [int(i) for i in torch.unravel_index(torch.tensor(flat), values.shape)]
    return f"{values.flatten()[flat].item():.1e} at {at}"
