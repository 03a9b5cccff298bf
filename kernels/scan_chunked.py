"""scan in matmuls: the chunked form, on any device PyTorch has.

n chunks of C steps, w the width of the decay (1: one per head, K: one per channel). With
P_ij = exp(g_{j+1} + ... + g_i) for i >= j and 0 otherwise, a chunk that starts from S does

    o_i = scale * (sum_j (q_i . P_ij k_j) v_j + S^T (read_i * q_i))    read_i = exp(g_1 + ... + g_i)
    S'  = Diag(read_C) S + sum_j (write_j * k_j) v_j^T         write_j = exp(g_{j+1} + ... + g_C)

How P is formed, and its gradient, is chunk_decays.py's. A few chunks are taken at a time: memory
beyond inputs and outputs does not grow with T, but for the states before the chunks in the backward
pass, (T / C) K V numbers a head of the rows at hand.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .chunk_decays import (
    Decays,
    decays,
    products,
    products_backward,
    spans,
    spans_backward,
    sum_to,
)
from .chunks import chunks
from .interface import (
    NAMESPACE,
    accumulation_dtype,
    register_flops,
    state_or_zeros,
    without_autocast,
)

CHUNK = 64  # steps; measured on CPU against 32 and 128
TILE = 128  # chunks of one head taken at a time: (64, 64) matrices of float32 make 2 MiB


def _store(x: Tensor, out: Tensor, factor: float = 1.0) -> None:
    """Undoes chunks: factor * x, (B, H, n, C, X), into out, (B, T, H, X)."""
    n, T = x.shape[2], out.shape[1]
    steps = out.unflatten(1, (n, T // n)).permute(0, 3, 1, 2, 4)
    torch.mul(x[..., : T // n, :], factor, out=steps)


def _tiles(B: int, T: int, H: int) -> Iterator[tuple[slice, list[slice]]]:
    """Rows of the batch and their steps in order: whole chunks, then a rest."""
    most = max(1, TILE // H)  # chunks of all heads
    rows = min(B, max(1, most // -(-T // CHUNK)))
    span, whole = CHUNK * max(1, most // rows), T - T % CHUNK
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


def _weights(g: Tensor) -> Tensor | Decays:
    return spans(g) if g.shape[-1] == 1 else decays(g)


def _ends(weights: Tensor | Decays) -> tuple[Tensor, Tensor]:
    """(read, write), (..., C, w)."""
    if isinstance(weights, Tensor):
        return weights[..., :1, :].mT, weights[..., 1:, -1:]
    return weights[1]


def _repeated(x: Tensor, like: Tensor) -> Tensor:
    return x.expand_as(like).contiguous()


def _scores(q: Tensor, k: Tensor, weights: Tensor | Decays) -> Tensor:
    """The decayed products q_i . P_ij k_j of every chunk, (..., C, C)."""
    if isinstance(weights, Tensor):
        P = weights[..., 1:, :]
        scores = _rows_by_rows(k, q)
        return (scores.mul_(P) if q.shape[2] == P.shape[2] else scores * P).mT
    crossing, (read, _) = weights
    return products(_repeated(q, read), _repeated(k, read), crossing)


def _rows_by_rows(a: Tensor, b: Tensor) -> Tensor:
    """Products a @ b.mT; on CPU the copy costs less than it saves."""
    return a @ b.mT.contiguous()


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """In place, out <- out + a @ b."""
    out.flatten(0, -3).baddbmm_(a.flatten(0, -3), b.flatten(0, -3))
    return out


def _start(k: Tensor, v: Tensor, state: Tensor | None) -> Tensor:
    return state_or_zeros(state, v, v.shape[0], v.shape[2], k.shape[3], v.shape[3])


def _carry(state: Tensor, decay: Tensor, added: Tensor, order: int = 1) -> tuple[Tensor, Tensor]:
    """The states each chunk meets, and the last: a chunk does state <- decay * state + added."""
    met = []
    factors = decay.expand(*added.shape[:-2], *decay.shape[-2:])
    for a, b in list(zip(factors.unbind(-3), added.unbind(-3), strict=True))[::order]:
        met.append(state)
        state = torch.addcmul(b, a, state)
    return torch.stack(met[::order], -3), state


def _grouped(x: Tensor, rows: slice, steps: slice, G: int, dtype: torch.dtype) -> Tensor:
    """A tile's chunks, (b, G, heads of the group, n, C, X)."""
    x = _of_tile(x, rows, steps)
    C = min(CHUNK, 1 << (x.shape[1] - 1).bit_length())  # a power of two: chunks are halved below
    return chunks(x, C, dtype).unflatten(1, (G, -1))


