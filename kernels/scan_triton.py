"""scan on a GPU: the operator over the kernels in sweep.py and, for a few steps, steps.py."""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .interface import NAMESPACE, register_flops
from .launch import (
    Device,
    Tile,
    cdiv,
    contiguous,
    device_of,
    launch,
    power_of_2,
    precision,
    product_dtype,
    strides,
    unit_stride,
)
from .scan_chunked import _backward_flops, _forward_flops
from .steps import KINDS, step_by_step
from .sweep import sweep
from .tiles import checked_in, nearest_architecture, tile_of
from .tuning import tuned

# The most channels, K or V, that registers hold beside chunks of 64 steps; beyond, 16 steps.
WIDEST = {"sm_80": 64, "sm_90": 256, "sm_100": 128, "gfx942": 128}
STEPS = 16  # no more, and no gradient asked for: step by step
SEGMENTS = 16  # at most: each folds up all those before it


class Role(NamedTuple):
    """A row of the table in sweep.py."""

    name: str
    on_output: bool
    reverse: bool


O = Role("o", False, False)  # noqa: E741
DQ = Role("dq", True, False)
DK = Role("dk", True, True)
DV = Role("dv", False, True)


class Sweeps:
    """The launches of one call: what they have in common."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        scale: float,
        cu_seqlens: Tensor | None,
    ) -> None:
        (B, T, G, K), (H, V) = q.shape, v.shape[2:]
        self.kind = KINDS[0 if log_decay is None else log_decay.dim()]
        self.dtype = product_dtype(q, k, v)
        self.q, self.k, self.v = (self.ready(x) for x in (q, k, v))
        self.log_decay = None if log_decay is None else unit_stride(log_decay)
        self.scale, self.cu_seqlens = scale, cu_seqlens
        self.T, self.H, self.K, self.V, self.share, self.tokens = T, H, K, V, H // G, B * T
        self.sequences = B if cu_seqlens is None else len(cu_seqlens) - 1
        self.device = device_of(v)
        self.C = min(self._chunk(), max(16, power_of_2(T)))
        self.segment, self.segments = self._segments()

    def ready(self, x: Tensor) -> Tensor:
        """In the dtype of the products, channels contiguous; other strides are as they come."""
        return unit_stride(x.to(self.dtype))

    def _chunk(self) -> int:
        """The length of chunks."""
        if self.kind == "vector" or self.dtype == torch.float32:
            return 16  # so that no product has 64 rows, see sweep.py
        widest = WIDEST[nearest_architecture(self.device.architecture)]
        return 64 if max(self.K, self.V) <= widest else 16

    def _segments(self) -> tuple[int, int]:
        """The length and the number of segments that give every processor two programs.

        By the table: forward and backward agree on them, whatever is tuned between the two.
        """
        tiles = cdiv(self.V, checked_in(*self.row(O)).block)
        wanted = 2 * self.device.processors // (self.sequences * self.H * tiles)
        count = min(wanted, self.T // (4 * self.C), SEGMENTS)
        if self.cu_seqlens is not None or count <= 1:
            return self.T, 1
        length = cdiv(cdiv(self.T, count), self.C) * self.C
        return length, cdiv(self.T, length)

    def tile(self, role: Role) -> Tile:
        """The table's tile; no wider than need be, and the same block for dq and dk.

        They share the buffer of dg, which has room for each block of K.
        """
        blocks = [tile_of(*self.row(r)).block for r in (DQ, DK) if role.on_output]
        tile = tile_of(*self.row(role))
        width = max(16, power_of_2(self.K if role.on_output else self.V))
        return tile._replace(block=min(tile.block, width, *blocks))

    def row(self, role: Role) -> tuple[Device, str, int, torch.dtype]:
        decay = "vector" if self.kind == "vector" else "scalar"
        return self.device, f"scan {role.name} {decay}", max(self.K, self.V), self.dtype

    def tiles(self, role: Role) -> int:
        return cdiv(self.K if role.on_output else self.V, self.tile(role).block)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.v.new_empty(shape, dtype=dtype)

    def per_segment(self) -> tuple[Tensor | None, Tensor | None]:
        """Room for what each segment adds to the state, and how much of it it keeps."""
        if self.segments == 1:
            return None, None
        kept = self.K if self.kind == "vector" else 1
        shape = self.sequences, self.H, self.segments
        return self.empty(*shape, self.K, self.V), self.empty(*shape, kept)

    def sweep(
        self,
        role: Role,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        w: Tensor | None = None,
        *,
        out: Tensor | None = None,
        dg: Tensor | None = None,
        start: Tensor | None = None,
        finish: Tensor | None = None,
        checkpoints: Tensor | None = None,
        states: Tensor | None = None,
        added: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:
        tile, g = self.tile(role), self.log_decay
        places = [strides(x) for x in (a, b, c, w, g)]
        contracted = self.V if role.on_output else self.K
        launch(
            sweep,
            self.sequences * self.H * self.segments * self.tiles(role),
            tile,
            *(a, b, c, g, w, out, dg, start, finish, checkpoints, states, *added, self.cu_seqlens),
            *(self.T, self.tokens, self.segment, self.segments, self.scale, self.H, self.share),
            *(stride for place in places for stride in place),
            K=self.K,
            V=self.V,
            KIND=self.kind,
            REVERSE=role.reverse,
            ON_OUTPUT=role.on_output,
            C=self.C,
            BLOCK_D=max(16, power_of_2(contracted)),
            BLOCK_E=tile.block,
            PRECISION=precision(self.dtype),
            SUM=tl.float64 if self.dtype == torch.float32 else tl.float32,
        )


@tuned
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    scale: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """o, the final state, and the state before each segment if it is to be kept."""
    call = Sweeps(q, k, v, log_decay, scale, cu_seqlens)
    q, k, values = call.q, call.k, call.v
    o = torch.empty_like(v, memory_format=torch.contiguous_format)
    state = call.empty(call.sequences, call.H, call.K, call.V)
    checkpoints = call.empty(0)
    if call.T <= STEPS and not keep:
        start = contiguous(initial_state)
        step_by_step(q, k, values, call.log_decay, None, scale, o, start, state, cu_seqlens)
        return o, state, checkpoints
    added = call.per_segment()
    if call.segments > 1:
        call.sweep(O, q, k, values, added=added)
    if keep and call.segments > 1:
        checkpoints = call.empty(call.sequences, call.H, call.segments, call.K, call.V)
    call.sweep(
        O,
        q,
        k,
        values,
        out=o,
        start=contiguous(initial_state),
        finish=state,
        checkpoints=checkpoints if checkpoints.numel() else None,
        added=added,
    )
    return o, state, checkpoints


@tuned
def backward(
    do: Tensor,
    dstate: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    scale: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    checkpoints: Tensor,
    decays: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to q, k, v, log_decay (empty unless `decays`) and the initial state."""
    call = Sweeps(q, k, v, log_decay, scale, cu_seqlens)
    Q, K, V, do = call.q, call.k, call.v, call.ready(do)
    B, T, G, _ = q.shape
    shared = {"dtype": torch.float32 if call.share > 1 else call.dtype}
    dq, dk = (call.empty(B, T, call.H, call.K, **shared) for _ in "qk")
    dv = torch.empty_like(v, memory_format=torch.contiguous_format)
    d_initial = call.empty(call.sequences, call.H, call.K, call.V)
    dg = states = None
    if decays:
        chunks = T // call.C + call.sequences if cu_seqlens is not None else B * cdiv(T, call.C)
        states = call.empty(chunks, call.H, call.K, call.V, dtype=call.dtype)
        vector = call.kind == "vector"
        dg = call.empty(*((B, T, call.H, call.K) if vector else (call.tiles(DQ), B, T, call.H)))
    added = call.per_segment()
    kept = {"checkpoints": checkpoints if call.segments > 1 else None, "added": added}
    call.sweep(
        DQ, do, V, K, Q, out=dq, dg=dg, states=states, start=contiguous(initial_state), **kept
    )
    call.sweep(
        DK, V, do, Q, K, out=dk, dg=dg, states=states, start=dstate.contiguous(), added=added
    )
    call.sweep(DV, K, Q, do, out=dv, start=dstate.contiguous(), finish=d_initial, added=added)
    if call.share > 1:
        dq, dk = (x.view(B, T, G, call.share, call.K).sum(3) for x in (dq, dk))
    return dq.to(q.dtype), dk.to(k.dtype), dv, _decay_gradient(dg, log_decay, do), d_initial


