"""Peers in plain PyTorch: on a CPU, and on a GPU as well."""

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from archsearch.bench.adapter import Adapter
from archsearch.bench.cases import OPERATORS, Operator, Tensors, retention_decays

MOST_KEPT = 16 << 30  # bytes
LONGEST = 2048  # steps
SCANS = ("scan.none", "scan.fixed", "scan.scalar", "scan.vector")


def _by_backend(operator: Operator, backend: str) -> Adapter:
    return Adapter(lambda t: operator.call(t, backend, None)[0])


def ours() -> dict[str, Adapter]:
    """Our operators as a model calls them."""
    return {name: _by_backend(operator, "auto") for name, operator in OPERATORS.items()}


def triton() -> dict[str, Adapter]:
    """Our Triton kernels, on a GPU where a model does not call them yet."""
    from archsearch.kernels.launch import architecture
    from archsearch.kernels.tiles import RUN

    def refuse(t: Tensors) -> str | None:
        name = architecture(next(iter(t.values())).device)
        return f"on {name} that is what archsearch takes" if name in RUN else None

    return {
        name: Adapter(_by_backend(operator, "triton").call, refuse=refuse)
        for name, operator in OPERATORS.items()
    }


def loop() -> dict[str, Adapter]:
    """The textbook: our references, one step at a time in Python under ordinary autograd."""
    return {
        name: Adapter(_by_backend(operator, "reference").call, refuse=_too_many_states(operator))
        for name, operator in OPERATORS.items()
    }


def _too_many_states(operator: Operator) -> Callable[[Tensors], str | None]:
    def refuse(inputs: Tensors) -> str | None:
        meta = {name: x.to("meta") for name, x in inputs.items()}
        T = next(iter(inputs.values())).shape[1]
        kept = T * operator.call(meta, "auto", None)[1].nbytes
        return f"autograd keeps {kept >> 30} GiB of states" if kept > MOST_KEPT else None

    return refuse


def scalar_decay() -> dict[str, Adapter]:
    """The same scan with one decay per head: what a decay per channel costs above it."""
    scalar = OPERATORS["scan.scalar"]

    def arrange(t: Tensors) -> Tensors:
        return t | {"log_decay": t["log_decay"].mean(-1)}

    def truth(t: Tensors) -> Tensor:
        return scalar.reference(arrange(t))

    call = _by_backend(scalar, "auto").call
    return {"scan.vector": Adapter(call, arrange=arrange, truth=truth)}


def attention() -> dict[str, Adapter]:
    """Causal softmax attention: another function, the one that a scan replaces."""

    def arrange(t: Tensors) -> Tensors:
        return {name: t[name].transpose(1, 2).contiguous() for name in "qkv"}  # (B, H, T, K)

    def call(t: Tensors) -> Tensor:
        return F.scaled_dot_product_attention(t["q"], t["k"], t["v"], is_causal=True)

    def head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.ones(len(q), len(q), dtype=torch.bool, device=q.device).triu(1)
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(mask, -torch.inf)
        return scores.softmax(-1) @ v

    def truth(t: Tensors) -> Tensor:
        heads = (arrange(t)[name].flatten(0, 1).unbind() for name in "qkv")
        outputs = [
            checkpoint(head, *one, use_reentrant=False, preserve_rng_state=False)
            for one in zip(*heads, strict=True)
        ]
        B, T, H, _ = t["q"].shape
        return torch.stack(outputs).view(B, H, T, -1).transpose(1, 2)  # type: ignore[arg-type]

    adapter = Adapter(call, arrange, restore=lambda o: o.transpose(1, 2), truth=truth)
    return dict.fromkeys(SCANS, adapter)


def conv1d() -> dict[str, Adapter]:
    """F.conv1d in its own layout (B, D, T); its padding is faster than F.pad before it."""

    def arrange(t: Tensors) -> Tensors:
        x = t["x"].transpose(1, 2).contiguous()
        return t | {"x": x, "weight": t["weight"][:, None]}

    def call(t: Tensors) -> Tensor:
        (D, _, W), T = t["weight"].shape, t["x"].shape[2]
        return F.conv1d(t["x"], t["weight"], t["bias"], padding=W - 1, groups=D)[..., :T]

    plain = Adapter(call, arrange, restore=lambda y: y.mT)
    silu = Adapter(lambda t: F.silu(call(t)), arrange, restore=lambda y: y.mT)
    return {"causal_conv.none": plain, "causal_conv.silu": silu}


def conv1d_transposed() -> dict[str, Adapter]:
    """F.conv1d between two transpositions: what it is in a model, where x is (B, T, D)."""

    def transposed(adapter: Adapter) -> Adapter:
        return Adapter(lambda t: adapter.call(adapter.arrange(t)).mT.contiguous())

    return {name: transposed(adapter) for name, adapter in conv1d().items()}


def fla_naive_loop() -> dict[str, Adapter]:
    """The loops over time that flash-linear-attention tests against: as usually written.

    They index their inputs and write into their output at every step, and autograd pays for both.
    """

    def naive(operator: str, function: str, *names: str) -> Adapter:
        loop = getattr(import_module(f"fla.ops.{operator}.naive"), f"naive_recurrent_{function}")
        return Adapter(lambda t: loop(*(t[name] for name in names))[0], refuse=refuse)

    def refuse(t: Tensors) -> str | None:
        quadratic = "its gradient takes time quadratic in T"
        return f"{quadratic}; left out above {LONGEST}" if t["q"].shape[1] > LONGEST else None

    qkv = ("q", "k", "v")
    return {
        "scan.none": naive("linear_attn", "linear_attn", *qkv),
        "scan.scalar": naive("simple_gla", "simple_gla", *qkv, "log_decay"),
        "scan.vector": naive("gla", "gla", *qkv, "log_decay"),
        "delta_scan": naive("gated_delta_rule", "gated_delta_rule", *qkv, "beta", "log_decay"),
    }


