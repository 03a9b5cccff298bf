"""selective_scan in blocks of steps, on any device PyTorch has.

Every (d, n) has a decay of its own, so there is no matmul to gain, and the work is memory traffic
and dispatch. A block of steps is taken at a time: the block's decays and inputs are formed at once,
the steps run over them while they are in the cache, and the outputs leave in one product. The
states lie as (N, D), channels innermost, so that the outer products with B and C run along whole
rows. The backward pass takes the blocks from last to first, does each block's steps again from the
state it began with, and then the same recurrence backwards in time.

Memory: a tensor of (B, T, D, N) never exists. Kept for the backward pass are the inputs and the
state before each block. All blocks share their buffers, and so the views of them, each of which
takes as long to make as a step to run.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunk_decays import LOG2_E
from .chunks import some
from .interface import (
    NAMESPACE,
    accumulation_dtype,
    register_flops,
    state_or_zeros,
    without_autocast,
)

STEPS = 8  # of a block; or more, if it is then still no larger than
BLOCK = 1 << 16  # states: a quarter MiB of float32, of which the backward pass holds three
LEAST = -80.0  # exponents above it do not underflow, even in float32

Base = tuple[Callable[[Tensor], Tensor], float]
Steps = tuple[Tensor, ...]


def _rows(batch: int, states: int) -> int:
    """How many rows of the batch are taken together."""
    return min(batch, max(1, BLOCK // (STEPS * states)))


def _block(rows: int, states: int) -> int:
    """The most steps of one block."""
    return max(STEPS, BLOCK // (rows * states))


def _new_starts(x: Tensor, A: Tensor) -> Tensor:
    """Room for the states before each block, (blocks, B, N, D)."""
    (batch, T, D), N = x.shape, A.shape[1]
    blocks = -(-T // _block(_rows(batch, D * N), D * N))
    return x.new_empty(blocks, batch, N, D, dtype=accumulation_dtype(x))


def _tiles(starts: Tensor) -> list[slice]:
    """Rows of the batch."""
    batch, states = starts.shape[1], starts[0, 0].numel()
    rows = _rows(batch, states)
    return some([slice(row, row + rows) for row in range(0, batch, rows)], starts)


def _cut(z: Tensor, blocks: int, dtype: torch.dtype) -> Tensor:
    """(B, T, X) -> (blocks, steps B, X); padded steps are zero: they keep the state as it is."""
    z = F.pad(z, (0, 0, 0, -z.shape[1] % blocks)) if z.shape[1] % blocks else z
    return z.to(dtype).transpose(0, 1).reshape(blocks, -1, z.shape[2]).contiguous()


def _room(out: Tensor, like: Tensor) -> Tensor:
    """Where the blocks of out are written: out itself, if it lies as they do."""
    shape = *like.shape[:2], out.shape[2]
    if len(out) == 1 and out.shape[1] == shape[0] * shape[1] and out.dtype == like.dtype:
        return out.view(shape)
    return like.new_empty(shape)


def _join(z: Tensor, out: Tensor) -> None:
    """Undoes _cut, into out, unless z is already there."""
    batch, T, X = out.shape
    if z.data_ptr() != out.data_ptr():
        out.copy_(z.view(-1, batch, X)[:T].transpose(0, 1))


def _transposed(z: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, (.., D, N) <-> (.., N, D)."""
    return z.mT.to(dtype, memory_format=torch.contiguous_format, copy=True)


def _base(delta: Tensor, A: Tensor) -> Base:
    """The exponential that the decays are taken with, and the factor of its exponents.

    On CPU exp is faster than exp2, and up to 200 times slower where its result underflows.
    """
    if delta.is_cpu and delta.amax() * A.amin() > LEAST:
        return torch.exp_, 1.0
    return torch.exp2_, LOG2_E


def _row(z: Tensor) -> Tensor:
    return z[..., None, :]


def _column(z: Tensor) -> Tensor:
    return z[..., None]


def _run(before: Steps, decay: Steps, h: Steps) -> None:
    """In place h_t <- decay_t before_t + h_t, one after the other: before_t may be h_{t-1}."""
    if h[0].is_cpu or h[0].is_meta:  # a loop in C++, in order; elsewhere perhaps one kernel for all
        torch._foreach_addcmul_(h, decay, before)  # pyright: ignore[reportPrivateImportUsage]
        return
    for before_t, decay_t, h_t in zip(before, decay, h, strict=True):
        h_t.addcmul_(decay_t, before_t)


