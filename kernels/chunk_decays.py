"""Decays inside chunks of C steps: P_ij = exp(g_{j+1} + ... + g_i) for i >= j, 0 otherwise.

Every exponent is formed as a sum of log-decays, never as a difference of two cumulative sums. So no
factor exceeds 1, no digit is lost to cancellation, and g = -inf (forget everything) is exact. The
gradient of g_t is formed the same way: the sum of all that crosses step t, and nothing else.
Exponentials are taken to base 2: on CPU exp is up to 200 times slower where its result underflows.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)

Crossing = list[tuple[Tensor, Tensor]]
Decays = tuple[Crossing, tuple[Tensor, Tensor]]


def sum_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """sum_to_size, one axis at a time: on CPU 10 times as fast as two that do not touch."""
    for axis, size in enumerate(shape):
        x = x if x.shape[axis] == size else x.sum(axis, keepdim=True)
    return x


# ---- a decay per head: the products q_i . k_j are weighted


def spans(g: Tensor) -> Tensor:
    """exp(g_{j+1} + ... + g_i) at row j + 1, column i, for j = 0 (before the chunk), 1, ..., C.

    (..., C, 1) -> (..., C + 1, C). Row 0 is read, the last column below it write, and all below
    it P transposed: in this order the sums run along rows.
    """
    C = g.shape[-2]
    sums = (LOG2_E * g).mT.expand(*g.shape[:-2], C + 1, C).triu().cumsum(-1)
    return sums.exp2_().triu_(-1)


def spans_backward(dP: Tensor, d_since: Tensor, d_until: Tensor, shape: Sequence[int]) -> Tensor:
    """Gradient to g: of all exponents in spans, of this shape, the sum of those that cross a step.

    dP (transposed), d_since and d_until are the gradients of the exponents of P, read and write.
    """
    C = shape[-1]
    exponents = dP.new_empty(*dP.shape[:-2], C + 1, C)
    exponents[..., :1, :] = d_since.sum(-1)[..., None, :]
    exponents[..., 1:, :] = dP
    exponents[..., 1:, -1:] += d_until.sum(-1, keepdim=True)
    return (sum_to(exponents, shape) @ dP.new_ones(C, C).tril()).triu_().sum(-2)[..., None]


# ---- a decay per channel: inside the product, halves of halves


def _halves(x: Tensor, h: int) -> tuple[Tensor, ...]:
    """Views of the lower and the upper h steps of every 2h: (..., C, X) -> (N C / 2h, h, X)."""
    return x.view(-1, 2, h, x.shape[-1]).unbind(1)


def _crossing(A: Tensor, h: int) -> Tensor:
    """View of A (..., C, C) where upper halves read from lower ones: (N, C / 2h, h, h)."""
    C = A.shape[-1]
    strides = (C * C, 2 * h * (C + 1), C, 1)
    return A.as_strided((A.numel() // C**2, C // (2 * h), h, h), strides, h * C)


def _levels(C: int) -> list[int]:
    return [1 << level for level in range(C.bit_length() - 1)]  # h = 1, 2, 4, ..., C / 2


def _exp2(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format).exp2_()  # of a view it is slow


def decays(g: Tensor) -> Decays:
    """Decays across the middle of every 2h steps, h = 1, 2, ..., C / 2; then (read, write).

    Blocks of h steps know, for each of their steps, the sum of g since their start and until their
    end; two blocks become one by adding the neighbour's total. The upper one's readers and the
    lower one's writers meet at their common border: this is all that crosses it.
    """
    since, until = LOG2_E * g, torch.zeros_like(g)
    crossing = []
    for h in _levels(g.shape[-2]):
        (low_since, up_since), (low_until, _) = _halves(since, h), _halves(until, h)
        crossing.append((_exp2(up_since), _exp2(low_until)))
        low_until += up_since[:, -1:]
        up_since += low_since[:, -1:]
    return crossing, (since.exp2_(), until.exp2_())


def products(q: Tensor, k: Tensor, crossing: Crossing) -> Tensor:
    """A_ij = q_i . P_ij k_j for decays as wide as q: (..., C, C), zero above the diagonal.

    Halving makes matmuls of it: P_ij splits at the border between the halves that i and j are in.
    """
    A = q.new_zeros(*q.shape[:-1], q.shape[-2])
    A.diagonal(dim1=-2, dim2=-1).copy_((q * k).sum(-1))
    for h, (up, low) in zip(_levels(q.shape[-2]), crossing, strict=True):
        (_, q_up), (k_low, _) = _halves(q, h), _halves(k, h)
        block = _crossing(A, h)
        block.copy_(_inner(q_up * up, k_low * low).view_as(block))
    return A


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Products a @ b.mT, by sums where they are so small that a matmul costs more than it does."""
    if a.shape[-2] > 4:
        return a @ b.mT
    return (a[..., :, None, :] * b[..., None, :, :]).sum(-1)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Products a @ b, likewise."""
    if a.shape[-1] > 2:
        return a @ b
    return (a[..., None] * b[..., None, :, :]).sum(-2)


def products_backward(
    q: Tensor, k: Tensor, crossing: Crossing, dA: Tensor, d_since: Tensor, d_until: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to q, k and g. What dA holds above the diagonal is not read.

    d_since and d_until, overwritten, are the gradients of the chunk's own two sums in decays.
    """
    diagonal = dA.diagonal(dim1=-2, dim2=-1)[..., None]
    dq, dk = diagonal * k, diagonal * q
    exponents = []
    for h, (up, low) in zip(_levels(q.shape[-2]), crossing, strict=True):
        (_, q_up), (k_low, _) = _halves(q, h), _halves(k, h)
        (_, dq_up), (dk_low, _) = _halves(dq, h), _halves(dk, h)
        block = _crossing(dA, h).reshape(-1, h, h)
        d_readers = _outer(block, k_low * low).mul_(up)
        d_writers = _outer(block.mT, q_up * up).mul_(low)
        dq_up += d_readers
        dk_low += d_writers
        exponents.append((h, d_readers.mul_(q_up), d_writers.mul_(k_low)))
    for h, d_up, d_low in reversed(exponents):  # decays backwards: a block becomes two
        (low_since, up_since), (low_until, _) = _halves(d_since, h), _halves(d_until, h)
        low_total, up_total = up_since.sum(1), low_until.sum(1)
        low_since[:, -1] += low_total
        up_since[:, -1] += up_total
        up_since += d_up
        low_until += d_low
    return dq, dk, d_since
