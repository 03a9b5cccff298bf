"""delta_scan on a GPU: the operator over the kernels in delta_sweep.py and steps.py.

Two launches forward and four backward, which begin by solving the chunks' systems and writing the
states again: kept for the backward pass are the inputs.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from .delta_scan_chunked import _backward_flops, _forward_flops
from .delta_sweep import gather, systems, unwrite, write
from .interface import NAMESPACE, register_flops
from .launch import (
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
from .parts import parts_of
from .steps import KINDS, step_by_step
from .tiles import tile_of
from .tuning import tuned

STEPS = 16  # no more, and no gradient asked for: step by step


class Chunks:
    """The launches of one call: what they have in common."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        log_decay: Tensor | None,
        scale: float,
        cu_seqlens: Tensor | None,
    ) -> None:
        (B, T, G, K), (H, V) = q.shape, v.shape[2:]
        self.dtype = product_dtype(q, k, v)
        self.q, self.k, self.v = (self.ready(x) for x in (q, k, v))
        self.beta, self.log_decay = beta, log_decay
        self.kind = KINDS[0 if log_decay is None else log_decay.dim()]
        self.scale, self.cu_seqlens = scale, cu_seqlens
        self.T, self.H, self.K, self.V, self.share = T, H, K, V, H // G
        self.C = 16 if self.dtype == torch.float32 or T <= 16 else 32
        _, self.chunks, self.sequences = parts_of(B, T, cu_seqlens, self.C)
        self.device = device_of(v)

    def ready(self, x: Tensor) -> Tensor:
        """In the dtype of the products, channels contiguous; other strides are as they come."""
        return unit_stride(x.to(self.dtype))

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.v.new_empty(shape, dtype=dtype or self.dtype)

    def launch(self, kernel, count: int, strided: tuple, others: tuple, **constants: Any) -> None:
        """`count` programs; of the kernels that sweep over chunks, as many for each tile of V."""
        tile = tile_of(self.device, f"delta {kernel.__name__}", max(self.K, self.V), self.dtype)
        width = max(16, power_of_2(self.K))
        if kernel is systems:
            constants |= {"BLOCK_K": min(tile.block, width)}
        else:
            block = min(tile.block, max(16, power_of_2(self.V)))
            constants |= {"BLOCK_K": width, "V": self.V, "BLOCK_V": block}
        if kernel in (write, unwrite):
            count *= cdiv(self.V, constants["BLOCK_V"])
        strided = *strided, self.beta, self.log_decay
        launch(
            kernel,
            count,
            tile,
            *(*strided, *others, self.cu_seqlens, self.T, self.scale, self.H, self.share),
            *(stride for x in strided for stride in strides(x)),
            K=self.K,
            KIND=self.kind,
            C=self.C,
            PRECISION=precision(self.dtype),
            SUM=tl.float64 if self.dtype == torch.float32 else tl.float32,
            **constants,
        )

    def systems(self) -> tuple[Tensor, Tensor]:
        """X and scale A X of every chunk."""
        X, AX = (self.empty(self.chunks, self.H, self.C, self.C) for _ in range(2))
        self.launch(
            systems,
            self.chunks * self.H,
            (self.q, self.k),
            (X, AX, self.sequences),
            LEVELS=self.C.bit_length() - 1,
            EXACT=precision(torch.float32),
        )
        return X, AX

    def write(self, X: Tensor, AX: Tensor, *tensors: Tensor | None) -> None:
        """`tensors`: out; or E and the states before each chunk; the initial and final state."""
        count = self.sequences * self.H
        self.launch(write, count, (self.q, self.k, self.v), (X, AX, *tensors))

    def unwrite(self, do: Tensor, X: Tensor, AX: Tensor, *tensors: Tensor) -> None:
        """`tensors`: dv, dR, the gradients of the states, that of the final, the initial one."""
        count = self.sequences * self.H
        self.launch(unwrite, count, (do, self.q, self.k), (X, AX, *tensors))

    def gather(self, do: Tensor, *tensors: Tensor | None) -> None:
        """`tensors`: X, E, dR, the states and their gradients; dq, dk, dbeta, dg."""
        others = *tensors, self.sequences
        self.launch(gather, self.chunks * self.H, (do, self.q, self.k), others)


