"""delta_scan in matmuls: the chunkwise form, on any device PyTorch has.

In a chunk of C steps that starts from the state S, every step adds k_i u_i^T to the decayed state:

    u_i = beta_i (v_i - read_i S^T k_i - sum_{j<i} G_ij u_j)           G_ij = (k_i . k_j) P_ij
    o_i = scale * (read_i S^T q_i + sum_{j<=i} A_ij u_j)               A_ij = (q_i . k_j) P_ij
    S'  = read_C S + sum_j P_Cj k_j u_j^T                              S' starts the next chunk

    P_ij = exp(g_{j+1} + ... + g_i) for i >= j and 0 otherwise,        read_i = exp(g_1 + ... + g_i)

The first line is a unit lower triangular system. With G taken strictly below its diagonal, its
inverse X = (1 + beta G)^-1 needs no state and is formed for all chunks at once (the WY form of a
product of C factors 1 - beta_i k_i k_i^T); then, from chunk to chunk, E = V - read K S and
U = X (beta E). To form the chunk's K x K transition of S as well is more work.

Every exponent is a sum of log-decays, never the difference of two cumulative sums: no factor
exceeds 1, and g = -inf (forget everything) is exact. The gradient of g_t is formed the same way.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .chunks import chunks, steps
from .interface import (
    NAMESPACE,
    accumulation_dtype,
    register_flops,
    state_or_zeros,
    without_autocast,
)

CHUNK = 32  # steps; measured on CPU against 16, 64 and 128


class _Chunks(NamedTuple):
    """What both passes need of every chunk, (B, H, n, C, .); the letters are above."""

    Q: Tensor
    K: Tensor
    V: Tensor
    beta: Tensor
    P: Tensor
    read: Tensor
    K_write: Tensor  # P_Cj k_j
    A: Tensor
    G: Tensor
    X: Tensor


def _decays(g: Tensor) -> tuple[Tensor, Tensor]:
    """P and read, for g (..., C, 1)."""
    C = g.shape[-2]
    sums = g.expand(*g.shape[:-1], C).tril(-1).cumsum(-2)  # column j: g_{j+1} + ... + g_i
    return sums.exp_().tril_(), g.cumsum(-2).exp()


def _decays_backward(d_sums: Tensor, d_read: Tensor) -> Tensor:
    """The gradient of g_t, from those of the exponents of P and read: all that crosses step t."""
    later = torch.ones_like(d_sums[0, 0, 0]).triu()
    return (later @ d_sums).tril_(-1).sum(-1, keepdim=True) + later @ d_read


def _prepare(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> _Chunks:
    C, dtype = min(CHUNK, v.shape[1]), accumulation_dtype(v)
    Q, K, V, b, g = (chunks(x, C, dtype) for x in (q, k, v, beta, log_decay))
    P, read = _decays(g)
    A, G = (Q @ K.mT).mul_(P), (K @ K.mT).mul_(P)
    one = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device).expand_as(G)
    # Neither the diagonal of beta G nor what is above it is read.
    X = torch.linalg.solve_triangular(b * G, one, upper=False, unitriangular=True)
    return _Chunks(Q, K, V, b, P, read, P[..., -1:, :].mT * K, A, G, X)


def _write(c: _Chunks, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E, U and S of every chunk, from the first to the last, and the final state."""
    E, U, S = [], [], []
    inputs = (x.unbind(2) for x in (c.K, c.V, c.beta, c.read, c.K_write, c.X))
    for K, V, beta, read, K_write, X in zip(*inputs, strict=True):
        S.append(state)
        E.append(torch.addcmul(V, read, K @ state, value=-1))
        U.append(X @ (beta * E[-1]))
        state = torch.addcmul(K_write.mT @ U[-1], read[..., -1:, :], state)
    return torch.stack(E, 2), torch.stack(U, 2), torch.stack(S, 2), state


