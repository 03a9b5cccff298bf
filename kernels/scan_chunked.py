"""scan in matmuls: the chunked form, on any device PyTorch has.

n chunks of C steps, w the width of the decay (1: one per head, K: one per channel). With
P_ij = exp(g_{j+1} + ... + g_i) for i >= j and 0 otherwise, a chunk that starts from S does

    o_i = scale * (sum_j (q_i . P_ij k_j) v_j + S^T (read_i * q_i))    read_i = exp(g_1 + ... + g_i)
    S'  = Diag(read_C) S + sum_j (write_j * k_j) v_j^T         write_j = exp(g_{j+1} + ... + g_C)

Every exponent is formed as a sum of log-decays, never as a difference of two cumulative sums. So no
factor exceeds 1, no digit is lost to cancellation, and g = -inf (forget everything) is exact. The
gradient of g_t is formed the same way: the sum of all that crosses step t, and nothing else.
Exponentials are taken to base 2: on CPU exp is up to 200 times slower where its result underflows.

A few chunks are taken at a time, so that what is between them and their outputs stays in the cache.
Memory beyond inputs and outputs: in the backward pass the states before the chunks of one tile's
rows, (T / C) K V numbers a head; else nothing grows with T.
"""

import math
from collections.abc import Iterator, Sequence

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
TILE = 128  # chunks of one head taken at a time: (64, 64) matrices of float32 make 2 MiB
LOG2_E = math.log2(math.e)

Crossing = list[tuple[Tensor, Tensor]]
Decays = tuple[Crossing, tuple[Tensor, Tensor]]


def _chunks(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T, H, X) -> (B, H, n, C, X); the padded steps are zero: they keep the state as it is."""
    B, T, H, X = x.shape
    C = min(CHUNK, 1 << (T - 1).bit_length())  # a power of two: chunks are halved below
    padded = F.pad(x, (0, 0, 0, 0, 0, -T % C)) if T % C else x
    return padded.unflatten(1, (-1, C)).permute(0, 3, 1, 2, 4).to(dtype).contiguous()


def _store(x: Tensor, out: Tensor, factor: float = 1.0) -> None:
    """Undoes _chunks: factor * x, (B, H, n, C, X), into out, (B, T, H, X)."""
    n, T = x.shape[2], out.shape[1]
    steps = out.unflatten(1, (n, T // n)).permute(0, 3, 1, 2, 4)
    torch.mul(x[..., : T // n, :], factor, out=steps)


def _tiles(B: int, T: int, H: int) -> Iterator[tuple[slice, list[slice]]]:
    """Rows of the batch and their steps in order: whole chunks, then a rest."""
    chunks = max(1, TILE // H)  # of all heads
    rows = min(B, max(1, chunks // -(-T // CHUNK)))
    span, whole = CHUNK * max(1, chunks // rows), T - T % CHUNK
    steps = [slice(t, min(t + span, whole)) for t in range(0, whole, span)]
    steps += [slice(whole, T)] if whole < T else []
    return ((slice(row, row + rows), steps) for row in range(0, B, rows))


def _of_tile(x: Tensor, rows: slice, steps: slice) -> Tensor:
    """The tile's part of (B or 1, T or 1, H, X); what is the same in all chunks comes as one."""
    x = x if x.shape[0] == 1 else x[rows]
    if x.shape[1] > 1:
        return x[:, steps]
    return x.expand(-1, min(CHUNK, steps.stop - steps.start), -1, -1)


def _add(dg: Tensor, out: Tensor, rows: slice, steps: slice) -> None:
    """Add the gradient of what _of_tile gave, as chunks, to that of the whole."""
    out = out if out.shape[0] == 1 else out[rows]
    out = out if out.shape[1] == 1 else out[:, steps]
    C = min(CHUNK, steps.stop - steps.start)  # without the padded steps
    out += dg[..., :C, :].permute(0, 2, 3, 1, 4).flatten(1, 2).sum_to_size(out.shape)


# ---- a decay per head: the products q_i . k_j are weighted


