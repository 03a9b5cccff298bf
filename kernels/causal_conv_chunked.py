"""causal_conv as W shifted multiply-adds over all steps at once, on any device PyTorch has.

On (B, T, D) that moves less memory than a convolution, which wants (B, D, T). Weights are used as
(W, D): a row runs along the channels, as the inputs do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .interface import NAMESPACE, accumulation_dtype, register_flops


def _with_past(x: Tensor, W: int, initial_state: Tensor | None) -> Tensor:
    """The inputs and the W - 1 before them, (B, W - 1 + T, D)."""
    if initial_state is None:
        return F.pad(x, (0, 0, W - 1, 0))
    return torch.cat([initial_state.to(x.dtype).mT, x], 1)


def _filter(padded: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The sum before the activation, (B, T, D), in the dtype it is summed in."""
    W, dtype = weight.shape[1], accumulation_dtype(padded)
    padded, rows = padded.to(dtype), weight.to(dtype).mT.contiguous()
    T = padded.shape[1] - W + 1
    y = padded[:, :T] * rows[0]
    for w in range(1, W):
        y.addcmul_(padded[:, w : w + T], rows[w])
    return y if bias is None else y.add_(bias.to(dtype))


@torch.library.custom_op(f"{NAMESPACE}::causal_conv_chunked", mutates_args=())
def causal_conv_chunked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Y and the last W - 1 inputs."""
    padded = _with_past(x, weight.shape[1], initial_state)
    y = _filter(padded, weight, bias)
    y = F.silu(y, inplace=True) if activation == "silu" else y
    return y.to(x.dtype), padded[:, x.shape[1] :].mT.clone(memory_format=torch.contiguous_format)


@torch.library.custom_op(f"{NAMESPACE}::causal_conv_chunked_backward", mutates_args=())
def _causal_conv_backward(
    dy: Tensor,
    dstate: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, weight, bias (empty without one) and the initial state."""
    (D, W), dtype = weight.shape, accumulation_dtype(x)
    T = x.shape[1]
    padded = _with_past(x, W, initial_state)
    dy = dy.to(dtype)
    if activation == "silu":
        dy = torch.ops.aten.silu_backward(dy, _filter(padded, weight, bias))
    d_padded = dy.new_zeros(padded.shape)
    d_padded[:, T:] = dstate.mT
    rows, d_rows = weight.to(dtype).mT.contiguous(), dy.new_empty(W, D)
    for w in range(W):
        d_padded[:, w : w + T].addcmul_(dy, rows[w])
        torch.sum(dy * padded[:, w : w + T], (0, 1), out=d_rows[w])
    d_bias = x.new_empty(0) if bias is None else dy.sum((0, 1)).to(bias.dtype)
    dx = d_padded[:, W - 1 :].to(x.dtype, copy=True, memory_format=torch.contiguous_format)
    d_initial = d_padded[:, : W - 1].mT.clone(memory_format=torch.contiguous_format)
    d_weight = d_rows.mT.to(weight.dtype, memory_format=torch.contiguous_format)
    return dx, d_weight, d_bias, d_initial


@causal_conv_chunked.register_fake
def _(x, weight, bias, activation, initial_state):
    return x.new_empty(x.shape), x.new_empty(x.shape[0], x.shape[2], weight.shape[1] - 1)


@_causal_conv_backward.register_fake
def _(dy, dstate, x, weight, bias, activation, initial_state):
    d_bias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    d_initial = dstate.new_empty(dstate.shape, dtype=accumulation_dtype(x))
    return x.new_empty(x.shape), weight.new_empty(weight.shape), d_bias, d_initial


def _save(ctx, inputs, output) -> None:
    x, weight, bias, ctx.activation, initial_state = inputs
    ctx.save_for_backward(x, weight, bias, initial_state)


def _differentiate(ctx, dy: Tensor, dstate: Tensor):
    x, weight, bias, initial_state = ctx.saved_tensors
    dx, d_weight, d_bias, d_initial = _causal_conv_backward(
        dy, dstate, x, weight, bias, ctx.activation, initial_state
    )
    return (
        dx,
        d_weight,
        None if bias is None else d_bias,
        None,
        None if initial_state is None else d_initial.to(initial_state.dtype),
    )


causal_conv_chunked.register_autograd(_differentiate, setup_context=_save)


def _forward_flops(x, weight, *_, **__) -> int:
    """2 B T D W: a multiply-add per weight; bias and activation are left out."""
    B, T, D = x
    return 2 * B * T * D * weight[1]


def _backward_flops(dy, dstate, x, weight, bias, activation, *_, **__) -> int:
    """4 B T D W, a pass for x and one for weight; SiLU needs the sum again, 6 B T D W."""
    return (2 if activation is None else 3) * _forward_flops(x, weight)


register_flops("causal_conv_chunked", _forward_flops)
register_flops("causal_conv_chunked_backward", _backward_flops)