def _decay_gradient(dg: Tensor | None, log_decay: Tensor | None, do: Tensor) -> Tensor:
    if dg is None or log_decay is None:
        return do.new_empty(0) if log_decay is None else log_decay.new_empty(0)
    if log_decay.dim() < 4:  # the sum over tiles of K
        dg = dg.sum(0) if len(dg) > 1 else dg[0]
    if log_decay.dim() == 1:
        dg = dg.sum((0, 1))
    return dg.to(log_decay.dtype)


scan_triton = torch.library.custom_op(f"{NAMESPACE}::scan_triton", forward, mutates_args=())
_scan_backward = torch.library.custom_op(
    f"{NAMESPACE}::scan_triton_backward", backward, mutates_args=()
)


@scan_triton.register_fake
def _(q, k, v, log_decay, scale, initial_state, cu_seqlens, keep):
    call = Sweeps(q, k, v, log_decay, scale, cu_seqlens)
    shape = call.sequences, call.H, call.K, call.V
    kept = call.empty(0)
    if keep and call.segments > 1:
        kept = call.empty(*shape[:2], call.segments, *shape[2:])
    return v.new_empty(v.shape), call.empty(*shape), kept


@_scan_backward.register_fake
def _(do, dstate, q, k, v, log_decay, scale, initial_state, cu_seqlens, checkpoints, decays):
    none = do.new_empty(0) if log_decay is None else log_decay.new_empty(0)
    dg = none if log_decay is None or not decays else log_decay.new_empty(log_decay.shape)
    d_initial = dstate.new_empty(dstate.shape, dtype=torch.float32)
    return *(x.new_empty(x.shape) for x in (q, k, v)), dg, d_initial


def _save(ctx, inputs, output) -> None:
    q, k, v, log_decay, ctx.scale, initial_state, cu_seqlens, _ = inputs
    ctx.save_for_backward(q, k, v, log_decay, initial_state, cu_seqlens, output[2])


def _differentiate(ctx, do: Tensor, dstate: Tensor, _: Tensor | None):
    q, k, v, log_decay, initial_state, cu_seqlens, checkpoints = ctx.saved_tensors
    decays = ctx.needs_input_grad[3]
    *grads, dg, d_initial = _scan_backward(
        do, dstate, q, k, v, log_decay, ctx.scale, initial_state, cu_seqlens, checkpoints, decays
    )
    if initial_state is not None:
        initial_state = d_initial.to(initial_state.dtype)
    return *grads, dg if decays else None, None, initial_state, None, None


scan_triton.register_autograd(_differentiate, setup_context=_save)
register_flops("scan_triton", _forward_flops)
register_flops("scan_triton_backward", _backward_flops)