@tuned
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    scale: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    few: bool,
) -> tuple[Tensor, Tensor]:
    """The output and the final state; step by step if there are `few` and no gradient is asked."""
    call = Chunks(q, k, v, beta, log_decay, scale, cu_seqlens)
    o = torch.empty_like(v, memory_format=torch.contiguous_format)
    state = call.empty(call.sequences, call.H, call.K, call.V, dtype=torch.float32)
    start = contiguous(initial_state)
    if few:
        given = call.q, call.k, call.v, log_decay, beta
        step_by_step(*given, scale, o, start, state, cu_seqlens)
    else:
        call.write(*call.systems(), o, None, None, start, state)
    return o, state


@tuned
def backward(
    do: Tensor,
    dstate: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    scale: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    decays: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to q, k, v, beta, log_decay (empty unless `decays`) and the initial state."""
    call = Chunks(q, k, v, beta, log_decay, scale, cu_seqlens)
    do = call.ready(do)
    B, T, G, _ = q.shape
    X, AX = call.systems()
    E, dR = (call.empty(*v.shape) for _ in range(2))
    S, dS = (call.empty(call.chunks, call.H, call.V, call.K) for _ in range(2))
    call.write(X, AX, None, E, S, contiguous(initial_state), None)
    dv = torch.empty_like(v, memory_format=torch.contiguous_format)
    d_initial = call.empty(call.sequences, call.H, call.K, call.V, dtype=torch.float32)
    call.unwrite(do, X, AX, dv, dR, dS, dstate.contiguous(), d_initial)
    summed = torch.float32 if call.share > 1 else call.dtype
    dq, dk = (call.empty(B, T, call.H, call.K, dtype=summed) for _ in "qk")
    dbeta = torch.empty_like(beta, memory_format=torch.contiguous_format)
    dg = call.empty(B, T, call.H, dtype=torch.float32) if decays else None
    call.gather(do, X, E, dR, S, dS, dq, dk, dbeta, dg)
    if call.share > 1:
        dq, dk = (x.view(B, T, G, call.share, call.K).sum(3) for x in (dq, dk))
    return dq.to(q.dtype), dk.to(k.dtype), dv, dbeta, _decay_gradient(dg, log_decay, do), d_initial


def _decay_gradient(dg: Tensor | None, log_decay: Tensor | None, do: Tensor) -> Tensor:
    if dg is None or log_decay is None:
        return do.new_empty(0) if log_decay is None else log_decay.new_empty(0)
    return (dg.sum((0, 1)) if log_decay.dim() == 1 else dg).to(log_decay.dtype)


delta_scan_triton = torch.library.custom_op(
    f"{NAMESPACE}::delta_scan_triton", forward, mutates_args=()
)
_delta_scan_backward = torch.library.custom_op(
    f"{NAMESPACE}::delta_scan_triton_backward", backward, mutates_args=()
)


@delta_scan_triton.register_fake
def _(q, k, v, beta, log_decay, scale, initial_state, cu_seqlens, few):
    sequences = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    state = v.new_empty(sequences, v.shape[2], k.shape[3], v.shape[3], dtype=torch.float32)
    return v.new_empty(v.shape), state


@_delta_scan_backward.register_fake
def _(do, dstate, q, k, v, beta, log_decay, scale, initial_state, cu_seqlens, decays):
    none = do.new_empty(0) if log_decay is None else log_decay.new_empty(0)
    dg = none if log_decay is None or not decays else log_decay.new_empty(log_decay.shape)
    d_initial = dstate.new_empty(dstate.shape, dtype=torch.float32)
    return *(x.new_empty(x.shape) for x in (q, k, v, beta)), dg, d_initial


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.scale, initial_state, cu_seqlens, _ = inputs
    ctx.save_for_backward(*tensors, initial_state, cu_seqlens)


def _differentiate(ctx, do: Tensor, dstate: Tensor):
    *tensors, initial_state, cu_seqlens = ctx.saved_tensors
    decays = ctx.needs_input_grad[4]
    *grads, dg, d_initial = _delta_scan_backward(
        do, dstate, *tensors, ctx.scale, initial_state, cu_seqlens, decays
    )
    if initial_state is not None:
        initial_state = d_initial.to(initial_state.dtype)
    return *grads, dg if decays else None, None, initial_state, None, None


delta_scan_triton.register_autograd(_differentiate, setup_context=_save)
register_flops("delta_scan_triton", _forward_flops)
register_flops("delta_scan_triton_backward", _backward_flops)
