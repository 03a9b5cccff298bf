"""selective_scan in blocks of steps, on any device PyTorch has.

Every (d, n) has a decay of its own, so there is no matmul to gain, and the work is memory traffic.
A block of steps is taken at a time: the block's decays and inputs are formed at once, the
steps run over them while they are in the cache, and the outputs leave in one product. The states
lie as (N, D), channels innermost, so that the outer products with B and C run along whole rows. The
backward pass takes the blocks from last to first, does each block's steps again from the state it
began with, and then the same recurrence backwards in time.

Memory: a tensor of (B, T, D, N) never exists. Kept for the backward pass are the inputs and the
state before each block.
"""

import torch
from torch import Tensor

from .chunk_decays import LOG2_E
from .interface import (
    NAMESPACE,
    accumulation_dtype,
    register_flops,
    state_or_zeros,
    without_autocast,
)

BLOCK = 64  # steps of all rows together, at least 8 of each: half a MiB for D = 128 and N = 16


def _block(batch: int) -> int:
    return max(8, BLOCK // batch)  # steps of one block


def _time_first(z: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T, X) <-> (T, B, X), contiguous."""
    return z.to(dtype).transpose(0, 1).contiguous()


def _decays(delta: Tensor, A: Tensor, out: Tensor) -> Tensor:
    """(c, B, D), (N, D) times log2(e) -> (c, B, N, D); exp is slow where its result underflows."""
    return torch.mul(delta[:, :, None, :], A, out=out[: len(delta)]).exp2_()


def _outer(z: Tensor, w: Tensor, out: Tensor) -> Tensor:
    """(c, B, D), (c, B, N) -> (c, B, N, D)."""
    return torch.mul(z[..., None, :], w[..., :, None], out=out[: len(z)])


def _states(decay: Tensor, h: Tensor, start: Tensor) -> Tensor:
    """h_t <- decay_t h_{t-1} + h_t in place, from `start`; (c, B, N, D)."""
    before = start
    for decay_t, h_t in zip(decay.unbind(), h.unbind(), strict=True):
        before = h_t.addcmul_(decay_t, before)
    return h


def _state_gradients(decay: Tensor, dh: Tensor, end: Tensor) -> Tensor:
    """dh_t <- dh_t + decay_{t+1} dh_{t+1} in place; `end` is what reaches the last from behind."""
    steps, decays = dh.unbind(), decay.unbind()
    after = steps[-1].add_(end)
    for dh_t, decay_after in zip(steps[-2::-1], decays[:0:-1], strict=True):
        after = dh_t.addcmul_(decay_after, after)
    return dh


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
        dtype = accumulation_dtype(x)
        X, S, Bs, Cs = (_time_first(z, dtype) for z in (x, delta, B, C))
        state = state_or_zeros(initial_state, x, x.shape[0], *A.shape).mT.contiguous()
        A, drive, c = LOG2_E * A.to(dtype).mT.contiguous(), S * X, _block(len(x))
        Y, starts = torch.empty_like(X), []
        buffers = X.new_empty(2, c, *state.shape)  # one for all blocks: it stays in the cache
        blocks = (z.split(c) for z in (S, drive, Bs, Cs, Y))
        for S_c, drive_c, B_c, C_c, Y_c in zip(*blocks, strict=True):
            starts.append(state)
            h = _states(_decays(S_c, A, buffers[0]), _outer(drive_c, B_c, buffers[1]), state)
            torch.matmul(C_c[:, :, None, :], h, out=Y_c[:, :, None, :])
            state = h[-1].clone()
        if D is not None:
            Y.addcmul_(D.to(dtype), X)
        return _time_first(Y, x.dtype), _transposed(state, state.dtype), torch.stack(starts)


def _transposed(z: Tensor, dtype: torch.dtype) -> Tensor:
    return z.mT.to(dtype, memory_format=torch.contiguous_format, copy=True)


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
    """Gradients to x, delta, A, B, C, D (empty without D) and the initial state.

    With dh_t the whole gradient to h_t, and u_t = dh_t decay_t h_{t-1} that of delta_t A:
    ddelta_t = sum_n A u_t + x_t dh_t B_t,  dA = sum_t delta_t u_t,  dB_t = sum_d dh_t delta_t x_t.
    """
    with without_autocast(x):
        dtype = accumulation_dtype(x)
        X, S, Bs, Cs, dY = (_time_first(z, dtype) for z in (x, delta, B, C, dy))
        rate, drive, c = A.to(dtype).mT.contiguous(), S * X, _block(len(x))
        rate2, buffers = LOG2_E * rate, X.new_empty(4, c, *starts.shape[1:])
        d_drive, dS, dA = torch.empty_like(X), torch.empty_like(S), torch.zeros_like(rate)
        dB, dC, end = torch.empty_like(Bs), torch.empty_like(Cs), dstate.to(dtype).mT.contiguous()
        tensors = (S, drive, Bs, Cs, dY, d_drive, dS, dB, dC)
        blocks = list(zip(starts, *(z.split(c) for z in tensors), strict=True))
        for start, S_c, drive_c, B_c, C_c, dY_c, d_drive_c, dS_c, dB_c, dC_c in reversed(blocks):
            decay = _decays(S_c, rate2, buffers[0])
            h = _states(decay, _outer(drive_c, B_c, buffers[1]), start)
            dh = _state_gradients(decay, _outer(dY_c, C_c, buffers[2]), end)
            torch.matmul(h, dY_c[..., None], out=dC_c[..., None])
            torch.matmul(dh, drive_c[..., None], out=dB_c[..., None])
            torch.matmul(B_c[:, :, None, :], dh, out=d_drive_c[:, :, None, :])
            u = decay.mul_(dh)
            end = u[0].clone()
            u[1:] *= h[:-1]
            u[0] *= start
            torch.sum(torch.mul(u, rate, out=buffers[3, : len(u)]), 2, out=dS_c)
            dA += u.mul_(S_c[:, :, None, :]).sum((0, 1))
        dS.addcmul_(X, d_drive)
        dX, dD = S * d_drive, x.new_empty(0)
        if D is not None:
            dX.addcmul_(D.to(dtype), dY)
            dD = (X * dY).sum((0, 1)).to(D.dtype)
        grads = ((dX, x), (dS, delta), (dB, B), (dC, C))
        dx, ddelta, dB, dC = (_time_first(dz, z.dtype) for dz, z in grads)
        return dx, ddelta, _transposed(dA, A.dtype), dB, dC, dD, _transposed(end, dtype)


@selective_scan_chunked.register_fake
def _(x, delta, A, B, C, D, initial_state):
    (batch, T, channels), N, dtype = x.shape, A.shape[1], accumulation_dtype(x)
    blocks = (T + _block(batch) - 1) // _block(batch)
    starts = x.new_empty(blocks, batch, N, channels, dtype=dtype)
    return x.new_empty(x.shape), x.new_empty(batch, channels, N, dtype=dtype), starts


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
    *grads, dD, d_initial = _selective_scan_backward(dy, dstate, *ctx.saved_tensors)
    return (
        *grads,
        None if ctx.saved_tensors[-1] is None else dD,
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
