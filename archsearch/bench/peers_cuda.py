"""Peers that need a GPU. Signatures read in fla-core 0.6.0, mamba-ssm 2.3 and causal-conv1d 1.7."""

from importlib import import_module
from typing import Any

from torch import Tensor

from archsearch.bench.adapter import Adapter
from archsearch.bench.cases import Tensors


def fla_chunk() -> dict[str, Adapter]:
    """flash-linear-attention's chunk kernels, in its layout, which is ours.

    The backward pass of chunk_simple_gla refuses to run on Hopper with Triton 3.4 to 3.7.0, which
    miscompiles it: it is then reported as failed, and fused_chunk stands for it.
    """
    ops: Any = import_module("fla.ops")
    conv: Any = import_module("fla.modules.causal_conv1d").causal_conv1d

    def none(t: Tensors) -> Tensor:
        return ops.chunk_linear_attn(t["q"], t["k"], t["v"], normalize=False)[0]

    def fixed(t: Tensors) -> Tensor:
        return ops.chunk_retention(t["q"], t["k"], t["v"])[0]

    def scalar(t: Tensors) -> Tensor:
        return ops.chunk_simple_gla(t["q"], t["k"], t["v"], g=t["log_decay"])[0]

    def vector(t: Tensors) -> Tensor:
        return ops.chunk_gla(t["q"], t["k"], t["v"], g=t["log_decay"])[0]

    def delta(t: Tensors) -> Tensor:
        return ops.chunk_gated_delta_rule(t["q"], t["k"], t["v"], g=t["log_decay"], beta=t["beta"])[
            0
        ]

    def plain_conv(t: Tensors) -> Tensor:
        return conv(t["x"], t["weight"], t["bias"])[0]

    def silu_conv(t: Tensors) -> Tensor:
        return conv(t["x"], t["weight"], t["bias"], activation="silu")[0]

    return {
        "scan.none": Adapter(none),
        "scan.fixed": Adapter(fixed),
        "scan.scalar": Adapter(scalar),
        "scan.vector": Adapter(vector),
        "delta_scan": Adapter(delta, refuse=_half_only),
        "causal_conv.none": Adapter(plain_conv),
        "causal_conv.silu": Adapter(silu_conv),
    }


def fla_fused() -> dict[str, Adapter]:
    """The same with the whole sequence in one kernel, which knows no decay per channel."""
    ops: Any = import_module("fla.ops")
    simple_gla: Any = import_module("fla.ops.simple_gla").fused_chunk_simple_gla

    def none(t: Tensors) -> Tensor:
        return simple_gla(t["q"], t["k"], t["v"])[0]

    def fixed(t: Tensors) -> Tensor:
        return ops.fused_chunk_retention(t["q"], t["k"], t["v"])[0]

    def scalar(t: Tensors) -> Tensor:
        return simple_gla(t["q"], t["k"], t["v"], g=t["log_decay"])[0]

    return {
        "scan.none": Adapter(none),
        "scan.fixed": Adapter(fixed),
        "scan.scalar": Adapter(scalar),
    }


def _half_only(t: Tensors) -> str | None:
    return "bfloat16 and float16 only" if t["q"].dtype.itemsize > 2 else None


def mamba_scan() -> dict[str, Adapter]:
    """Mamba's own CUDA kernel; (B, D, T) and (B, N, T), A and D in float32."""
    scan: Any = import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn

    def arrange(t: Tensors) -> Tensors:
        return t | {n: t[n].transpose(1, 2).contiguous() for n in ("x", "delta", "B", "C")}

    def call(t: Tensors) -> Tensor:
        return scan(t["x"], t["delta"], t["A"], t["B"], t["C"], D=t["D"])

    return {"selective_scan": Adapter(call, arrange, restore=lambda y: y.mT)}


def mamba_ssd() -> dict[str, Adapter]:
    """Mamba-2's Triton kernels with the chunk of its layer, 256 steps."""
    scan: Any = import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined

    def call(t: Tensors) -> Tensor:
        return scan(t["x"], t["dt"], t["A"], t["B"], t["C"], chunk_size=256)

    return {"ssd": Adapter(call)}


def causal_conv1d() -> dict[str, Adapter]:
    """The CUDA kernel of Mamba's authors; (B, D, T), two to four taps."""
    conv: Any = import_module("causal_conv1d").causal_conv1d_fn

    def arrange(t: Tensors) -> Tensors:
        return t | {"x": t["x"].transpose(1, 2).contiguous()}

    def refuse(t: Tensors) -> str | None:
        W = t["weight"].shape[1]
        return None if W in (2, 3, 4) else f"W = {W}; two to four taps only"

    def with_activation(activation: str | None) -> Adapter:
        def call(t: Tensors) -> Tensor:
            return conv(t["x"], t["weight"], t["bias"], activation=activation)

        return Adapter(call, arrange, restore=lambda y: y.mT, refuse=refuse)

    return {"causal_conv.none": with_activation(None), "causal_conv.silu": with_activation("silu")}
