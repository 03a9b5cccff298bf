"""Selective scan (S6): a diagonal state per channel, whose step size depends on the input.

    h_t[d, n] = exp(delta_t[d] A[d, n]) h_{t-1}[d, n] + delta_t[d] B_t[n] x_t[d]
    y_t[d]    = sum_n C_t[n] h_t[d, n] + D[d] x_t[d]

B batch, T time, D channels, N states per channel; as in the paper, A, B, C and D are also tensors.
h_0 is the initial state, zeros when absent. The state's decay is the exact zero-order hold, the
input's weight is Euler's delta B: Mamba's choice.

Source: Gu and Dao 2023 (Mamba, algorithm 2).

Every (d, n) has a decay of its own, so there is no matmul to gain. The chunked form has two levels:
n chunks of c steps, both near sqrt(T). One sweep finds what each chunk adds to the state, all
chunks side by side; a second one, over chunks, finds the state each starts from, since a chunk's
whole decay is exp(A * sum of its delta); a third does the steps again, now with the right start. It
takes about 2 c + n vectorised steps in place of T, and twice the arithmetic. The backward pass does
the same in both directions of time.

Memory: beyond SHORT steps a tensor of (B, T, D, N) never exists. Both passes hold (B, n, D, N) and
work on a few chunks at a time (WORKSPACE elements, one chunk at least). Between the passes only the
inputs are kept.
"""

from collections.abc import Iterator

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

SHORT = 256  # steps; up to here one chunk is faster than two levels
WORKSPACE = {"cpu": 1 << 19, "other": 1 << 24}  # elements: cache size; kernels to launch


