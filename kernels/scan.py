"""Linear recurrence with a matrix state and a decay: retention, linear attention, GLA, SSD.

    S_t = Diag(exp(g_t)) S_{t-1} + k_t v_t^T         S_0 = initial state, zeros when absent
    o_t = scale * S_t^T q_t                          decay first, then write, then read

B batch, T time, H heads, K key width, V value width; g is the log-decay, natural and <= 0. In the
chunked form: n chunks of C steps, w the width of the decay (1: one per head, K: one per channel).

Sources: Katharopoulos et al. 2020 (linear attention), Sun et al. 2023 (RetNet: fixed decay per head
and the chunkwise form), Yang et al. 2024 (GLA: decay per channel), Dao and Gu 2024 (SSD, Mamba-2).

With P_ij = exp(g_{j+1} + ... + g_i) for i >= j and 0 otherwise, a chunk that starts from S does

    o_i = scale * (sum_j (q_i . P_ij k_j) v_j + S^T (read_i * q_i))    read_i = exp(g_1 + ... + g_i)
    S'  = Diag(read_C) S + sum_j (write_j * k_j) v_j^T         write_j = exp(g_{j+1} + ... + g_C)

Every exponent is formed as a sum of log-decays, never as a difference of two cumulative sums. So no
factor exceeds 1, no digit is lost to cancellation, and g = -inf (forget everything) is exact. The
gradient of g_t is formed the same way: the sum of all that crosses step t, and nothing else.
"""

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
    without_autocast,
)

CHUNK = 64  # steps; measured on CPU against 32 and 128

Crossing = list[tuple[Tensor, Tensor]]
Decays = tuple[Crossing, tuple[Tensor, Tensor]]


def scan_reference(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The two lines above, one step at a time, by ordinary autograd: the specification."""
    dtype = accumulation_dtype(v)
    state = _initial(k, v, initial_state)  # (B, H, K, V)
    outputs = []
    steps = (x.to(dtype).unbind(1) for x in (q, k, v, log_decay))
    for q_t, k_t, v_t, g_t in zip(*steps, strict=True):
        state = g_t.exp()[..., None] * state + k_t[..., :, None] * v_t[..., None, :]
        outputs.append(scale * (q_t[..., :, None] * state).sum(-2))
    return torch.stack(outputs, 1).to(v.dtype), state


def _initial(k: Tensor, v: Tensor, state: Tensor | None) -> Tensor:
    dtype = accumulation_dtype(v)
    if state is not None:
        return state.to(dtype)
    return v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3], dtype=dtype)


def _chunks(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T, H, X) -> (B, H, n, C, X); the padded steps are zero: they keep the state as it is."""
    B, T, H, X = x.shape
    C = min(CHUNK, 1 << (T - 1).bit_length())  # a power of two: chunks are halved below
    padded = F.pad(x.to(dtype), (0, 0, 0, 0, 0, -T % C))
    return padded.view(B, -1, C, H, X).permute(0, 3, 1, 2, 4).contiguous()


def _steps(x: Tensor, T: int, dtype: torch.dtype) -> Tensor:
    """(B, H, n, C, X) -> (B, T, H, X): undoes _chunks."""
    return x.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :T].to(dtype).contiguous()


def _halves(x: Tensor, h: int) -> tuple[Tensor, Tensor]:
    """Views of the lower and the upper h steps of every 2h: (..., C, X) -> (..., C / 2h, h, X)."""
    pairs = x.unflatten(-2, (-1, 2, h))
    return pairs[..., 0, :, :], pairs[..., 1, :, :]


def _crossing(A: Tensor, h: int) -> Tensor:
    """View of A (..., C, C) where upper halves read from lower ones: (..., C / 2h, h, h)."""
    tiles = A.unflatten(-1, (-1, 2 * h)).unflatten(-3, (-1, 2 * h))
    return tiles.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)[..., h:, :h]


def _levels(C: int) -> list[int]:
    return [1 << level for level in range(C.bit_length() - 1)]  # h = 1, 2, 4, ..., C / 2


def _decays(g: Tensor) -> Decays:
    """Decays across the middle of every 2h steps, h = 1, 2, ..., C / 2; then (read, write).

    Blocks of h steps know, for each of their steps, the sum of g since their start and until their
    end; two blocks become one by adding the neighbour's total. The upper one's readers and the
    lower one's writers meet at their common border: this is all that crosses it.
    """
    since, until = g.clone(), torch.zeros_like(g)
    crossing = []
    for h in _levels(g.shape[-2]):
        (low_since, up_since), (low_until, _) = _halves(since, h), _halves(until, h)
        crossing.append((up_since.exp(), low_until.exp()))
        low_total, up_total = low_since[..., -1:, :].clone(), up_since[..., -1:, :].clone()
        up_since += low_total
        low_until += up_total
    return crossing, (since.exp(), until.exp())


