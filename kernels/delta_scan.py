"""Gated delta rule: a decaying matrix state in which a key's value is replaced, not added to.

    S_t  = exp(g_t) S_{t-1}                            S_0 = initial state, zeros when absent
    S_t += beta_t k_t (v_t - S_t^T k_t)^T              decay first, then correct, then read
    o_t  = scale * S_t^T q_t

B batch, T time, H heads, G groups of heads that share queries and keys, K key width, V value width;
g is the log-decay, natural and <= 0, and beta the strength of the correction: 0 keeps the state, 1
stores v_t under a key of unit length and forgets what was there.

Sources: Schlag et al. 2021 (the delta rule as fast weights), Yang et al. 2024, "Parallelizing
linear transformers with the delta rule over sequence length" (the chunkwise form), Yang et al.
2025, "Gated Delta Networks" (the decay).
"""

import torch
from torch import Tensor

from .delta_scan_chunked import delta_scan_chunked
from .interface import (
    Arguments,
    Backend,
    accumulation_dtype,
    decay_per_step,
    differentiated,
    over_sequences,
    state_or_zeros,
)


def delta_scan_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    scale: float,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The three lines above, one step at a time, by ordinary autograd: the specification."""
    dtype = accumulation_dtype(v)
    state = state_or_zeros(initial_state, v, v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    outputs = []
    steps = (x.to(dtype).unbind(1) for x in (q, k, v, beta, log_decay))
    for q_t, k_t, v_t, beta_t, g_t in zip(*steps, strict=True):
        state = g_t.exp()[..., None] * state
        error = v_t - (k_t[..., :, None] * state).sum(-2)
        state = state + k_t[..., :, None] * (beta_t * error)[..., None, :]
        outputs.append(scale * (q_t[..., :, None] * state).sum(-2))
    return torch.stack(outputs, 1).to(v.dtype), state


def delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Read and correct a decaying matrix state, one per head.

        S_t  = exp(g_t) S_{t-1}
        S_t += beta_t k_t (v_t - S_t^T k_t)^T
        o_t  = scale * S_t^T q_t

    The keys are taken as they are: a step multiplies the state along k_t by 1 - beta_t |k_t|^2, so
    normalise them (L2), or keep beta_t |k_t|^2 <= 2, or the state grows without bound.

    The state is summed in float32 whatever the inputs' dtype (float64 when v is float64), and
    gradients flow to every tensor, the initial state included, and from the final state. Nothing
    but the inputs is kept for the backward pass.

    Args:
        q: queries, (B, T, H, K) or, shared by each H / G heads in turn, (B, T, G, K); T >= 1.
        k: keys, as q.
        v: values, (B, T, H, V).
        beta: the strength of each correction, (B, T, H); from 0 to 1, or to 2 (not checked).
        log_decay: g, the natural logarithm of the decay, <= 0 (not checked; -inf forgets all):
            None, (H,) or (B, T, H).
        scale: factor of the output; K ** -0.5 when None.
        initial_state: S_0, (B, H, K, V); zeros when None.
        cu_seqlens: the borders 0 = c_0 <= ... <= c_M = T of M sequences packed into a batch of 1,
            (M + 1,), integers; the states then lead with M. They are read on the host.
        backend: "reference" (step loop), "chunked" (matmuls, any device), "triton" (GPU), "auto"
            (triton on GPUs whose kernels have been checked, else chunked).

    Returns:
        o (B, T, H, V) in v's dtype, and the final state (B, H, K, V).

    Raises:
        ValueError: a shape, dtype, device, cu_seqlens or backend is not as said above.

    Sources: Schlag et al. 2021; Yang et al. 2024; Yang et al. 2025.
    """
    arguments = Arguments("delta_scan")
    arguments.tensor("q", q, "B T G K")
    arguments.tensor("k", k, "B T G K")
    arguments.tensor("v", v, "B T H V")
    arguments.tensor("beta", beta, "B T H")
    heads = arguments.heads_per_group()
    arguments.decay(log_decay, "H", "B T H")
    bounds = arguments.packing(cu_seqlens)
    if initial_state is not None:
        shape = "B H K V" if bounds is None else "sequences H K V"
        arguments.tensor("initial_state", initial_state, shape)
    given = [x for x in (q, k, v, beta, log_decay, initial_state) if x is not None]
    chosen = arguments.backend(backend, *given)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if chosen == "triton":
        from .delta_scan_triton import STEPS, delta_scan_triton

        borders = None if cu_seqlens is None else cu_seqlens.to(v.device).contiguous()
        keep = differentiated(given)
        few = v.shape[1] <= STEPS and not keep
        return delta_scan_triton(q, k, v, beta, log_decay, factor, initial_state, borders, few)

    operator = delta_scan_reference if chosen == "reference" else delta_scan_chunked
    q, k = (x.repeat_interleave(heads, 2) for x in (q, k))
    beta, g = beta[..., None], decay_per_step(log_decay, v).expand(-1, v.shape[1], -1, -1)
    if bounds is None:
        return operator(q, k, v, beta, g, factor, initial_state)

    def run(
        q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return operator(q, k, v, beta, g, factor, state)

    return over_sequences(run, (q, k, v, beta, g), bounds, initial_state)
