"""Linear recurrence with a matrix state and a decay: retention, linear attention, GLA, SSD.

    S_t = Diag(exp(g_t)) S_{t-1} + k_t v_t^T         S_0 = initial state, zeros when absent
    o_t = scale * S_t^T q_t                          decay first, then write, then read

B batch, T time, H heads, G groups of heads that share queries and keys, K key width, V value width;
g is the log-decay, natural and <= 0.

Sources: Katharopoulos et al. 2020 (linear attention), Sun et al. 2023 (RetNet: fixed decay per head
and the chunkwise form), Yang et al. 2024 (GLA: decay per channel), Dao and Gu 2024 (SSD, Mamba-2).
"""

import torch
from torch import Tensor

from .interface import (
    Arguments,
    Backend,
    accumulation_dtype,
    decay_per_step,
    differentiated,
    over_sequences,
    state_or_zeros,
)
from .scan_chunked import scan_chunked


def scan_reference(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The two lines above, one step at a time, by ordinary autograd: the specification."""
    dtype = accumulation_dtype(v)
    state = state_or_zeros(initial_state, v, v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
    outputs = []
    steps = (x.to(dtype).expand(-1, v.shape[1], -1, -1).unbind(1) for x in (q, k, v, log_decay))
    for q_t, k_t, v_t, g_t in zip(*steps, strict=True):
        state = g_t.exp()[..., None] * state + k_t[..., :, None] * v_t[..., None, :]
        outputs.append(scale * (q_t[..., :, None] * state).sum(-2))
    return torch.stack(outputs, 1).to(v.dtype), state


def scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Read and write a decaying matrix state, one per head.

        S_t = Diag(exp(g_t)) S_{t-1} + k_t v_t^T
        o_t = scale * S_t^T q_t

    The state is summed in float32 whatever the inputs' dtype (float64 when v is float64), and
    gradients flow to every tensor, the initial state included, and from the final state. Nothing
    larger than the inputs is kept for the backward pass.

    Args:
        q: queries, (B, T, H, K) or, shared by each H / G heads in turn, (B, T, G, K); T >= 1.
        k: keys, as q.
        v: values, (B, T, H, V).
        log_decay: g, the natural logarithm of the decay, <= 0 (not checked; -inf forgets all):
            None, (H,), (B, T, H) or (B, T, H, K).
        scale: factor of the output; K ** -0.5 when None.
        initial_state: S_0, (B, H, K, V); zeros when None.
        cu_seqlens: the borders 0 = c_0 <= ... <= c_M = T of M sequences packed into a batch of 1,
            (M + 1,), integers; the states then lead with M. They are read on the host.
        backend: "reference" (step loop), "chunked" (matmuls, any device), "triton" (a GPU, or
            TRITON_INTERPRET=1), "auto": triton on GPUs where it has been checked, else chunked.

    Returns:
        o (B, T, H, V) in v's dtype, and the final state (B, H, K, V).

    Raises:
        ValueError: a shape, dtype, device, cu_seqlens or backend is not as said above.

    Sources: Katharopoulos et al. 2020; Sun et al. 2023; Yang et al. 2024; Dao and Gu 2024.
    """
    arguments = Arguments("scan")
    arguments.tensor("q", q, "B T G K")
    arguments.tensor("k", k, "B T G K")
    arguments.tensor("v", v, "B T H V")
    arguments.heads_per_group()
    arguments.decay(log_decay, "H", "B T H", "B T H K")
    bounds = arguments.packing(cu_seqlens)
    if initial_state is not None:
        shape = "B H K V" if bounds is None else "sequences H K V"
        arguments.tensor("initial_state", initial_state, shape)
    given = [x for x in (q, k, v, log_decay, initial_state) if x is not None]
    chosen = arguments.backend(backend, *given)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if chosen == "triton":
        from .scan_triton import scan_triton

        borders = None if cu_seqlens is None else cu_seqlens.to(v.device).contiguous()
        keep = differentiated(given)
        return scan_triton(q, k, v, log_decay, factor, initial_state, borders, keep)[:2]

    operator = scan_reference if chosen == "reference" else scan_chunked
    g = decay_per_step(log_decay, v)
    if bounds is None:
        return operator(q, k, v, g, factor, initial_state)

    g = g.expand(-1, v.shape[1], -1, -1)  # padded steps shall not decay

    def run(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor | None):
        return operator(q, k, v, g, factor, state)

    return over_sequences(run, (q, k, v, g), bounds, initial_state)
