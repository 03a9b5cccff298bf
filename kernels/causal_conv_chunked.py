"""causal_conv as W shifted multiply-adds over a tile of steps, on any device PyTorch has.

On (B, T, D) that moves less memory than a convolution, which wants (B, D, T). A tile is small
enough to be in a cache still for the next of its passes. It reads its neighbours' steps where they
lie, W - 1 before its own and, for the gradient to x, W - 1 behind; only what the first tile reads
before its own is not in x. Weights are used as (W, D): a row runs along the channels, as the inputs
do.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .interface import NAMESPACE, accumulation_dtype, register_flops

TILE = 1 << 18  # numbers, a MiB of float32: below it dispatch costs more than the cache saves
GPU_TILE = 1 << 22

Rows = tuple[Tensor, ...]


def _rows(weight: Tensor, dtype: torch.dtype) -> Rows:
    """(D, W) -> W times (D,), the present step's first."""
    return weight.to(dtype).mT.contiguous().unbind()[::-1]


def _tiles(x: Tensor, W: int) -> Iterator[tuple[slice, slice, slice]]:
    """A tile's steps, those with the W - 1 before them, those with the W - 1 behind them."""
    B, T, D = x.shape
    steps = max(W, (TILE if x.is_cpu else GPU_TILE) // (B * D))
    for start in range(0, T, steps):
        stop = min(start + steps, T)
        yield slice(start, stop), slice(max(0, start - W + 1), stop), slice(start, stop + W - 1)


def _reads(steps: int, read: int, W: int) -> Iterator[tuple[int, slice, slice]]:
    """What i steps back means, i < W, to a tile of so many steps that reads so many: of both."""
    for i in range(W):
        missing = min(steps, max(0, i - (read - steps)))  # of the first tile
        yield i, slice(missing, steps), slice(read - steps - i + missing, read - i)


def _early(T: int, W: int) -> list[tuple[int, slice, slice]]:
    """What i steps back means to the first steps, 0 < i < W: steps of y, of the past."""
    return [(i, slice(min(i, T)), slice(W - 1 - i, W - 1 - i + min(i, T))) for i in range(1, W)]


def _filter(x: Tensor, rows: Rows, bias: Tensor | None, y: Tensor) -> None:
    """The sum before the activation, into y; all but bias are of the dtype it is summed in."""
    for i, to, of in _reads(y.shape[1], x.shape[1], len(rows)):
        if i:
            y[:, to].addcmul_(x[:, of], rows[i])
        elif bias is None:
            torch.mul(x[:, of], rows[0], out=y)
        else:
            torch.addcmul(bias.to(x.dtype), x[:, of], rows[0], out=y)


@torch.library.custom_op(f"{NAMESPACE}::causal_conv_chunked", mutates_args=())
def causal_conv_chunked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Y, the last W - 1 inputs, and the sums before an activation if they are to be kept."""
    (T, W), dtype = (x.shape[1], weight.shape[1]), accumulation_dtype(x)
    rows, y = _rows(weight, dtype), x.new_empty(x.shape, dtype=dtype)
    sums = torch.empty_like(y) if keep and activation == "silu" else y.new_empty(0)
    for span, since, _ in _tiles(x, W):
        Y = sums[:, span] if sums.numel() else y[:, span]
        _filter(x[:, since].to(dtype), rows, bias, Y)
        if initial_state is not None and not span.start:
            for i, early, of_past in _early(Y.shape[1], W):
                Y[:, early].addcmul_(initial_state.to(dtype).mT[:, of_past], rows[i])
        if activation == "silu":
            torch.ops.aten.silu.out(Y, out=y[:, span])
    last = x[:, max(0, T - W + 1) :].mT.clone(memory_format=torch.contiguous_format)
    if T < W - 1:
        before = x.new_zeros(*last.shape[:2], W - 1) if initial_state is None else initial_state
        last = torch.cat((before[:, :, T:].to(x.dtype), last), 2)
    return y.to(x.dtype), last, sums


def _tile_backward(
    g: Tensor, x: Tensor, rows: Rows, dx: Tensor, dots: Sequence[Tensor], room: Tensor
) -> None:
    """Gradients to a tile's inputs, into dx, and to the rows, and a bias if any, into dots.

    g is that to the sums, of the W - 1 steps behind too. The products with x are formed in room.
    The two loops read different things: one after the other they fit a cache, as one they do not.
    """
    steps, behind, W = dx.shape[1], g.shape[1], len(rows)
    torch.mul(g[:, :steps], rows[0], out=dx)
    for i in range(1, min(W, behind)):
        dx[:, : behind - i].addcmul_(g[:, i : steps + i], rows[i])
    for i, to, of in _reads(steps, x.shape[1], W):
        product = room[: dx[:, to].numel()].view_as(dx[:, to])
        torch.sum(torch.mul(g[:, to], x[:, of], out=product), (0, 1), out=dots[i])
    if len(dots) > W:
        torch.sum(g[:, :steps], (0, 1), out=dots[W])


@torch.library.custom_op(f"{NAMESPACE}::causal_conv_chunked_backward", mutates_args=())
def _causal_conv_backward(
    dy: Tensor,
    dstate: Tensor,
    sums: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, weight, bias and the initial state; the last two are empty without one."""
    (T, W), dtype = (x.shape[1], weight.shape[1]), accumulation_dtype(x)
    rows, dx = _rows(weight, dtype), x.new_empty(x.shape, dtype=dtype)
    tiles, g = list(_tiles(x, W)), dx
    dots = dx.new_empty(len(tiles), W + (bias is not None), x.shape[2])
    room = dx.new_empty(dx[:, tiles[0][0]].numel() if tiles else 0)
    for (span, since, until), dots_of in zip(tiles[::-1], dots.unbind(), strict=True):
        g = dy[:, until].to(dtype)
        if sums.numel():
            g = torch.ops.aten.silu_backward(g, sums[:, until])
        _tile_backward(g, x[:, since].to(dtype), rows, dx[:, span], dots_of.unbind(), room)
    dots, d_past, kept = dots.sum(0), dx.new_empty(0), min(T, W - 1)
    dx[:, T - kept :].add_(dstate[:, :, W - 1 - kept :].mT)
    if initial_state is not None:
        d_past = F.pad(dstate[:, :, : W - 1 - kept].to(dtype), (kept, 0))
        for i, early, of_past in _early(T, W):  # g is of the first steps
            d_past.mT[:, of_past].addcmul_(g[:, early], rows[i])
            dots[i] += (g[:, early] * initial_state.to(dtype).mT[:, of_past]).sum((0, 1))
    d_weight = dots[:W].flip(0).mT.to(weight.dtype, memory_format=torch.contiguous_format)
    d_bias = x.new_empty(0) if bias is None else dots[W].to(bias.dtype, copy=True)
    return dx.to(x.dtype), d_weight, d_bias, d_past


@causal_conv_chunked.register_fake
def _(x, weight, bias, activation, initial_state, keep):
    shape = x.shape if keep and activation == "silu" else 0
    sums = x.new_empty(shape, dtype=accumulation_dtype(x))
    return x.new_empty(x.shape), x.new_empty(x.shape[0], x.shape[2], weight.shape[1] - 1), sums


@_causal_conv_backward.register_fake
def _(dy, dstate, sums, x, weight, bias, initial_state):
    d_bias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    d_initial = x.new_empty(
        0 if initial_state is None else dstate.shape, dtype=accumulation_dtype(x)
    )
    return x.new_empty(x.shape), weight.new_empty(weight.shape), d_bias, d_initial


def _save(ctx, inputs, output) -> None:
    x, weight, bias, _, initial_state, _ = inputs
    ctx.save_for_backward(output[2], x, weight, bias, initial_state)


def _differentiate(ctx, dy: Tensor, dstate: Tensor, _: Tensor | None):
    saved = ctx.saved_tensors  # once: activation checkpointing gives them out no second time
    bias, initial_state = saved[3:]
    dx, d_weight, d_bias, d_initial = _causal_conv_backward(dy, dstate, *saved)
    return (
        dx,
        d_weight,
        None if bias is None else d_bias,
        None,
        None if initial_state is None else d_initial.to(initial_state.dtype),
        None,
    )


causal_conv_chunked.register_autograd(_differentiate, setup_context=_save)


def _forward_flops(x, weight, *_, **__) -> int:
    """2 B T D W: a multiply-add per weight; bias and activation are left out."""
    B, T, D = x
    return 2 * B * T * D * weight[1]


def _backward_flops(dy, dstate, sums, x, weight, *_, **__) -> int:
    """4 B T D W, a pass for x and one for weight."""
    return 2 * _forward_flops(x, weight)


register_flops("causal_conv_chunked", _forward_flops)
register_flops("causal_conv_chunked_backward", _backward_flops)
