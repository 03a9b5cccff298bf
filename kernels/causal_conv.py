"""Short causal convolution, one filter per channel.

    y_t[d] = act(bias[d] + sum_{w < W} weight[d, w] x_{t-W+1+w}[d])

B batch, T time, D channels, W width. The last weight is the present step's, as in torch.nn.Conv1d;
what lies before the first step is the initial state, or zeros. It looks back only.

Source: the depthwise convolution of Gu and Dao 2023 (Mamba) and Poli et al. 2023 (Hyena).

The chunked form is W shifted multiply-adds over all steps at once: on (B, T, D) that moves less
memory than a convolution, which wants (B, D, T).
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .interface import (
    NAMESPACE,
    Arguments,
    Backend,
    accumulation_dtype,
    over_sequences,
    register_flops,
)

Activation = Literal["silu"]


def causal_conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The line above, one step at a time, by ordinary autograd: the specification."""
    dtype = accumulation_dtype(x)
    W = weight.shape[1]
    past = x.new_zeros(x.shape[0], x.shape[2], W - 1) if initial_state is None else initial_state
    window, weight = past.to(dtype), weight.to(dtype)
    outputs = []
    for x_t in x.to(dtype).unbind(1):
        seen = torch.cat([window, x_t[:, :, None]], 2)  # (B, D, W)
        y_t = (weight * seen).sum(2)
        outputs.append(y_t if bias is None else y_t + bias.to(dtype))
        window = seen[:, :, 1:]
    y = torch.stack(outputs, 1)
    y = y * torch.sigmoid(y) if activation == "silu" else y
    return y.to(x.dtype), window.to(x.dtype)


def _with_past(x: Tensor, W: int, initial_state: Tensor | None) -> Tensor:
    """The inputs and the W - 1 before them, (B, W - 1 + T, D)."""
    if initial_state is None:
        return F.pad(x, (0, 0, W - 1, 0))
    return torch.cat([initial_state.to(x.dtype).mT, x], 1)


def _filter(padded: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The sum before the activation, (B, T, D), in the dtype it is summed in."""
    W, dtype = weight.shape[1], accumulation_dtype(padded)
    padded, weight = padded.to(dtype), weight.to(dtype)
    T = padded.shape[1] - W + 1
    y = padded[:, :T] * weight[:, 0]
    for w in range(1, W):
        y.addcmul_(padded[:, w : w + T], weight[:, w])
    return y if bias is None else y.add_(bias.to(dtype))


@torch.library.custom_op(f"{NAMESPACE}::causal_conv", mutates_args=())
def _causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The shifted form."""
    padded = _with_past(x, weight.shape[1], initial_state)
    y = _filter(padded, weight, bias)
    y = F.silu(y) if activation == "silu" else y
    return y.to(x.dtype), padded[:, x.shape[1] :].mT.clone(memory_format=torch.contiguous_format)


@torch.library.custom_op(f"{NAMESPACE}::causal_conv_backward", mutates_args=())
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
        y = _filter(padded, weight, bias)
        gate = torch.sigmoid(y)
        dy = dy * gate * (1 + y * (1 - gate))
    d_padded = dy.new_zeros(padded.shape)
    d_padded[:, T:] = dstate.mT
    d_weight = dy.new_empty(D, W)
    for w in range(W):
        d_padded[:, w : w + T].addcmul_(dy, weight[:, w].to(dtype))
        d_weight[:, w] = (dy * padded[:, w : w + T]).sum((0, 1))
    d_bias = x.new_empty(0) if bias is None else dy.sum((0, 1)).to(bias.dtype)
    dx = d_padded[:, W - 1 :].to(x.dtype, copy=True, memory_format=torch.contiguous_format)
    d_initial = d_padded[:, : W - 1].mT.clone(memory_format=torch.contiguous_format)
    return dx, d_weight.to(weight.dtype), d_bias, d_initial


@_causal_conv.register_fake
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


_causal_conv.register_autograd(_differentiate, setup_context=_save)


def _forward_flops(x, weight, *_, **__) -> int:
    """2 B T D W: a multiply-add per weight; bias and activation are left out."""
    B, T, D = x
    return 2 * B * T * D * weight[1]


def _backward_flops(dy, dstate, x, weight, bias, activation, *_, **__) -> int:
    """4 B T D W, a pass for x and one for weight; SiLU needs the sum again, 6 B T D W."""
    return (2 if activation is None else 3) * _forward_flops(x, weight)


register_flops("causal_conv", _forward_flops)
register_flops("causal_conv_backward", _backward_flops)


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Convolve every channel with its own filter over the present and the W - 1 steps before.

        y_t[d] = act(bias[d] + sum_{w < W} weight[d, w] x_{t-W+1+w}[d])

    Sums are taken in float32 whatever the inputs' dtype (float64 when x is float64), and gradients
    flow to every tensor, the initial state included, and from the final state.

    Args:
        x: input, (B, T, D), T >= 1.
        weight: filters, (D, W), W >= 1; the last column is the present step's.
        bias: (D,), or None.
        activation: "silu", or None.
        initial_state: the W - 1 inputs before the first, oldest first, (B, D, W - 1); zeros when
            None.
        cu_seqlens: the borders 0 = c_0 <= ... <= c_M = T of M sequences packed into a batch of 1,
            (M + 1,), integers; the states then lead with M. They are read on the host.
        backend: "reference" (step loop), "chunked" (shifted sums, any device), "auto" (the fastest
            there is: now chunked).

    Returns:
        y (B, T, D) and the state (B, D, W - 1), the last W - 1 inputs; both in x's dtype.

    Raises:
        ValueError: a shape, dtype, device, activation, cu_seqlens or backend is not as said above.

    Sources: Gu and Dao 2023; Poli et al. 2023.
    """
    arguments = Arguments("causal_conv")
    arguments.tensor("x", x, "B T D")
    arguments.tensor("weight", weight, "D W")
    if bias is not None:
        arguments.tensor("bias", bias, "D")
    if activation is not None and activation not in get_args(Activation):
        raise arguments.error(f"activation must be None or 'silu'; got {activation!r}")
    bounds = arguments.packing(cu_seqlens)
    if initial_state is not None:
        arguments.sizes["W-1"] = weight.shape[1] - 1
        shape = "B D W-1" if bounds is None else "sequences D W-1"
        arguments.tensor("initial_state", initial_state, shape)
    reference = arguments.backend(backend) == "reference"
    operator = causal_conv_reference if reference else _causal_conv
    if bounds is None:
        return operator(x, weight, bias, activation, initial_state)

    def run(span: slice, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return operator(x[:, span], weight, bias, activation, state)

    return over_sequences(run, bounds, initial_state)