def _tile_backward(
    q: Tensor,
    tile: tuple[Tensor, Tensor, Tensor | Decays],
    do: Tensor,
    S: Tensor,
    d_state: Tensor,
    decay_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients to q, k, v, g and the state before the tile, from that to the state behind it.

    S, the states before each chunk, and their gradients are transposed, (.., V, K).
    """
    k, v, weights = tile
    read, write = _ends(weights)
    keep = read[..., -1:, :]
    dS, d_state = _carry(d_state, keep, do.mT @ (read * q), -1)
    dq, dk = (do @ S).mul_(read), (v @ dS).mul_(write)  # through the states
    exponents = ()
    if decay_gradient:
        exponents = q * dq, k * dk
        exponents[0][..., -1:, :] += keep * (S * dS).sum(-2, keepdim=True)  # what passes all of it
    A = _scores(q, k, weights)
    dv = _add_product((write * k) @ dS.mT, A.mT, do)
    if isinstance(weights, Tensor):
        dA = _rows_by_rows(v, do)  # transposed
        dg = spans_backward(dA * A.mT, *exponents, weights.shape) if exponents else None
        d_products = sum_to(dA.mul_(weights[..., 1:, :]), (*q.shape[:-1], q.shape[-2]))
        dq = _add_product(sum_to(dq, q.shape), d_products.mT, k)
        return dq, _add_product(sum_to(dk, k.shape), d_products, q), dv, dg, d_state
    crossing, (read, _) = weights
    Q, K, dA = _repeated(q, read), _repeated(k, read), _rows_by_rows(do, v)
    within_q, within_k, dg = products_backward(Q, K, crossing, dA, *exponents)
    dq, dk = sum_to(dq.add_(within_q), q.shape), sum_to(dk.add_(within_k), k.shape)
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
    decay_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to q, k, v, log_decay and the initial state; the chunks' states are recomputed.

    That to log_decay is zero where it is neither wanted nor falls out on the way.
    """
    with without_autocast(v):
        (B, T, H, _), G, dtype = v.shape, q.shape[2], accumulation_dtype(v)
        states, d_initial = _start(k, v, initial_state), dstate.to(dtype, copy=True)
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        wanted = decay_gradient or log_decay.shape[3] > 1
        dlog_decay = torch.zeros_like(log_decay, dtype=dtype, memory_format=torch.contiguous_format)
        for rows, segments in _tiles(B, T, H):

            def load(steps: slice, rows: slice = rows) -> tuple[Tensor, Tensor, Tensor | Decays]:
                K, V, g = (_grouped(x, rows, steps, G, dtype) for x in (k, v, log_decay))
                return K, V, _weights(g)

            state, met, last = states[rows].unflatten(1, (G, -1)).mT, [], None
            for steps in segments:
                K, V, weights = last = load(steps)
                read, write = _ends(weights)
                starts, state = _carry(state, read[..., -1:, :], V.mT @ (write * K))
                met.append(starts)  # transposed, (.., V, K)
            d_state = d_initial[rows].unflatten(1, (G, -1)).mT
            for steps, S in zip(reversed(segments), reversed(met), strict=True):
                tile, last = last or load(steps), None  # the last one is still there
                Q, dO = (_grouped(x, rows, steps, G, dtype) for x in (q, do))
                *grads, dg, d_state = _tile_backward(scale * Q, tile, dO, S, d_state, wanted)
                outs = ((dq, scale), (dk, 1.0), (dv, 1.0))
                for dx, (out, factor) in zip(grads, outs, strict=True):
                    _store(dx.flatten(1, 2), out[rows, steps], factor)
                if dg is not None:
                    _add(dg.flatten(1, 2), dlog_decay, rows, steps)
            d_initial[rows] = d_state.mT.flatten(1, 2)
        return dq, dk, dv, dlog_decay.to(log_decay.dtype), d_initial


@scan_chunked.register_fake
def _(q, k, v, log_decay, scale, initial_state):
    B, _, H, V = v.shape
    state = v.new_empty(B, H, k.shape[3], V, dtype=accumulation_dtype(v))
    return v.new_empty(v.shape), state


@_scan_backward.register_fake
def _(do, dstate, q, k, v, log_decay, scale, initial_state, decay_gradient):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, log_decay, dstate))


def _save(ctx, inputs, output) -> None:
    q, k, v, log_decay, ctx.scale, initial_state = inputs
    ctx.save_for_backward(q, k, v, log_decay, initial_state)


def _differentiate(ctx, do: Tensor, dstate: Tensor):
    q, k, v, log_decay, initial_state = ctx.saved_tensors
    wanted = ctx.needs_input_grad[3]
    *grads, d_initial = _scan_backward(
        do, dstate, q, k, v, log_decay, ctx.scale, initial_state, wanted
    )
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