def _spans(g: Tensor) -> Tensor:
    """exp(g_{j+1} + ... + g_i) at row j + 1, column i, for j = 0 (before the chunk), 1, ..., C.

    (..., C, 1) -> (..., C + 1, C). Row 0 is read, the last column below it write, and all below
    it P transposed: in this order the sums run along rows.
    """
    C = g.shape[-2]
    sums = (LOG2_E * g).mT.expand(*g.shape[:-2], C + 1, C).triu().cumsum(-1)
    return sums.exp2_().triu_(-1)


def _spans_backward(d_exponents: Tensor) -> Tensor:
    """Gradient to g from that of the exponents in _spans: the sum of those that cross a step."""
    C = d_exponents.shape[-1]
    return (d_exponents @ d_exponents.new_ones(C, C).tril()).triu_().sum(-2)[..., None]


# ---- a decay per channel: inside the product, halves of halves


def _halves(x: Tensor, h: int) -> tuple[Tensor, ...]:
    """Views of the lower and the upper h steps of every 2h: (..., C, X) -> (N C / 2h, h, X)."""
    return x.view(-1, 2, h, x.shape[-1]).unbind(1)


def _crossing(A: Tensor, h: int) -> Tensor:
    """View of A (..., C, C) where upper halves read from lower ones: (N, C / 2h, h, h)."""
    C = A.shape[-1]
    strides = (C * C, 2 * h * (C + 1), C, 1)
    return A.as_strided((A.numel() // C**2, C // (2 * h), h, h), strides, h * C)


def _levels(C: int) -> list[int]:
    return [1 << level for level in range(C.bit_length() - 1)]  # h = 1, 2, 4, ..., C / 2


def _exp2(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format).exp2_()  # of a view it is slow


def _decays(g: Tensor) -> Decays:
    """Decays across the middle of every 2h steps, h = 1, 2, ..., C / 2; then (read, write).

    Blocks of h steps know, for each of their steps, the sum of g since their start and until their
    end; two blocks become one by adding the neighbour's total. The upper one's readers and the
    lower one's writers meet at their common border: this is all that crosses it.
    """
    since, until = LOG2_E * g, torch.zeros_like(g)
    crossing = []
    for h in _levels(g.shape[-2]):
        (low_since, up_since), (low_until, _) = _halves(since, h), _halves(until, h)
        crossing.append((_exp2(up_since), _exp2(low_until)))
        low_until += up_since[:, -1:]
        up_since += low_since[:, -1:]
    return crossing, (since.exp2_(), until.exp2_())


def _products(q: Tensor, k: Tensor, crossing: Crossing) -> Tensor:
    """A_ij = q_i . P_ij k_j for decays as wide as q: (..., C, C), zero above the diagonal.

    Halving makes matmuls of it: P_ij splits at the border between the halves that i and j are in.
    """
    A = q.new_zeros(*q.shape[:-1], q.shape[-2])
    A.diagonal(dim1=-2, dim2=-1).copy_((q * k).sum(-1))
    for h, (up, low) in zip(_levels(q.shape[-2]), crossing, strict=True):
        (_, q_up), (k_low, _) = _halves(q, h), _halves(k, h)
        block = _crossing(A, h)
        block.copy_(_inner(q_up * up, k_low * low).view_as(block))
    return A


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.mT, by sums where it is so small that a matmul costs more than its arithmetic."""
    if a.shape[-2] > 4:
        return a @ b.mT
    return (a[..., :, None, :] * b[..., None, :, :]).sum(-1)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, likewise."""
    if a.shape[-1] > 2:
        return a @ b
    return (a[..., None] * b[..., None, :, :]).sum(-2)


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
        block = _crossing(dA, h).reshape(-1, h, h)
        d_readers = _outer(block, k_low * low).mul_(up)
        d_writers = _outer(block.mT, q_up * up).mul_(low)
        dq_up += d_readers
        dk_low += d_writers
        exponents.append((h, d_readers.mul_(q_up), d_writers.mul_(k_low)))
    for h, d_up, d_low in reversed(exponents):  # _decays backwards: a block becomes two
        (low_since, up_since), (low_until, _) = _halves(d_since, h), _halves(d_until, h)
        low_total, up_total = up_since.sum(1), low_until.sum(1)
        low_since[:, -1] += low_total
        up_since[:, -1] += up_total
        up_since += d_up
        low_until += d_low
    return dq, dk, d_since


# ---- either


def _weights(g: Tensor) -> Tensor | Decays:
    return _spans(g) if g.shape[-1] == 1 else _decays(g)


def _ends(weights: Tensor | Decays) -> tuple[Tensor, Tensor]:
    """(read, write), (..., C, w)."""
    if isinstance(weights, Tensor):
        return weights[..., :1, :].mT, weights[..., 1:, -1:]
    return weights[1]


def _scores(q: Tensor, k: Tensor, weights: Tensor | Decays) -> Tensor:
    """The decayed products q_i . P_ij k_j of every chunk, (..., C, C)."""
    if isinstance(weights, Tensor):
        P = weights[..., 1:, :]
        products = k @ q.mT
        return (products.mul_(P) if q.shape[2] == P.shape[2] else products * P).mT
    crossing, (read, _) = weights
    return _products(q.expand_as(read).contiguous(), k.expand_as(read).contiguous(), crossing)


def _scores_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    weights: Tensor | Decays,
    d_since: Tensor,
    d_until: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The scores again, and the gradients to q, k and g; the rest is as in _products_backward."""
    A = _scores(q, k, weights)
    if not isinstance(weights, Tensor):
        crossing, (read, _) = weights
        q, k = q.expand_as(read).contiguous(), k.expand_as(read).contiguous()
        return A, *_products_backward(q, k, crossing, do @ v.mT, d_since, d_until)
    dA = v @ do.mT  # transposed
    d_exponents = dA.new_empty(*dA.shape[:-2], *weights.shape[-2:])
    d_exponents[..., :1, :] = d_since.mT
    torch.mul(dA, A.mT, out=d_exponents[..., 1:, :])
    d_exponents[..., 1:, -1:] += d_until
    dg = _spans_backward(_sum_to(d_exponents, weights.shape))
    d_products = _sum_to(dA.mul_(weights[..., 1:, :]), (*q.shape[:-1], q.shape[-2]))
    return A, d_products.mT @ k, d_products @ q, dg


def _sum_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """sum_to_size, one axis at a time: on CPU 10 times as fast as two that do not touch."""
    for axis, size in enumerate(shape):
        x = x if x.shape[axis] == size else x.sum(axis, keepdim=True)
    return x


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """out <- out + a @ b."""
    out.flatten(0, -3).baddbmm_(a.flatten(0, -3), b.flatten(0, -3))
    return out


def _start(k: Tensor, v: Tensor, state: Tensor | None) -> Tensor:
    return state_or_zeros(state, v, v.shape[0], v.shape[2], k.shape[3], v.shape[3])


def _carry(
    state: Tensor, decay: Tensor, added: Tensor, order: int = 1
) -> tuple[Tensor, Tensor]:
    """The states each chunk meets, and the last: a chunk does state <- decay * state + added."""
    met = []
    decays = decay.expand(*added.shape[:-2], *decay.shape[-2:])
    for a, b in list(zip(decays.unbind(-3), added.unbind(-3), strict=True))[::order]:
        met.append(state)
        state = torch.addcmul(b, a, state)
    return torch.stack(met[::order], -3), state


def _grouped(x: Tensor, rows: slice, steps: slice, G: int, dtype: torch.dtype) -> Tensor:
    """A tile's chunks, (b, G, heads of the group, n, C, X)."""
    return _chunks(_of_tile(x, rows, steps), dtype).unflatten(1, (G, -1))


def _tile_backward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, do: Tensor, S: Tensor, d_state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to q, k, v, g and the state before the tile, from that to the state behind it.

    S, the states before each chunk, and their gradients are transposed, (.., V, K).
    """
    weights = _weights(g)
    read, write = _ends(weights)
    keep = read[..., -1:, :]
    dS, d_state = _carry(d_state, keep, do.mT @ (read * q), -1)
    dq_read, dk_write = (do @ S).mul_(read), (v @ dS).mul_(write)
    d_since, d_until = q * dq_read, k * dk_write
    d_since[..., -1:, :] += keep * (S * dS).sum(-2, keepdim=True)  # what passes the whole chunk
    if g.shape[-1] == 1:
        d_since, d_until = d_since.sum(-1, keepdim=True), d_until.sum(-1, keepdim=True)
    A, dq, dk, dg = _scores_backward(q, k, v, do, weights, d_since, d_until)
    dv = _add_product((write * k) @ dS.mT, A.mT, do)
    dq, dk = (_sum_to(x, q.shape) + _sum_to(y, q.shape) for x, y in ((dq, dq_read), (dk, dk_write)))
    return dq, dk, dv, dg, d_state


def _step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float, state: Tensor):
    q_t, k_t, v_t, g_t = (x[:, 0].to(state.dtype) for x in (q, k, v, log_decay))
    q_t, k_t = (x.repeat_interleave(v.shape[2] // x.shape[1], 1) for x in (q_t, k_t))
    state = torch.addcmul(k_t[..., None] * v_t[..., None, :], g_t.exp()[..., None], state)
    return (scale * (q_t[..., None, :] @ state)).mT[..., 0][:, None].to(v.dtype), state


@torch.library.custom_op(f"{NAMESPACE}::scan_chunked", mutates_args=())
def scan_chunked(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The chunked form; q and k (B, T, G, K), log_decay (B or 1, T or 1, H, K or 1)."""
    with without_autocast(v):
        (B, T, H, _), G, dtype = v.shape, q.shape[2], accumulation_dtype(v)
        states = _start(k, v, initial_state)
        if T == 1:  # a decoding step has nothing to gather into matmuls
            return _step(q, k, v, log_decay, scale, states)
        o, finals = v.new_empty(v.shape), torch.empty_like(states)
        for rows, segments in _tiles(B, T, H):
            state = states[rows].unflatten(1, (G, -1))
            for steps in segments:
                Q, K, V, g = (_grouped(x, rows, steps, G, dtype) for x in (q, k, v, log_decay))
                weights = _weights(g)
                read, write = _ends(weights)  # (b or 1, G, H / G, n or 1, C, w)
                keep = read[..., -1:, :].mT
                starts, state = _carry(state, keep, (write * K).mT @ V)
                out = _add_product((read * Q) @ starts, _scores(Q, K, weights), V)
                _store(out.flatten(1, 2), o[rows, steps], scale)
            finals[rows] = state.flatten(1, 2)
        return o, finals


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
        (B, T, H, _), G, dtype = v.shape, q.shape[2], accumulation_dtype(v)
        states, d_initial = _start(k, v, initial_state), dstate.to(dtype, copy=True)
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        dlog_decay = torch.zeros_like(log_decay, dtype=dtype, memory_format=torch.contiguous_format)
        for rows, segments in _tiles(B, T, H):
            state, met = states[rows].unflatten(1, (G, -1)).mT, []
            for steps in segments:
                K, V, g = (_grouped(x, rows, steps, G, dtype) for x in (k, v, log_decay))
                read, write = _ends(_weights(g))
                starts, state = _carry(state, read[..., -1:, :], V.mT @ (write * K))
                met.append(starts)  # transposed, (.., V, K)
            d_state = d_initial[rows].unflatten(1, (G, -1)).mT
            for steps, S in zip(reversed(segments), reversed(met), strict=True):
                tensors = (q, k, v, log_decay, do)
                Q, K, V, g, dO = (_grouped(x, rows, steps, G, dtype) for x in tensors)
                *grads, dg, d_state = _tile_backward(scale * Q, K, V, g, dO, S, d_state)
                outs = ((dq, scale), (dk, 1.0), (dv, 1.0))
                for dx, (out, factor) in zip(grads, outs, strict=True):
                    _store(dx.flatten(1, 2), out[rows, steps], factor)
                _add(dg.flatten(1, 2), dlog_decay, rows, steps)
            d_initial[rows] = d_state.mT.flatten(1, 2)
        return dq, dk, dv, dlog_decay.to(log_decay.dtype), d_initial


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
    (B, T, H, V), K = v, q[-1]
    return B * T * H * (2 * min(CHUNK, T) * (K + V) + 4 * K * V)


def _backward_flops(do, dstate, q, k, v, *_, **__) -> int:
    """C (6 K + 4 V) + 10 K V per step and head: the ten matmuls; 2.5 times forward if K = V."""
    (B, T, H, V), K = v, q[-1]
    return B * T * H * (min(CHUNK, T) * (6 * K + 4 * V) + 10 * K * V)


register_flops("scan_chunked", _forward_flops)
register_flops("scan_chunked_backward", _backward_flops)
