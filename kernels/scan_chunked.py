"""scan in matmuls: the chunked form, on any device PyTorch has.

n chunks of C steps, w the width of the decay (1: one per head, K: one per channel). With
P_ij = exp(g_{j+1} + ... + g_i) for i >= j and 0 otherwise, a chunk that starts from S does

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
    accumulation_dtype,
    register_flops,
    state_or_zeros,
    without_autocast,
)

CHUNK = 64  # steps; measured on CPU against 32 and 128

Crossing = list[tuple[Tensor, Tensor]]
Decays = tuple[Crossing, tuple[Tensor, Tensor]]


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


def _start(k: Tensor, v: Tensor, state: Tensor | None) -> Tensor:
    return state_or_zeros(state, v, v.shape[0], v.shape[2], k.shape[3], v.shape[3])


def _carry(state: Tensor, decay: Tensor, added: Tensor) -> tuple[list[Tensor], Tensor]:
    """The states before each chunk, and the last: a chunk does state <- decay * state + added."""
    met = []
    for a, b in zip(decay.unbind(2), added.unbind(2), strict=True):
        met.append(state)
        state = torch.addcmul(b, a, state)
    return met, state


def _step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float, state: Tensor):
    q_t, k_t, v_t, g_t = (x[:, 0].to(state.dtype) for x in (q, k, v, log_decay))
    state = torch.addcmul(k_t[..., None] * v_t[..., None, :], g_t.exp()[..., None], state)
    return (scale * (q_t[..., None, :] @ state)).mT[..., 0][:, None].to(v.dtype), state


@torch.library.custom_op(f"{NAMESPACE}::scan_chunked", mutates_args=())
def scan_chunked(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The chunked form; log_decay (B or 1, T, H, K or 1)."""
    with without_autocast(v):
        T, dtype = v.shape[1], accumulation_dtype(v)
        if T == 1:  # a decoding step has nothing to gather into matmuls
            return _step(q, k, v, log_decay, scale, _start(k, v, initial_state))
        Q, K, V, g = (_chunks(x, dtype) for x in (q, k, v, log_decay))
        decays = _decays(g)
        _, (read, write) = decays  # (B, H, n, C, w)
        keep = read[..., -1:, :].mT  # (B, H, n, w, 1)
        starts, state = _carry(_start(k, v, initial_state), keep, (write * K).mT @ V)
        o = _scores(Q, K, decays) @ V + (read * Q) @ torch.stack(starts, 2)
        return _steps(scale * o, T, v.dtype), state


@torch.library.custom_op(f"{NAMESPACE}::scan_chunked_backward", mutates_args=())
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
        starts, _ = _carry(_start(k, v, initial_state), keep, (write * K).mT @ V)
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


@scan_chunked.register_fake
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


scan_chunked.register_autograd(_differentiate, setup_context=_save)


def _forward_flops(q, k, v, *_, **__) -> int:
    """2 C (K + V) + 4 K V per step and head: four matmuls, masks not halved, C = min(64, T)."""
    (B, T, H, K), V = q, v[-1]
    return B * T * H * (2 * min(CHUNK, T) * (K + V) + 4 * K * V)


def _backward_flops(do, dstate, q, k, v, *_, **__) -> int:
    """C (6 K + 4 V) + 10 K V per step and head: the ten matmuls; 2.5 times forward if K = V."""
    (B, T, H, K), V = q, v[-1]
    return B * T * H * (min(CHUNK, T) * (6 * K + 4 * V) + 10 * K * V)


register_flops("scan_chunked", _forward_flops)
register_flops("scan_chunked_backward", _backward_flops)
