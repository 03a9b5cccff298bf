"""selective_scan on a GPU: the operator over the kernels in selective_sweep.py.

One or two launches forward and as many backward, and two sums over partial gradients: over the
tiles of channels for B and C, over the parts of time for A and D. So results repeat bit for bit.
Kept for the backward pass are the inputs and the state before every INTERVAL steps.
"""

import torch
from torch import Tensor

from .interface import NAMESPACE, register_flops
from .launch import Tile, cdiv, contiguous, device_of, launch
from .parts import parts_of
from .selective_scan_chunked import _backward_flops, _forward_flops
from .selective_sweep import advance, retreat
from .tiles import tile_of
from .tuning import tuned

STEPS = 8  # held in registers at a time: 16 would spill
INTERVAL = 64  # steps from one state that is kept to the next; redone in the cache backwards
WARPS = 8  # that each processor should have to run
SEGMENTS = 32  # of a sequence at most: each folds up all the others on its side


class Sweeps:
    """The launches of one call: what they have in common."""

    def __init__(
        self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, cu_seqlens: Tensor | None
    ) -> None:
        self.x, self.delta, self.B, self.C = (_in_rows(z) for z in (x, delta, B, C))
        self.batch, self.T, self.D = x.shape
        self.N, self.cu_seqlens = A.shape[1], cu_seqlens
        self.device = device_of(x)
        # It is read once in every block of steps: then channels are better innermost.
        self.A = A.mT.contiguous().mT if self.T > STEPS else A
        self.parts = parts_of(self.batch, self.T, cu_seqlens, self._steps())
        self.split = self.parts.steps < self.T

    def _steps(self) -> int:
        """The length of parts that keeps every processor busy; all of T if that gains little."""
        wanted = max(1, WARPS * self.device.processors // self.tiles("backward"))
        steps = max(cdiv(self.batch * self.T, wanted), cdiv(self.T, SEGMENTS))
        steps = cdiv(steps, INTERVAL) * INTERVAL
        return steps if 3 * steps <= self.T else self.T

    def tile(self, direction: str) -> Tile:
        return tile_of(self.device, f"selective {direction}", self.D, self.x.dtype)

    def tiles(self, direction: str) -> int:
        return cdiv(self.D, self.tile(direction).block)

    def empty(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape, dtype=torch.float32)

    def states(self) -> Tensor:
        """Room for a state of every part, channels innermost."""
        return self.empty(self.parts.number, self.N, self.D)

    def launch(self, kernel, direction: str, tensors: tuple, counts: tuple, **rows: Tensor) -> None:
        rows |= {"x": self.x, "delta": self.delta, "B": self.B, "C": self.C}
        tile = self.tile(direction)
        launch(
            kernel,
            self.parts.number * self.tiles(direction),
            tile,
            *(*tensors, self.cu_seqlens, *counts, self.parts.sequences, self.parts.steps),
            *(*(z.stride(0) for z in rows.values()), *self.A.stride()),
            **{f"{name}_time": z.stride(1) for name, z in rows.items()},
            D=self.D,
            N=self.N,
            BLOCK=tile.block,
            STEPS=STEPS,
            INTERVAL=INTERVAL,
        )

    def advance(self, skip, initial, y, final, checkpoints, hold, kept, added) -> None:
        inputs = self.x, self.delta, self.A, self.B, self.C, skip, initial
        tensors = *inputs, y, final, checkpoints, hold, kept, added
        self.launch(advance, "forward", tensors, (self.T,))

    def retreat(self, dy, dfinal, skip, checkpoints, gradients, slots, hold, kept, added) -> None:
        inputs = dy, dfinal, self.x, self.delta, self.A, self.B, self.C, skip, checkpoints
        tensors = *inputs, *gradients, slots, hold, kept, added
        counts = self.T, self.batch * self.T
        self.launch(retreat, "backward", tensors, counts, dy=dy)


def _in_rows(x: Tensor) -> Tensor:
    """Rows whose distance in time, which is compiled in, is no matter of the batch's size."""
    if x.stride(2) == 1 and x.stride(0) >= x.stride(1):
        return x
    # Not contiguous(), which leaves the strides of one single step as they are.
    return x.clone(memory_format=torch.contiguous_format)


def _checkpoints(x: Tensor, N: int, cu_seqlens: Tensor | None) -> tuple[int, int, int]:
    sequences = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    batch, T, D = x.shape
    slots = batch * cdiv(T, INTERVAL) if sequences is None else T // INTERVAL + sequences
    return slots, N, D


@tuned
def forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Y, the final state, and the states before every INTERVAL steps if they are to be kept."""
    call = Sweeps(x, delta, A, B, C, cu_seqlens)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    final = call.empty(call.parts.sequences, call.D, call.N)
    checkpoints = call.empty(*_checkpoints(x, call.N, cu_seqlens)) if keep else call.empty(0)
    initial = contiguous(initial_state)
    skip = contiguous(D)
    kept = added = None
    if call.split:
        kept, added = call.empty(call.parts.number, call.D), call.states()
        call.advance(None, None, None, None, None, added, kept, None)
    saved = checkpoints if keep else None
    call.advance(skip, initial, y, final, saved, call.states(), kept, added)
    return y, final, checkpoints


@tuned
def backward(
    dy: Tensor,
    dstate: Tensor,
    checkpoints: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, delta, A, B, C, D (empty without D) and the initial state."""
    call = Sweeps(x, delta, A, B, C, cu_seqlens)
    dy, dstate, skip = _in_rows(dy), dstate.contiguous(), contiguous(D)
    kept = added = None
    if call.split:
        kept, added = call.empty(call.parts.number, call.D), call.states()
        call.retreat(dy, None, None, None, (None,) * 6, None, added, kept, None)
    dx, ddelta = (torch.empty_like(z, memory_format=torch.contiguous_format) for z in (x, delta))
    d_initial = call.empty(call.parts.sequences, call.D, call.N)
    d_rates = call.empty(call.parts.number, call.N + 1, call.D)
    d_weights = call.empty(2, call.tiles("backward"), *B.shape)
    slots = call.empty(call.parts.number, cdiv(min(call.T, INTERVAL), STEPS), call.N, call.D)
    gradients = dx, ddelta, d_initial, d_rates, *d_weights
    call.retreat(dy, dstate, skip, checkpoints, gradients, slots, call.states(), kept, added)
    d_rates, (dB, dC) = d_rates.sum(0), d_weights.sum(1)
    dA = d_rates[: call.N].mT.to(A.dtype, memory_format=torch.contiguous_format, copy=True)
    dD = x.new_empty(0) if D is None else d_rates[call.N].to(D.dtype, copy=True)
    return dx, ddelta, dA, dB.to(B.dtype, copy=True), dC.to(C.dtype, copy=True), dD, d_initial


selective_scan_triton = torch.library.custom_op(
    f"{NAMESPACE}::selective_scan_triton", forward, mutates_args=()
)
_selective_scan_backward = torch.library.custom_op(
    f"{NAMESPACE}::selective_scan_triton_backward", backward, mutates_args=()
)


@selective_scan_triton.register_fake
def _(x, delta, A, B, C, D, initial_state, cu_seqlens, keep):
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    final = x.new_empty(sequences, *A.shape, dtype=torch.float32)
    shape = _checkpoints(x, A.shape[1], cu_seqlens) if keep else 0
    return x.new_empty(x.shape), final, x.new_empty(shape, dtype=torch.float32)


@_selective_scan_backward.register_fake
def _(dy, dstate, checkpoints, x, delta, A, B, C, D, cu_seqlens):
    dD = x.new_empty(0) if D is None else D.new_empty(D.shape)
    like = (z.new_empty(z.shape) for z in (x, delta, A, B, C))
    return *like, dD, dstate.new_empty(dstate.shape, dtype=torch.float32)


def _save(ctx, inputs, output) -> None:
    *tensors, initial_state, cu_seqlens, _ = inputs
    ctx.state_dtype = None if initial_state is None else initial_state.dtype
    ctx.save_for_backward(output[2], *tensors, cu_seqlens)


def _differentiate(ctx, dy: Tensor, dstate: Tensor, _: Tensor | None):
    saved = ctx.saved_tensors  # once: activation checkpointing gives them out no second time
    *grads, dD, d_initial = _selective_scan_backward(dy, dstate, *saved)
    dD = None if saved[-2] is None else dD
    d_initial = None if ctx.state_dtype is None else d_initial.to(ctx.state_dtype)
    return *grads, dD, d_initial, None, None


selective_scan_triton.register_autograd(_differentiate, setup_context=_save)
register_flops("selective_scan_triton", _forward_flops)
register_flops("selective_scan_triton_backward", _backward_flops)