def _products(q: Tensor, k: Tensor, crossing: Crossing) -> Tensor:
    """A_ij = q_i . P_ij k_j for decays as wide as q: (..., C, C), zero above the diagonal.

    Halving makes matmuls of it: P_ij splits at the border between the halves that i and j are in.
    """
    A = q.new_zeros(*q.shape[:-1], q.shape[-2])
    A.diagonal(dim1=-2, dim2=-1).copy_((q * k).sum(-1))
    for h, (up, low) in zip(_levels(q.shape[-2]), crossing, strict=True):
        (_, q_up), (k_low, _) = _halves(q, h), _halves(k, h)
        _crossing(A, h).copy_((q_up * up) @ (k_low * low).mT)
    return A


def _products_backward(
    q: Tensor, k: Tensor, crossing: Crossing, dA: Tensor, d_since: Tensor, d_until: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to q, k and g. What dA holds above the diagonal is not read.

    d_since and d_until, overwritten, are the gradients of the chunk's own two sums in _decays.
    """
    diagonal = dA.diagonal(dim1=-2, dim2=-1)[..., None]
    dq, dk = diagonal * k, diagonal * q
    exponents = []
    for h, (up, low) in zip(_levels(q.shape[-2]), crossing, strict=True):
        (_, q_up), (k_low, _) = _halves(q, h), _halves(k, h)
        (_, dq_up), (dk_low, _) = _halves(dq, h), _halves(dk, h)
        block = _crossing(dA, h)
        d_readers, d_writers = up * (block @ (k_low * low)), low * (block.mT @ (q_up * up))
        dq_up += d_readers
        dk_low += d_writers
        exponents.append((h, q_up * d_readers, k_low * d_writers))
    for h, d_up, d_low in reversed(exponents):  # _decays backwards: a block becomes two
        (low_since, up_since), (low_until, _) = _halves(d_since, h), _halves(d_until, h)
        low_total, up_total = up_since.sum(-2), low_until.sum(-2)
        low_since[..., -1, :] += low_total
        up_since[..., -1, :] += up_total
        up_since += d_up
        low_until += d_low
    return dq, dk, d_since


def _scores(q: Tensor, k: Tensor, decays: Decays) -> Tensor:
    """The decayed products q_i . P_ij k_j of every chunk, (B, H, n, C, C)."""
    crossing, (read, _) = decays
    if read.shape == q.shape:
        return _products(q, k, crossing)
    one = torch.ones_like(read)  # one decay per head leaves the product: (q_i . k_j) P_ij
    return (q @ k.mT) * _products(one, one, crossing)


def _scores_backward(
    q: Tensor, k: Tensor, decays: Decays, dA: Tensor, d_since: Tensor, d_until: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The scores again, and the gradients to q, k and g; the rest is as in _products_backward."""
    crossing, (read, _) = decays
    if read.shape == q.shape:
        A = _products(q, k, crossing)
        return A, *_products_backward(q, k, crossing, dA, d_since, d_until)
    one = torch.ones_like(read)
    qk, P = q @ k.mT, _products(one, one, crossing)
    dP = (dA * qk).sum_to_size(*read.shape[:-1], read.shape[-2])
    dg = _products_backward(one, one, crossing, dP, d_since, d_until)[2]
    d_qk = dA * P
    return qk * P, d_qk @ k, d_qk.mT @ q, dg


def _carry(state: Tensor, decay: Tensor, added: Tensor) -> tuple[list[Tensor], Tensor]:
    """The states before each chunk, and the last: a chunk does state <- decay * state + added."""
    met = []
    for a, b in zip(decay.unbind(2), added.unbind(2), strict=True):
        met.append(state)
        state = torch.addcmul(b, a, state)
    return met, state


@torch.library.custom_op(f"{NAMESPACE}::scan", mutates_args=())
def _scan(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The chunked form; log_decay (B or 1, T, H, K or 1)."""
    with without_autocast(v):
        T, dtype = v.shape[1], accumulation_dtype(v)
        if T == 1:  # a decoding step has nothing to gather into matmuls
            return scan_reference(q, k, v, log_decay, scale, initial_state)
        Q, K, V, g = (_chunks(x, dtype) for x in (q, k, v, log_decay))
        decays = _decays(g)
        _, (read, write) = decays  # (B, H, n, C, w)
        keep = read[..., -1:, :].mT  # (B, H, n, w, 1)
        starts, state = _carry(_initial(k, v, initial_state), keep, (write * K).mT @ V)
        o = _scores(Q, K, decays) @ V + (read * Q) @ torch.stack(starts, 2)
        return _steps(scale * o, T, v.dtype), state


@torch.library.custom_op(f"{NAMESPACE}::scan_backward", mutates_args=())
def _scan_backward(
    do: Tensor,
    dstate: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    scale: float,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to q, k, v, log_decay and the initial state; the chunks' states are recomputed."""
    with without_autocast(v):
        dtype = accumulation_dtype(v)
        Q, K, V, g, dO = (_chunks(x, dtype) for x in (q, k, v, log_decay, do))
        dO = scale * dO
        decays = _decays(g)
        _, (read, write) = decays
        keep = read[..., -1:, :].mT
        starts, _ = _carry(_initial(k, v, initial_state), keep, (write * K).mT @ V)
        ends, d_initial = _carry(dstate.to(dtype), keep.flip(2), ((read * Q).mT @ dO).flip(2))
        S, dS = torch.stack(starts, 2), torch.stack(ends[::-1], 2)  # (B, H, n, K, V)

        dQ_read, dK_write = read * (dO @ S.mT), write * (V @ dS.mT)
        d_since, d_until = (Q * dQ_read).sum_to_size(g.shape), (K * dK_write).sum_to_size(g.shape)
        kept = (keep * S * dS).sum(-1)[..., None, :]  # what passes through the whole chunk
        d_since[..., -1:, :] += kept.sum_to_size(d_since[..., -1:, :].shape)
        A, dQ, dK, dg = _scores_backward(Q, K, decays, dO @ V.mT, d_since, d_until)
        dV = A.mT @ dO + (write * K) @ dS

        grads = ((dQ + dQ_read, q), (dK + dK_write, k), (dV, v), (dg, log_decay))
        dq, dk, dv, dlog_decay = (_steps(dx, x.shape[1], x.dtype) for dx, x in grads)
        return dq, dk, dv, dlog_decay, d_initial


@_scan.register_fake
def _(q, k, v, log_decay, scale, initial_state):
    B, _, H, V = v.shape
    state = v.new_empty(B, H, k.shape[3], V, dtype=accumulation_dtype(v))
    return v.new_empty(v.shape), state


@_scan_backward.register_fake
def _(do, dstate, q, k, v, log_decay, scale, initial_state):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, log_decay, dstate))


