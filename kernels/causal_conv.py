"""Short causal convolution, one filter per channel.

    y_t[d] = act(bias[d] + sum_{w < W} weight[d, w] x_{t-W+1+w}[d])

B batch, T time, D channels, W width. The last weight is the present step's, as in torch.nn.Conv1d;
what lies before the first step is the initial state, or zeros. It looks back only.

Source: the depthwise convolution of Gu and Dao 2023 (Mamba) and Poli et al. 2023 (Hyena).
"""

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from .causal_conv_chunked import causal_conv_chunked
from .interface import Arguments, Backend, accumulation_dtype, differentiated

Activation = Literal["silu"]
WIDEST = 8  # for Triton, which keeps the window in registers


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
        backend: "reference" (step loop), "chunked" (shifted sums, any device), "triton" (W <= 8; a
            GPU, or TRITON_INTERPRET=1), "auto": triton on GPUs where it has been checked, else
            chunked.

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
    given = [z for z in (x, weight, bias, initial_state) if z is not None]
    chosen = arguments.backend(backend, *given)
    if chosen == "triton" and weight.shape[1] > WIDEST:
        if backend == "triton":
            raise arguments.error(
                f"backend 'triton' takes widths W <= {WIDEST}; got W = {weight.shape[1]}: "
                "use 'chunked'"
            )
        chosen = "chunked"
    if chosen == "triton":
        from .causal_conv_triton import causal_conv_triton

        borders = None if cu_seqlens is None else cu_seqlens.to(x.device).contiguous()
        return causal_conv_triton(x, weight, bias, activation, initial_state, borders)
    keep = differentiated(given)

    def run(x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        if chosen == "reference":
            return causal_conv_reference(x, weight, bias, activation, state)
        return causal_conv_chunked(x, weight, bias, activation, state, keep)[:2]

    if bounds is None:
        return run(x, initial_state)

    # Packed sequences become one: each comes behind its own W - 1 past steps.
    past = x.new_zeros(len(bounds) - 1, weight.shape[1] - 1, x.shape[2])
    past = past if initial_state is None else initial_state.to(x.dtype).mT
    number, width, _ = past.shape
    whose = enumerate(pairwise(bounds))
    rows = [(range(i * width, (i + 1) * width), range(a, b)) for i, (a, b) in whose]
    order = [j for old, new in rows for j in (*old, *(number * width + t for t in new))]
    ends = [b + (i + 1) * width for i, b in enumerate(bounds[1:])]
    joined = torch.cat([past.flatten(0, 1), x[0]]).index_select(0, _index(order, x))
    y, _ = run(joined[None], None)
    steps = [t + (i + 1) * width for i, (_, new) in enumerate(rows) for t in new]
    last = [end - width + w for end in ends for w in range(width)]
    final = joined.index_select(0, _index(last, x)).unflatten(0, (number, width))
    return y.index_select(1, _index(steps, x)), final.mT.contiguous()


def _index(rows: list[int], like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=like.device)
