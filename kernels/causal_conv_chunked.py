"""causal_conv as W shifted multiply-adds over a tile of steps, on any device PyTorch has.

On (B, T, D) that moves less memory than a convolution, which wants (B, D, T). A tile is small
enough to be in a cache still for the next of its passes; its past are the inputs before it. Weights
are used as (W, D): a row runs along the channels, as the inputs do.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .interface import NAMESPACE, accumulation_dtype, register_flops

TILE = 1 << 19  # numbers, 2 MiB of float32; below it dispatch costs more than the cache saves


def _rows(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(D, W) -> (W, D), the present step's first."""
    return weight.to(dtype).mT.flip(0).contiguous()


def _reads(T: int, W: int) -> list[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
    """What i steps back means, i < W: (steps of y, of x), and (steps of y, of the past)."""
    inputs = [(slice(i, T), slice(0, max(T - i, 0))) for i in range(W)]
    pasts = [(slice(0, min(i, T)), slice(W - 1 - i, W - 1 - i + min(i, T))) for i in range(W)]
    return list(zip(range(W), inputs, pasts, strict=True))


def _tiles(x: Tensor, past: Tensor | None, W: int) -> Iterator[tuple[slice, Tensor | None]]:
    """Steps in order, and the W - 1 inputs before them; None where these are zeros."""
    B, T, D = x.shape
    steps = max(W, TILE // (B * D))
    for start in range(0, T, steps):
        yield slice(start, min(start + steps, T)), x[:, start - W + 1 : start] if start else past


def _filter(x: Tensor, past: Tensor | None, rows: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
    """The sum before the activation, into y; all but bias are of the dtype it is summed in."""
    if bias is None:
        torch.mul(x, rows[0], out=y)
    else:
        torch.addcmul(bias.to(x.dtype), x, rows[0], out=y)
    for i, (to, of), (early, of_past) in _reads(x.shape[1], len(rows))[1:]:
        y[:, to].addcmul_(x[:, of], rows[i])
        if past is not None:
            y[:, early].addcmul_(past[:, of_past], rows[i])
    return y


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
    past = None if initial_state is None else initial_state.to(dtype).mT
    rows, y = _rows(weight, dtype), x.new_empty(x.shape, dtype=dtype)
    sums = torch.empty_like(y) if keep and activation == "silu" else y.new_empty(0)
    for span, before in _tiles(x, past, W):
        before = None if before is None else before.to(dtype)
        Y = sums[:, span] if sums.numel() else y[:, span]
        _filter(x[:, span].to(dtype), before, rows, bias, Y)
        if activation == "silu":
            torch.ops.aten.silu.out(Y, out=y[:, span])
    last, kept = x.new_zeros(x.shape[0], x.shape[2], W - 1), min(T, W - 1)
    last[:, :, W - 1 - kept :] = x[:, T - kept :].mT
    if initial_state is not None:
        last[:, :, : W - 1 - kept] = initial_state[:, :, kept:]
    return y.to(x.dtype), last, sums


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
    """Gradients to x, weight, bias (empty without one) and the initial state."""
    (T, W), dtype = (x.shape[1], weight.shape[1]), accumulation_dtype(x)
    rows, dx = _rows(weight, dtype), x.new_empty(x.shape, dtype=dtype)
    past = None if initial_state is None else initial_state.to(dtype).mT
    d_past, d_rows = dx.new_zeros(len(x), W - 1, x.shape[2]), torch.zeros_like(rows)
    d_bias = x.new_empty(0) if bias is None else torch.zeros_like(rows[0])
    for span, before in _tiles(x, past, W):
        before = None if before is None else before.to(dtype)
        X, g = x[:, span].to(dtype), dy[:, span].to(dtype)
        if sums.numel():
            g = torch.ops.aten.silu_backward(g, sums[:, span])
        d_now = torch.mul(g, rows[0], out=dx[:, span])
        d_before = dx[:, span.start - W + 1 : span.start] if span.start else d_past
        for i, (to, of), (early, of_past) in _reads(X.shape[1], W):
            if i:
                d_now[:, of].addcmul_(g[:, to], rows[i])
            d_rows[i] += (g[:, to] * X[:, of]).sum((0, 1))
            if before is not None:
                d_before[:, of_past].addcmul_(g[:, early], rows[i])
                d_rows[i] += (g[:, early] * before[:, of_past]).sum((0, 1))
        if bias is not None:
            d_bias += g.sum((0, 1))
    kept = min(T, W - 1)  # of the final state, what came with x; the rest was in the past
    d_past[:, kept:] += dstate[:, :, : W - 1 - kept].mT
    dx[:, T - kept :] += dstate[:, :, W - 1 - kept :].mT
    d_weight = d_rows.flip(0).mT.to(weight.dtype, memory_format=torch.contiguous_format)
    d_bias = d_bias if bias is None else d_bias.to(bias.dtype)
    return dx.to(x.dtype), d_weight, d_bias, d_past.mT.contiguous()


@causal_conv_chunked.register_fake
def _(x, weight, bias, activation, initial_state, keep):
    shape = x.shape if keep and activation == "silu" else 0
    sums = x.new_empty(shape, dtype=accumulation_dtype(x))
    return x.new_empty(x.shape), x.new_empty(x.shape[0], x.shape[2], weight.shape[1] - 1), sums


@_causal_conv_backward.register_fake
def _(dy, dstate, sums, x, weight, bias, initial_state):
    d_bias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    d_initial = dstate.new_empty(dstate.shape, dtype=accumulation_dtype(x))
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