def selective_scan_reference(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The two lines above, one step at a time, by ordinary autograd: the specification."""
    dtype = accumulation_dtype(x)
    state = _initial(x, A, initial_state)  # (B, D, N)
    A = A.to(dtype)
    outputs = []
    steps = (z.to(dtype).unbind(1) for z in (x, delta, B, C))
    for x_t, delta_t, B_t, C_t in zip(*steps, strict=True):
        decay = (delta_t[:, :, None] * A).exp()
        state = decay * state + delta_t[:, :, None] * B_t[:, None, :] * x_t[:, :, None]
        y_t = (C_t[:, None, :] * state).sum(-1)
        outputs.append(y_t if D is None else y_t + D.to(dtype) * x_t)
    return torch.stack(outputs, 1).to(x.dtype), state


def _initial(x: Tensor, A: Tensor, state: Tensor | None) -> Tensor:
    if state is not None:
        return state.to(accumulation_dtype(x))
    return x.new_zeros(x.shape[0], *A.shape, dtype=accumulation_dtype(x))


def _chunks(z: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T, X) -> (c, n, B, X); padded steps are zero: delta = 0 keeps the state as it is."""
    T = z.shape[1]
    c = T if T <= SHORT else round(T**0.5)
    padded = F.pad(z.to(dtype), (0, 0, 0, -T % c))
    return padded.unflatten(1, (-1, c)).permute(2, 1, 0, 3).contiguous()


def _steps(z: Tensor, T: int, dtype: torch.dtype) -> Tensor:
    """(c, n, B, X) -> (B, T, X): undoes _chunks."""
    return z.permute(2, 1, 0, 3).flatten(1, 2)[:, :T].to(dtype).contiguous()


def _spans(delta: Tensor, N: int) -> Iterator[slice]:
    """The chunks, as many at a time as WORKSPACE holds."""
    c, n, *rest = delta.shape
    elements = WORKSPACE["cpu" if delta.is_cpu else "other"]
    size = max(1, elements // (c * N * rest[0] * rest[1]))
    return (slice(start, start + size) for start in range(0, n, size))


def _outer(z: Tensor, w: Tensor) -> Tensor:
    return z[..., None, :] * w[..., :, None]  # (..., D), (..., N) -> (..., N, D)


def _forwards(decay: Tensor, h: Tensor, start: Tensor) -> Tensor:
    """h_t <- decay_t h_{t-1} + h_t in place, from `start`; (c, chunks, B, N, D)."""
    for t in range(len(h)):
        start = h[t].addcmul_(decay[t], start)
    return h


def _backwards(decay: Tensor, dh: Tensor, end: Tensor) -> Tensor:
    """dh_t <- decay_{t+1} dh_{t+1} + dh_t in place; `end` is what comes after the last."""
    dh[-1] += end
    for t in reversed(range(len(dh) - 1)):
        dh[t].addcmul_(decay[t + 1], dh[t + 1])
    return dh


def _carry(state: Tensor, decay: Tensor, added: Tensor) -> Tensor:
    """The states before each chunk, (n, B, N, D): a chunk does state <- decay * state + added."""
    met = [state]
    for a, b in zip(decay[:-1], added[:-1], strict=True):
        met.append(torch.addcmul(b, a, met[-1]))
    return torch.stack(met)


def _starts(delta: Tensor, A: Tensor, drive: Tensor, B: Tensor, initial: Tensor) -> Tensor:
    """The state that each chunk starts from, (n, B, N, D)."""
    if delta.shape[1] == 1:
        return initial[None]
    added = []
    for span in _spans(delta, len(A)):
        decay = (delta[:, span, :, None, :] * A).exp()
        h = _outer(drive[:, span], B[:, span])
        added.append(_forwards(decay, h, torch.zeros_like(h[0]))[-1].clone())
    return _carry(initial, (delta.sum(0)[..., None, :] * A).exp(), torch.cat(added))


def _ends(delta: Tensor, A: Tensor, dy: Tensor, C: Tensor, dstate: Tensor) -> Tensor:
    """The gradient that reaches each chunk from behind, (n, B, N, D)."""
    if delta.shape[1] == 1:
        return dstate[None]
    added = []
    for span in _spans(delta, len(A)):
        decay = (delta[:, span, :, None, :] * A).exp()
        dh = _outer(dy[:, span], C[:, span])
        added.append(decay[0] * _backwards(decay, dh, torch.zeros_like(dh[0]))[0])
    kept = (delta.sum(0)[..., None, :] * A).exp()
    return _carry(dstate, kept.flip(0), torch.cat(added).flip(0)).flip(0)


@torch.library.custom_op(f"{NAMESPACE}::selective_scan", mutates_args=())
def _selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The two-level form."""
    with without_autocast(x):
        T, dtype = x.shape[1], accumulation_dtype(x)
        if T == 1:  # a decoding step has nothing to sweep over
            return selective_scan_reference(x, delta, A, B, C, D, initial_state)
        X, S, Bs, Cs = (_chunks(z, dtype) for z in (x, delta, B, C))
        initial = _initial(x, A, initial_state).mT.contiguous()
        A, drive = A.to(dtype).mT.contiguous(), S * X
        starts = _starts(S, A, drive, Bs, initial)
        Y, state = torch.zeros_like(X) if D is None else D.to(dtype) * X, starts[0]
        for span in _spans(S, len(A)):
            decay = (S[:, span, :, None, :] * A).exp()
            h = _forwards(decay, _outer(drive[:, span], Bs[:, span]), starts[span])
            Y[:, span] += (Cs[:, span, :, None, :] @ h)[..., 0, :]
            state = h[-1, -1]
        return _steps(Y, T, x.dtype), state.mT.clone(memory_format=torch.contiguous_format)


@torch.library.custom_op(f"{NAMESPACE}::selective_scan_backward", mutates_args=())
def _selective_scan_backward(
    dy: Tensor,
    dstate: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, delta, A, B, C, D (empty without D) and the initial state.

    With dh_t the whole gradient to h_t, and u_t = dh_t decay_t h_{t-1} that of delta_t A:
    ddelta_t = sum_n A u_t + x_t dh_t B_t,  dA = sum_t delta_t u_t,  dB_t = sum_d dh_t delta_t x_t.
    """
    with without_autocast(x):
        T, dtype = x.shape[1], accumulation_dtype(x)
        X, S, Bs, Cs, dY = (_chunks(z, dtype) for z in (x, delta, B, C, dy))
        decay_rate, drive = A.to(dtype).mT.contiguous(), S * X
        initial = _initial(x, A, initial_state).mT.contiguous()
        starts = _starts(S, decay_rate, drive, Bs, initial)
        ends = _ends(S, decay_rate, dY, Cs, dstate.to(dtype).mT.contiguous())
        d_drive, dS, dA = torch.empty_like(X), torch.empty_like(S), torch.zeros_like(decay_rate)
        dB, dC, d_initial = torch.empty_like(Bs), torch.empty_like(Cs), dstate
        for span in _spans(S, len(decay_rate)):
            decay = (S[:, span, :, None, :] * decay_rate).exp()
            h = _forwards(decay, _outer(drive[:, span], Bs[:, span]), starts[span])
            dh = _backwards(decay, _outer(dY[:, span], Cs[:, span]), ends[span])
            dC[:, span] = (h @ dY[:, span, :, :, None])[..., 0]
            dB[:, span] = (dh @ drive[:, span, :, :, None])[..., 0]
            d_drive[:, span] = (Bs[:, span, :, None, :] @ dh)[..., 0, :]
            u = decay.mul_(dh)
            if span.start == 0:
                d_initial = u[0, 0].mT.clone(memory_format=torch.contiguous_format)
            u[1:] *= h[:-1]
            u[0] *= starts[span]
            dS[:, span] = (u * decay_rate).sum(-2)
            dA += u.mul_(S[:, span, :, None, :]).sum((0, 1, 2))
        dS += X * d_drive
        dX, dD = S * d_drive, x.new_empty(0)
        if D is not None:
            dX += D.to(dtype) * dY
            dD = (X * dY).sum((0, 1, 2)).to(D.dtype)
        grads = ((dX, x), (dS, delta), (dB, B), (dC, C))
        dx, ddelta, dB, dC = (_steps(dz, T, z.dtype) for dz, z in grads)
        dA = dA.mT.to(A.dtype, memory_format=torch.contiguous_format)
        return dx, ddelta, dA, dB, dC, dD, d_initial


@_selective_scan.register_fake
def _(x, delta, A, B, C, D, initial_state):
    return x.new_empty(x.shape), x.new_empty(x.shape[0], *A.shape, dtype=accumulation_dtype(x))


@_selective_scan_backward.register_fake
def _(dy, dstate, x, delta, A, B, C, D, initial_state):
    dD = x.new_empty(0) if D is None else D.new_empty(D.shape)
    like = (z.new_empty(z.shape) for z in (x, delta, A, B, C))
    return *like, dD, dstate.new_empty(dstate.shape)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, dy: Tensor, dstate: Tensor):
    *_, D, initial_state = ctx.saved_tensors
    *grads, dD, d_initial = _selective_scan_backward(dy, dstate, *ctx.saved_tensors)
    return (
        *grads,
        None if D is None else dD,
        None if initial_state is None else d_initial.to(initial_state.dtype),
    )


_selective_scan.register_autograd(_differentiate, setup_context=_save)


def _forward_flops(x, delta, A, B, C, D, *_, **__) -> int:
    """9 B T D N, the count usual for this scan, and 2 B T D for the skip: element-wise work."""
    batch, T, channels = x
    return batch * T * channels * (9 * A[1] + (0 if D is None else 2))


def _backward_flops(dy, dstate, x, delta, A, B, C, D, *_, **__) -> int:
    """20 B T D N: 5 for h again, 3 for dh, 2 each for dB, dC, B dh, u, dS, dA; skip 4 B T D."""
    batch, T, channels = x
    return batch * T * channels * (20 * A[1] + (0 if D is None else 4))


register_flops("selective_scan", _forward_flops)
register_flops("selective_scan_backward", _backward_flops)


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Filter every channel through N decaying states, with steps that depend on the input.

        h_t[d, n] = exp(delta_t[d] A[d, n]) h_{t-1}[d, n] + delta_t[d] B_t[n] x_t[d]
        y_t[d]    = sum_n C_t[n] h_t[d, n] + D[d] x_t[d]

    The state is summed in float32 whatever the inputs' dtype (float64 when x is float64), and
    gradients flow to every tensor, the initial state included, and from the final state. Only the
    inputs are kept for the backward pass; temporaries grow with sqrt(T).

    Args:
        x: input, (B, T, D), T >= 1.
        delta: step sizes, (B, T, D), positive (not checked): any softplus is already applied.
        A: rates, (D, N), negative (not checked); delta * A is a natural logarithm.
        B: input weights, (B, T, N).
        C: output weights, (B, T, N).
        D: weights of the skip from x to y, (D,); no skip when None.
        initial_state: h_0, (B, D, N); zeros when None.
        cu_seqlens: the borders 0 = c_0 <= ... <= c_M = T of M sequences packed into a batch of 1,
            (M + 1,), integers; the states then lead with M. They are read on the host.
        backend: "reference" (step loop), "chunked" (two-level block scan, any device), "auto" (the
            fastest there is: now chunked).

    Returns:
        y (B, T, D) in x's dtype, and the final state (B, D, N).

    Raises:
        ValueError: a shape, dtype, device, cu_seqlens or backend is not as said above.

    Source: Gu and Dao 2023.
    """
    arguments = Arguments("selective_scan")
    arguments.tensor("x", x, "B T D")
    arguments.tensor("delta", delta, "B T D")
    arguments.tensor("A", A, "D N")
    arguments.tensor("B", B, "B T N")
    arguments.tensor("C", C, "B T N")
    if D is not None:
        arguments.tensor("D", D, "D")
    bounds = arguments.packing(cu_seqlens)
    if initial_state is not None:
        shape = "B D N" if bounds is None else "sequences D N"
        arguments.tensor("initial_state", initial_state, shape)
    reference = arguments.backend(backend) == "reference"
    operator = selective_scan_reference if reference else _selective_scan
    if bounds is None:
        return operator(x, delta, A, B, C, D, initial_state)

    def run(span: slice, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return operator(x[:, span], delta[:, span], A, B[:, span], C[:, span], D, state)

    return over_sequences(run, bounds, initial_state)