@torch.library.custom_op(f"{NAMESPACE}::selective_scan_chunked", mutates_args=())
def selective_scan_chunked(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and the states before each block, (blocks, B, N, D)."""
    with without_autocast(x):
        dtype, base = accumulation_dtype(x), _base(delta, A)
        y, starts = x.new_empty(x.shape), _new_starts(x, A)
        states = _transposed(state_or_zeros(initial_state, x, len(x), *A.shape), dtype)
        A = A.to(dtype).mT.contiguous()
        for rows in _tiles(starts):
            X, S, Bs, Cs = (_cut(z[rows], len(starts), dtype) for z in (x, delta, B, C))
            Y = _room(y[rows], X)
            _forward((A, S, S * X, Bs, Cs), base, starts[:, rows], states[rows], Y)
            if D is not None:
                Y.addcmul_(D.to(dtype), X)
            _join(Y, y[rows])
        return y, _transposed(states, dtype), starts


def _forward(
    inputs: tuple[Tensor, ...], base: Base, starts: Tensor, state: Tensor, Y: Tensor
) -> None:
    """All blocks of some rows: starts and Y are written, the state is brought to the end."""
    A, S, drive, B, C = inputs
    (exp_, factor), rows = base, len(state)
    A = factor * A
    decay, h = state.new_empty(2, S.shape[1], *A.shape)
    decays, hs = decay.split(rows), h.split(rows)
    blocks = (starts, _row(S), _row(drive), _column(B), _row(C), _row(Y))
    before = state
    for start, S_c, drive_c, B_c, C_c, Y_c in some([*zip(*blocks, strict=True)], h):
        start.copy_(before)
        exp_(torch.mul(S_c, A, out=decay))
        torch.mul(drive_c, B_c, out=h)
        _run((start, *hs[:-1]), decays, hs)
        torch.bmm(C_c, h, out=Y_c)
        before = hs[-1]
    state.copy_(before)


@torch.library.custom_op(f"{NAMESPACE}::selective_scan_chunked_backward", mutates_args=())
def _selective_scan_backward(
    dy: Tensor,
    dstate: Tensor,
    starts: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, delta, A, B, C, D (empty without D) and the initial state."""
    with without_autocast(x):
        dtype, base = accumulation_dtype(x), _base(delta, A)
        rate, d_states = A.to(dtype).mT.contiguous(), _transposed(dstate, dtype)
        dx, ddelta, dB, dC = (z.new_empty(z.shape) for z in (x, delta, B, C))
        dA, dD = torch.zeros_like(rate), rate.new_zeros(0 if D is None else len(D))
        for rows in _tiles(starts):
            X, S, Bs, Cs, dY = (_cut(z[rows], len(starts), dtype) for z in (x, delta, B, C, dy))
            outs = [z[rows] for z in (dx, ddelta, dB, dC)]
            d_drive, dS, dBs, dCs = grads = [_room(out, X) for out in outs]
            inputs = (rate, starts[:, rows], S, S * X, Bs, Cs, dY)
            _backward(inputs, base, d_states[rows], dA, grads)
            dS.addcmul_(X, d_drive)
            dX = d_drive.mul_(S)
            if D is not None:
                dX.addcmul_(D.to(dtype), dY)
                dD += (X * dY).sum((0, 1))
            for dz, out in zip((dX, dS, dBs, dCs), outs, strict=True):
                _join(dz, out)
        dD = x.new_empty(0) if D is None else dD.to(D.dtype)
        return dx, ddelta, _transposed(dA, A.dtype), dB, dC, dD, _transposed(d_states, dtype)


def _backward(
    inputs: tuple[Tensor, ...], base: Base, end: Tensor, dA: Tensor, grads: Sequence[Tensor]
) -> None:
    """All blocks of some rows, last to first: grads are written, end and dA brought up to date.

    With dh_t the whole gradient to h_t, and u_t = dh_t decay_t h_{t-1} that of delta_t A:
    ddelta_t = sum_n A u_t + x_t dh_t B_t,  dA = sum_t delta_t u_t,  dB_t = sum_d dh_t delta_t x_t.
    """
    (rate, starts, S, drive, B, C, dY), (d_drive, dS, dB, dC) = inputs, grads
    (exp_, factor), rows = base, len(end)
    A = factor * rate
    # One step more than a block has: h of the step before it, decay and dh of the one behind.
    hs, decays, dhs = buffers = end.new_empty(3, S.shape[1] + rows, *A.shape)
    before, h, decay, dh = hs[:-rows], hs[rows:], decays[:-rows], dhs[:-rows]
    columns_h, columns_dh = h.mT, dh.mT
    hs, decays, dhs = (z.split(rows) for z in buffers)
    up = hs[:-1], decays[:-1], hs[1:]
    down = dhs[:0:-1], decays[:0:-1], dhs[-2::-1]
    decays[-1].fill_(1)
    dhs[-1].copy_(end)
    dAs = A.new_empty(len(starts), *A.shape)
    blocks = (
        *(starts, _row(S), _row(drive), _column(B), _row(B), _column(C), _row(dY)),
        *(_row(d_drive), dS, _row(dB), _row(dC), dAs),
    )
    for start, S_c, drive_c, B_c, rows_B, C_c, dY_c, d_drive_c, dS_c, dB_c, dC_c, dA_c in some(
        [*zip(*(z.unbind()[::-1] for z in blocks), strict=True)], h
    ):
        hs[0].copy_(start)
        exp_(torch.mul(S_c, A, out=decay))
        torch.mul(drive_c, B_c, out=h)
        _run(*up)
        torch.bmm(dY_c, columns_h, out=dC_c)
        torch.mul(dY_c, C_c, out=dh)
        _run(*down)
        torch.bmm(drive_c, columns_dh, out=dB_c)
        torch.bmm(rows_B, dh, out=d_drive_c)
        u = decay.mul_(dh)
        dhs[-1].copy_(decays[0])
        u.mul_(before)
        torch.sum(torch.mul(u, rate, out=dh), 1, out=dS_c)
        torch.sum(torch.mul(u, S_c, out=h), 0, out=dA_c)
    dA += dAs.sum(0)
    end.copy_(dhs[-1])


@selective_scan_chunked.register_fake
def _(x, delta, A, B, C, D, initial_state):
    dtype = accumulation_dtype(x)
    return x.new_empty(x.shape), x.new_empty(len(x), *A.shape, dtype=dtype), _new_starts(x, A)


@_selective_scan_backward.register_fake
def _(dy, dstate, starts, x, delta, A, B, C, D):
    dD = x.new_empty(0) if D is None else D.new_empty(D.shape)
    like = (z.new_empty(z.shape) for z in (x, delta, A, B, C))
    return *like, dD, starts.new_empty(x.shape[0], *A.shape)


def _save(ctx, inputs, output) -> None:
    *tensors, initial_state = inputs
    ctx.state_dtype = None if initial_state is None else initial_state.dtype
    ctx.save_for_backward(output[2], *tensors)


def _differentiate(ctx, dy: Tensor, dstate: Tensor, _: Tensor | None):
    saved = ctx.saved_tensors  # once: activation checkpointing gives them out no second time
    *grads, dD, d_initial = _selective_scan_backward(dy, dstate, *saved)
    return (
        *grads,
        None if saved[-1] is None else dD,
        None if ctx.state_dtype is None else d_initial.to(ctx.state_dtype),
    )


selective_scan_chunked.register_autograd(_differentiate, setup_context=_save)


def _forward_flops(x, delta, A, B, C, D, *_, **__) -> int:
    """9 B T D N, the count usual for this scan, and 2 B T D for the skip: element-wise work."""
    batch, T, channels = x
    return batch * T * channels * (9 * A[1] + (0 if D is None else 2))


def _backward_flops(dy, dstate, starts, x, delta, A, B, C, D, *_, **__) -> int:
    """20 B T D N: 5 for h again, 3 for dh, 2 each for dB, dC, B dh, u, dS, dA; skip 4 B T D."""
    batch, T, channels = x
    return batch * T * channels * (20 * A[1] + (0 if D is None else 4))


register_flops("selective_scan_chunked", _forward_flops)
register_flops("selective_scan_chunked_backward", _backward_flops)
