"""Sequences cut into parts of equal length for the programs of a kernel, packed or one a row."""

# Triton compiles what follows; its values are not what the type checker takes them for.
# pyright: reportGeneralTypeIssues=false

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .launch import cdiv


class Parts(NamedTuple):
    """How many there are; each is `steps` long, but for the last of a sequence."""

    steps: int
    number: int
    sequences: int


def parts_of(B: int, T: int, cu_seqlens: Tensor | None, steps: int) -> Parts:
    """The parts of a batch: a packed sequence has one too many at most, and no border is read."""
    if cu_seqlens is None:
        return Parts(steps, B * cdiv(T, steps), B)
    sequences = cu_seqlens.shape[0] - 1
    return Parts(steps, T // steps + sequences, sequences)


@triton.jit
def part_of(p, cu_seqlens, T, sequences, steps):
    """Part p: its sequence, that one's first row and length, and the part's first step in it."""
    if cu_seqlens is None:
        each = tl.cdiv(T, steps)
        n = (p // each).to(tl.int64)
        first = n * T
        length = T
        begin = (p % each) * steps
    else:
        # Sequence n has the parts from c_n // steps + n on; find the last n that starts by p.
        low = p * 0
        high = p * 0 + sequences - 1
        while low < high:
            middle = (low + high + 1) // 2
            started = (tl.load(cu_seqlens + middle) // steps).to(tl.int32) + middle <= p
            low = tl.where(started, middle, low)
            high = tl.where(started, high, middle - 1)
        n = low.to(tl.int64)
        first, length, part = sequence(n, cu_seqlens, T, steps)
        begin = (p - part.to(tl.int32)) * steps
    return n, first, length, begin


@triton.jit
def sequence(n, cu_seqlens, T, steps):
    """Sequence n: its first row, its length, and its first part among all, as part_of counts."""
    first = n * T
    length = T
    part = n * tl.cdiv(T, steps)
    if cu_seqlens is not None:
        first = tl.load(cu_seqlens + n).to(tl.int64)
        length = (tl.load(cu_seqlens + n + 1) - first).to(tl.int32)
        part = first // steps + n
    return first, length, part


@triton.jit
def start_of(x, cu_seqlens, n, first, batch_stride, time_stride):
    """Where sequence n begins in x; packed ones lie in a batch of one."""
    if cu_seqlens is None:
        x += n * batch_stride
    else:
        x += first * time_stride
    return x