def fla_naive_chunk() -> dict[str, Adapter]:
    """flash-linear-attention's chunked forms in plain PyTorch."""
    linear: Any = import_module("fla.ops.linear_attn.naive").naive_chunk_linear_attn
    simple: Any = import_module("fla.ops.simple_gla.naive").naive_chunk_simple_gla
    delta: Any = import_module("fla.ops.gated_delta_rule.naive").naive_chunk_gated_delta_rule

    def none(t: Tensors) -> Tensor:
        return linear(t["q"], t["k"], t["v"])

    def scalar(t: Tensors) -> Tensor:
        return simple(t["q"], t["k"], t["v"], t["log_decay"])[0]

    def gated_delta(t: Tensors) -> Tensor:
        return delta(t["q"], t["k"], t["v"], t["log_decay"], t["beta"])[0]

    return {
        "scan.none": Adapter(none),
        "scan.scalar": Adapter(scalar),
        "delta_scan": Adapter(gated_delta),
    }


def mambapy() -> dict[str, Adapter]:
    """Training as in mambapy's block: discretisation, Blelloch scan, output."""
    block = import_module("mambapy.mamba").MambaBlock

    def call(t: Tensors) -> Tensor:
        # The method uses nothing of its object.
        return block.selective_scan(None, t["x"], t["delta"], t["A"], t["B"], t["C"], t["D"])

    return {"selective_scan": Adapter(call)}


def transformers() -> dict[str, Adapter]:
    """The scans that transformers runs where mamba_ssm is missing, without their mixers.

    Mamba is a loop over time in Python. Mamba-2 is chunked; 64 steps are its fastest chunk on a
    CPU, its configuration says 256. Unwrapped: where mamba_ssm is installed, the wrappers call it.
    """
    mamba = import_module("transformers.models.mamba.modeling_mamba")
    mamba2 = import_module("transformers.models.mamba2.modeling_mamba2")
    selective_scan = mamba.mamba_selective_scan.__wrapped__
    chunk_scan = mamba2.mamba2_chunk_scan.__wrapped__

    def arrange(t: Tensors) -> Tensors:
        return t | {n: t[n].transpose(1, 2).contiguous() for n in ("x", "delta", "B", "C")}

    def call(t: Tensors) -> Tensor:
        return selective_scan(t["x"], t["delta"], t["A"], t["B"], t["C"], D=t["D"])

    def ssd(t: Tensors) -> Tensor:
        return chunk_scan(t["x"], t["dt"], t["A"], t["B"], t["C"], chunk_size=64)

    scan = Adapter(call, arrange, restore=lambda y: y.mT)
    return {"selective_scan": scan, "ssd": Adapter(ssd)}


class torchscale:  # noqa: N801 - a function with a parameter, as the others
    """RetNet's chunkwise form: torchscale's own method, without projections, rotation and norm.

    Its output is defined up to a positive factor per step and head, which the RMSNorm behind it
    takes out; so outputs and gradients are compared behind an RMSNorm of both. The factors, which
    it detaches, are part of its form and are timed; the norm is not.
    """

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk

    def __call__(self) -> dict[str, Adapter]:
        module = import_module("torchscale.component.multiscale_retention")
        retention, masks = module.MultiScaleRetention, ("mask", "cross", "query", "value")

        def arrange(t: Tensors) -> Tensors:
            B, T, H, K = t["q"].shape
            q, k = (t[name].transpose(1, 2).contiguous() for name in "qk")
            constants = retention_masks(H, self.chunk, t["q"])
            v = t["v"].reshape(B, T, -1)
            return {"q": q, "k": k * K**-0.5, "v": v, **dict(zip(masks, constants, strict=True))}

        def call(t: Tensors) -> Tensor:
            _, H, _, K = t["q"].shape
            layer = SimpleNamespace(num_heads=H, key_dim=K, head_dim=t["v"].shape[2] // H)
            relative = tuple(t[name] for name in masks)
            return retention.chunk_recurrent_forward(layer, t["q"], t["k"], t["v"], relative)

        def refuse(t: Tensors) -> str | None:
            T = t["q"].shape[1]
            return f"T = {T} is no multiple of {self.chunk}" if T % self.chunk else None

        adapter = Adapter(
            call, arrange, restore=lambda o: o.flatten(1, 2), compare=_rms_norm, refuse=refuse
        )
        return {"scan.fixed": adapter}


def _rms_norm(o: Tensor) -> Tensor:
    return o * o.square().mean(-1, keepdim=True).rsqrt()


def retention_masks(heads: int, chunk: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What torchscale's RetNetRelPos gives a chunkwise layer; written out, as it needs fairscale.

    With s_i = sum_j mask_ij: the mask over sqrt(s_i), the decay of a whole chunk, the decays that
    queries and values meet, (H, C, C), (H, 1, 1), (H, C, 1) and (H, C, 1).
    """
    decay = retention_decays(heads, like.device)[:, None, None]
    i = torch.arange(chunk, device=like.device)
    mask = torch.exp((i[:, None] - i).clamp(min=0) * decay).tril()
    total = mask.sum(-1, keepdim=True)
    root, last = total.sqrt(), total[:, -1:]
    query = torch.exp(decay * (i[:, None] + 1)) / (root / last)
    value = mask[:, -1, :, None] / last
    cross = torch.exp(decay * chunk)
    mask, cross, query, value = (x.to(like.dtype) for x in (mask / root, cross, query, value))
    return mask, cross, query, value