def _save(ctx, inputs, output) -> None:
    q, k, v, log_decay, ctx.scale, initial_state = inputs
    ctx.save_for_backward(q, k, v, log_decay, initial_state)


def _differentiate(ctx, do: Tensor, dstate: Tensor):
    q, k, v, log_decay, initial_state = ctx.saved_tensors
    *grads, d_initial = _scan_backward(do, dstate, q, k, v, log_decay, ctx.scale, initial_state)
    return *grads, None, None if initial_state is None else d_initial.to(initial_state.dtype)


_scan.register_autograd(_differentiate, setup_context=_save)


def _forward_flops(q, k, v, *_, **__) -> int:
    """2 C (K + V) + 4 K V per step and head: four matmuls, masks not halved, C = min(64, T)."""
    (B, T, H, K), V = q, v[-1]
    return B * T * H * (2 * min(CHUNK, T) * (K + V) + 4 * K * V)


def _backward_flops(do, dstate, q, k, v, *_, **__) -> int:
    """C (6 K + 4 V) + 10 K V per step and head: the ten matmuls; 2.5 times forward if K = V."""
    (B, T, H, K), V = q, v[-1]
    return B * T * H * (min(CHUNK, T) * (6 * K + 4 * V) + 10 * K * V)


register_flops("scan", _forward_flops)
register_flops("scan_backward", _backward_flops)


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
        q: queries, (B, T, H, K), T >= 1.
        k: keys, (B, T, H, K).
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
    arguments.tensor("q", q, "B T H K")
    arguments.tensor("k", k, "B T H K")
    arguments.tensor("v", v, "B T H V")
    g = _decay_per_step(arguments, log_decay, v)
    bounds = arguments.packing(cu_seqlens)
    if initial_state is not None:
        arguments.tensor(
            "initial_state", initial_state, "B H K V" if bounds is None else "sequences H K V"
        )
    operator = scan_reference if arguments.backend(backend) == "reference" else _scan
    factor = q.shape[-1] ** -0.5 if scale is None else scale

    if bounds is None:
        return operator(q, k, v, g, factor, initial_state)

    def run(span: slice, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return operator(q[:, span], k[:, span], v[:, span], g[:, span], factor, state)

    return over_sequences(run, bounds, initial_state)


def _decay_per_step(arguments: Arguments, log_decay: Tensor | None, v: Tensor) -> Tensor:
    """Every kind of decay as (B or 1, T, H, K or 1): the operator knows no kinds."""
    _, T, H, _ = v.shape
    if log_decay is None:
        return v.new_zeros(1, T, H, 1, dtype=accumulation_dtype(v))
    shapes = {1: "H", 3: "B T H", 4: "B T H K"}
    if not isinstance(log_decay, Tensor) or log_decay.dim() not in shapes:
        got = tuple(log_decay.shape) if isinstance(log_decay, Tensor) else type(log_decay).__name__
        allowed = "None, (H,), (B, T, H) or (B, T, H, K)"
        raise arguments.error(f"log_decay must be {allowed}; got {got}")
    arguments.tensor("log_decay", log_decay, shapes[log_decay.dim()])
    if log_decay.dim() == 1:
        return log_decay[:, None].expand(1, T, H, 1)
    return log_decay if log_decay.dim() == 4 else log_decay[..., None]
