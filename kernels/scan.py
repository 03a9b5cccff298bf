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

from .interface import Arguments, Backend, accumulation_dtype, over_sequences, state_or_zeros
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
        backend: "reference" (step loop), "chunked" (matmuls, any device), "auto" (the fastest
            there is: now chunked).

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
    if v.shape[2] % q.shape[2]:
        raise arguments.error(
            f"the heads of v must be a multiple of those of q and k; "
            f"got H = {v.shape[2]} and G = {q.shape[2]}"
        )
    _check_decay(arguments, log_decay)
    bounds = arguments.packing(cu_seqlens)
    if initial_state is not None:
        shape = "B H K V" if bounds is None else "sequences H K V"
        arguments.tensor("initial_state", initial_state, shape)
    reference = arguments.backend(backend) == "reference"
    operator = scan_reference if reference else scan_chunked
    factor = q.shape[-1] ** -0.5 if scale is None else scale

    g = _decay_per_step(log_decay, v)
    if bounds is None:
        return operator(q, k, v, g, factor, initial_state)

    g = g.expand(-1, v.shape[1], -1, -1)  # padded steps shall not decay

    def run(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor | None):
        return operator(q, k, v, g, factor, state)

    return over_sequences(run, (q, k, v, g), bounds, initial_state)


def _check_decay(arguments: Arguments, log_decay: Tensor | None) -> None:
    if log_decay is None:
        return
    shapes = {1: "H", 3: "B T H", 4: "B T H K"}
    if not isinstance(log_decay, Tensor) or log_decay.dim() not in shapes:
        got = tuple(log_decay.shape) if isinstance(log_decay, Tensor) else type(log_decay).__name__
        allowed = "None, (H,), (B, T, H) or (B, T, H, K)"
        raise arguments.error(f"log_decay must be {allowed}; got {got}")
    arguments.tensor("log_decay", log_decay, shapes[log_decay.dim()])


def _decay_per_step(log_decay: Tensor | None, v: Tensor) -> Tensor:
    """Every kind of decay as (B or 1, T or 1, H, K or 1): the two PyTorch forms know no kinds."""
    if log_decay is None:
        return v.new_zeros(1, 1, v.shape[2], 1, dtype=accumulation_dtype(v))
    if log_decay.dim() == 1:
        return log_decay[None, None, :, None]
    return log_decay if log_decay.dim() == 4 else log_decay[..., None]
