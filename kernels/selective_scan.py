"""Selective scan (S6): a diagonal state per channel, whose step size depends on the input.

    h_t[d, n] = exp(delta_t[d] A[d, n]) h_{t-1}[d, n] + delta_t[d] B_t[n] x_t[d]
    y_t[d]    = sum_n C_t[n] h_t[d, n] + D[d] x_t[d]

B batch, T time, D channels, N states per channel; as in the paper, A, B, C and D are also tensors.
h_0 is the initial state, zeros when absent. The state's decay is the exact zero-order hold, the
input's weight is Euler's delta B: Mamba's choice.

Source: Gu and Dao 2023 (Mamba, algorithm 2).
"""

import torch
from torch import Tensor

from .interface import (
    Arguments,
    Backend,
    accumulation_dtype,
    differentiated,
    over_sequences,
    state_or_zeros,
)
from .selective_scan_chunked import selective_scan_chunked


def selective_scan_reference(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The two lines above, one step at a time, by ordinary autograd: the specification."""
    dtype = accumulation_dtype(x)
    state = state_or_zeros(initial_state, x, x.shape[0], *A.shape)  # (B, D, N)
    A = A.to(dtype)
    outputs = []
    steps = (z.to(dtype).unbind(1) for z in (x, delta, B, C))
    for x_t, delta_t, B_t, C_t in zip(*steps, strict=True):
        decay = (delta_t[:, :, None] * A).exp()
        state = decay * state + delta_t[:, :, None] * B_t[:, None, :] * x_t[:, :, None]
        y_t = (C_t[:, None, :] * state).sum(-1)
        outputs.append(y_t if D is None else y_t + D.to(dtype) * x_t)
    return torch.stack(outputs, 1).to(x.dtype), state


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Filter every channel through N decaying states, with steps that depend on the input.

        h_t[d, n] = exp(delta_t[d] A[d, n]) h_{t-1}[d, n] + delta_t[d] B_t[n] x_t[d]
        y_t[d]    = sum_n C_t[n] h_t[d, n] + D[d] x_t[d]

    The state is summed in float32 whatever the inputs' dtype (float64 when x is float64), and
    gradients flow to every tensor, the initial state included, and from the final state. Kept for
    the backward pass are the inputs and one state in every 8 steps, or more where they are narrow.

    Args:
        x: input, (B, T, D), T >= 1.
        delta: step sizes, (B, T, D), positive (not checked): any softplus is already applied.
        A: rates, (D, N), negative (not checked); delta * A is a natural logarithm.
        B: input weights, (B, T, N).
        C: output weights, (B, T, N).
        D: weights of the skip from x to y, (D,); no skip when None.
        initial_state: h_0, (B, D, N); zeros when None.
        cu_seqlens: the borders 0 = c_0 <= ... <= c_M = T of M sequences packed into a batch of 1,
            (M + 1,), integers; the states then lead with M. They are read on the host.
        backend: "reference" (step loop), "chunked" (blocks of steps, any device), "triton" (a GPU,
            or TRITON_INTERPRET=1), "auto": triton on GPUs where it has been checked, else chunked.

    Returns:
        y (B, T, D) in x's dtype, and the final state (B, D, N).

    Raises:
        ValueError: a shape, dtype, device, cu_seqlens or backend is not as said above.

    Source: Gu and Dao 2023.
    """
    arguments = Arguments("selective_scan")
    arguments.tensor("x", x, "B T D")
    arguments.tensor("delta", delta, "B T D")
    arguments.tensor("A", A, "D N")
    arguments.tensor("B", B, "B T N")
    arguments.tensor("C", C, "B T N")
    if D is not None:
        arguments.tensor("D", D, "D")
    bounds = arguments.packing(cu_seqlens)
    if initial_state is not None:
        shape = "B D N" if bounds is None else "sequences D N"
        arguments.tensor("initial_state", initial_state, shape)
    given = [z for z in (x, delta, A, B, C, D, initial_state) if z is not None]
    chosen = arguments.backend(backend, *given)
    if chosen == "triton":
        from .selective_scan_triton import selective_scan_triton

        borders = None if cu_seqlens is None else cu_seqlens.to(x.device).contiguous()
        keep = differentiated(given)
        return selective_scan_triton(x, delta, A, B, C, D, initial_state, borders, keep)[:2]
    operator = selective_scan_reference if chosen == "reference" else selective_scan_chunked
    if bounds is None:
        return operator(x, delta, A, B, C, D, initial_state)[:2]

    def run(x: Tensor, delta: Tensor, B: Tensor, C: Tensor, state: Tensor | None):
        return operator(x, delta, A, B, C, D, state)[:2]

    return over_sequences(run, (x, delta, B, C), bounds, initial_state)
