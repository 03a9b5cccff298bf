"""Rows sorted by group, each times its group's matrix.

    y_n = W_{g(n)} x_n        g(n) the first group with n < ends_g

N rows, I width in, O width out, G groups; W_g is (O, I), as in torch.nn.functional.linear. A group
may be empty. Shapes do not depend on how the rows fall into groups, and a row costs the product
with one matrix, however many there are. The borders are read on the host.

(torch.nn.functional.grouped_mm refuses float64 and widths off a multiple of 16 bytes.)

Source: the products of a mixture of experts without capacity, Gale et al. 2023 (MegaBlocks).
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from .interface import (
    NAMESPACE,
    Arguments,
    register_flops,
    register_workspace,
    without_autocast,
)


def grouped_mm_reference(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The line above, a matrix for every row, by ordinary autograd: the specification."""
    rows = torch.arange(len(x), device=x.device)
    return torch.einsum("ni,noi->no", x, weight[torch.searchsorted(ends, rows, right=True)])


def grouped_mm(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply every row with the matrix of its group; gradients flow to x and weight.

    Under autocast the product is taken in autocast's dtype, as PyTorch's own products are.

    Args:
        x: rows, those of a group beside each other, (N, I).
        weight: a matrix for each group, (G, O, I).
        ends: the row behind the last of each group, (G,), integers that rise to N.

    Returns:
        y, (N, O).

    Raises:
        ValueError: a shape, dtype or device is not as said above, or the ends are not.
    """
    x, weight = _autocast(x), _autocast(weight)
    arguments = Arguments("grouped_mm")
    arguments.tensor("x", x, "N I")
    arguments.tensor("weight", weight, "G O I")
    if weight.dtype != x.dtype:
        raise arguments.error(f"weight must be of x's dtype, {x.dtype}; got {weight.dtype}")
    if ends.dtype not in (torch.int32, torch.int64) or ends.shape != weight.shape[:1]:
        raise arguments.error(
            f"ends must be {len(weight)} numbers of int32 or int64; got {tuple(ends.shape)} of "
            f"{ends.dtype}"
        )
    return _grouped_mm(x, weight, ends)


def _autocast(z: Tensor) -> Tensor:
    """In autocast's dtype where it is on; float64 stays, as in PyTorch's products."""
    device = z.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return z.to(torch.get_autocast_dtype(device)) if on and z.dtype != torch.float64 else z


def _groups(ends: Tensor, rows: int) -> Iterator[slice]:
    borders = [0, *ends.tolist()]
    if borders != sorted(borders) or borders[-1] != rows:
        raise ValueError(
            f"grouped_mm: ends must rise from 0 or more to N = {rows}; got {borders[1:]}"
        )
    return (slice(a, b) for a, b in pairwise(borders))


@torch.library.custom_op(f"{NAMESPACE}::grouped_mm", mutates_args=())
def _grouped_mm(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    y = x.new_empty(len(x), weight.shape[1])
    with without_autocast(x):
        for rows, W in zip(_groups(ends, len(x)), weight, strict=True):
            torch.mm(x[rows], W.mT, out=y[rows])
    return y


@torch.library.custom_op(f"{NAMESPACE}::grouped_mm_weight", mutates_args=())
def _weight_gradient(dy: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """dW_g, the sum of dy_n x_n^T over the rows of group g, (G, O, I)."""
    dW = x.new_empty(len(ends), dy.shape[1], x.shape[1])
    with without_autocast(x):
        for rows, dW_g in zip(_groups(ends, len(x)), dW, strict=True):
            torch.mm(dy[rows].mT, x[rows], out=dW_g)
    return dW


@_grouped_mm.register_fake
def _(x, weight, ends):
    return x.new_empty(x.shape[0], weight.shape[1])


@_weight_gradient.register_fake
def _(dy, x, ends):
    return x.new_empty(ends.shape[0], dy.shape[1], x.shape[1])


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, dy: Tensor):
    x, weight, ends = ctx.saved_tensors
    dx = _grouped_mm(dy, weight.mT, ends) if ctx.needs_input_grad[0] else None
    dW = _weight_gradient(dy, x, ends) if ctx.needs_input_grad[1] else None
    return dx, dW, None


_grouped_mm.register_autograd(_differentiate, setup_context=_save)


def _flops(x, weight, *_, **__) -> int:
    """2 N O I: each row meets one matrix."""
    return 2 * x[0] * weight[1] * weight[2]


def _weight_flops(dy, x, *_, **__) -> int:
    """2 N O I, each row's outer product."""
    return 2 * dy[0] * dy[1] * x[1]


register_flops("grouped_mm", _flops)
register_flops("grouped_mm_weight", _weight_flops)
# The borders are values, and beside the results nothing is held.
register_workspace("grouped_mm", lambda x, weight, ends: len(x) * weight.shape[1] * x.itemsize)
register_workspace(
    "grouped_mm_weight", lambda dy, x, ends: len(ends) * dy.shape[1] * x.shape[1] * x.itemsize
)