def _write_backward(c: _Chunks, dO: Tensor, dstate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of beta E and S' of every chunk, from the last to the first, and of S_0."""
    dR, dS = [], []
    dU_read, dS_read = c.A.mT @ dO, c.Q.mT @ (c.read * dO)
    tensors = (dU_read, dS_read, c.K, c.beta, c.read, c.K_write, c.X)
    inputs = (x.unbind(2)[::-1] for x in tensors)
    for dU, dS_c, K, beta, read, K_write, X in zip(*inputs, strict=True):
        dS.append(dstate)
        dR.append(X.mT @ (dU + K_write @ dstate))
        kept = torch.addcmul(dS_c, read[..., -1:, :], dstate)
        dstate = kept - K.mT @ (beta * read * dR[-1])
    return torch.stack(dR[::-1], 2), torch.stack(dS[::-1], 2), dstate


def _system_backward(
    c: _Chunks, dO: Tensor, dR: Tensor, E: Tensor, U: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of A, G and beta: (1 + beta G) U = beta E, and A U is read.

    What dA holds above the diagonal meets a zero of P.
    """
    dA, dR_U = dO @ U.mT, (dR @ U.mT).tril_(-1)
    dbeta = (dR * E).sum(-1, keepdim=True) - (dR_U * c.G).sum(-1, keepdim=True)
    return dA, -c.beta * dR_U, dbeta


def _start(k: Tensor, v: Tensor, state: Tensor | None) -> Tensor:
    return state_or_zeros(state, v, v.shape[0], v.shape[2], k.shape[3], v.shape[3])


def _step(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, scale: float, state: Tensor):
    dtype = state.dtype
    q_t, k_t, v_t, beta_t, g_t = (x[:, 0].to(dtype)[..., None, :] for x in (q, k, v, beta, g))
    state = g_t.exp() * state
    state = state + k_t.mT @ (beta_t * (v_t - k_t @ state))
    return (scale * (q_t @ state)).mT[..., 0][:, None].to(v.dtype), state


@torch.library.custom_op(f"{NAMESPACE}::delta_scan_chunked", mutates_args=())
def delta_scan_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    scale: float,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The chunked form; beta (B, T, H, 1), log_decay (B or 1, T, H, 1)."""
    with without_autocast(v):
        state = _start(k, v, initial_state)
        if v.shape[1] == 1:  # a decoding step has nothing to gather into matmuls
            return _step(q, k, v, beta, log_decay, scale, state)
        c = _prepare(q, k, v, beta, log_decay)
        _, U, S, state = _write(c, state)
        o = torch.addcmul(c.A @ U, c.read, c.Q @ S)
        return steps(scale * o, v.shape[1], v.dtype), state


@torch.library.custom_op(f"{NAMESPACE}::delta_scan_chunked_backward", mutates_args=())
def _delta_scan_backward(
    do: Tensor,
    dstate: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    scale: float,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to q, k, v, beta, log_decay and the initial state; the states are recomputed."""
    with without_autocast(v):
        dO = scale * chunks(do, min(CHUNK, v.shape[1]), accumulation_dtype(v))
        c = _prepare(q, k, v, beta, log_decay)
        E, U, S, _ = _write(c, _start(k, v, initial_state))
        dR, dS, d_initial = _write_backward(c, dO, dstate.to(dO.dtype))

        dV = c.beta * dR  # R = beta E
        dQ_read, dK_read = (dO @ S.mT).mul_(c.read), (dV @ S.mT).mul_(-c.read)
        dK_write = (U @ dS.mT).mul_(c.P[..., -1:, :].mT)
        dA, dG, dbeta = _system_backward(c, dO, dR, E, U)

        # An exponent's gradient is that of its exponential times the exponential.
        d_sums = torch.addcmul(dA * c.A, dG, c.G)
        d_sums[..., -1, :] += (c.K * dK_write).sum(-1)
        d_read = (c.Q * dQ_read).addcmul_(c.K, dK_read).sum(-1, keepdim=True)
        d_keep = S.flatten(-2)[..., None, :] @ dS.flatten(-2)[..., None]
        d_read[..., -1:, :] += c.read[..., -1:, :] * d_keep
        dg = _decays_backward(d_sums.sum_to_size(c.P.shape), d_read.sum_to_size(c.read.shape))
        dQK, dKK = dA.mul_(c.P), dG.mul_(c.P)
        dQ = (dQK @ c.K).add_(dQ_read)
        dK = (dQK.mT @ c.Q).add_((dKK + dKK.mT) @ c.K).add_(dK_read).add_(dK_write)

        grads = ((dQ, q), (dK, k), (dV, v), (dbeta, beta), (dg, log_decay))
        dq, dk, dv, dbeta, dlog_decay = (steps(dx, x.shape[1], x.dtype) for dx, x in grads)
        return dq, dk, dv, dbeta, dlog_decay, d_initial


@delta_scan_chunked.register_fake
def _(q, k, v, beta, log_decay, scale, initial_state):
    B, _, H, V = v.shape
    state = v.new_empty(B, H, k.shape[3], V, dtype=accumulation_dtype(v))
    return v.new_empty(v.shape), state


@_delta_scan_backward.register_fake
def _(do, dstate, q, k, v, beta, log_decay, scale, initial_state):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, beta, log_decay, dstate))


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.scale, initial_state = inputs
    ctx.save_for_backward(*tensors, initial_state)


def _differentiate(ctx, do: Tensor, dstate: Tensor):
    *tensors, initial_state = ctx.saved_tensors
    *grads, d_initial = _delta_scan_backward(do, dstate, *tensors, ctx.scale, initial_state)
    return *grads, None, None if initial_state is None else d_initial.to(initial_state.dtype)


delta_scan_chunked.register_autograd(_differentiate, setup_context=_save)


def _forward_flops(q, k, v, *_, **__) -> int:
    """4 C (K + V) + C^2 + 6 K V per step and head, C = min(32, T): matmuls and the inverse."""
    (B, T, H, V), K, C = v, q[-1], min(CHUNK, v[1])
    return B * T * H * (4 * C * (K + V) + C * C + 6 * K * V)


def _backward_flops(do, dstate, q, k, v, *_, **__) -> int:
    """10 C (K + V) + C^2 + 16 K V per step and head: 2 C (2 K + V) + C^2 + 4 K V of it again."""
    (B, T, H, V), K, C = v, q[-1], min(CHUNK, v[1])
    return B * T * H * (10 * C * (K + V) + C * C + 16 * K * V)


register_flops("delta_scan_chunked", _forward_flops)
register_flops("delta_scan_chunked_backward", _backward_flops)
