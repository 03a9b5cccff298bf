"""What is measured: each operator's inputs, its float64 truth, its FLOPs, its least memory traffic.

B batch, T time, H heads, K key width = value width V; of Mamba-2: P values and N states per head, G
groups of heads; of Mamba: D channels, N states; of the convolution: D channels, W taps.

The shapes on a GPU are those of flash-linear-attention's own benchmark, benchmarks/ops/registry.py;
decays are drawn as there, logsigmoid of a normal number.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import archsearch.kernels as kernels

Tensors = dict[str, Tensor]
Shape = tuple[int, ...]
Normal = Callable[..., Tensor]

SEGMENT = 64  # steps whose states the reference keeps at a time; the others are computed again
SEED = 0


@dataclass(frozen=True)
class Operator:
    """One operator, with one kind of decay or activation.

    Attributes:
        name: as in the table; what stands before the dot is the operator's function.
        letters: what the numbers of a shape are, in order.
        draw: (normal, *shape) -> inputs, where normal(*sizes) draws normal numbers.
        call: (inputs, backend, state) -> output and final state, by the operator's function.
        shapes: by device type.
        constants: inputs that nobody differentiates.
        weights: inputs that stay float32 in lower precision, as in the models that have them.
    """

    name: str
    letters: str
    draw: Callable[..., Tensors]
    call: Callable[[Tensors, Any, Tensor | None], tuple[Tensor, Tensor]]
    shapes: dict[str, list[Shape]]
    constants: frozenset[str] = field(default_factory=frozenset)
    weights: frozenset[str] = field(default_factory=frozenset)

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensors:
        """The arguments in our layout, leaves; the same numbers every time."""
        generator = torch.Generator(device).manual_seed(SEED)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, device=device)

        inputs = {}
        for name, x in self.draw(normal, *shape).items():
            lower = dtype.itemsize < x.dtype.itemsize
            kept = x if name in self.weights and lower else x.to(dtype)
            inputs[name] = kept.requires_grad_(name not in self.constants)
        return inputs

    def reference(self, inputs: Tensors) -> Tensor:
        """The output by the step loop, in the inputs' dtype; differentiable in little memory."""
        state, outputs = None, []
        # Whatever has three axes or more has time second.
        pieces = {n: x.split(SEGMENT, 1) for n, x in inputs.items() if x.dim() > 2}
        for i in range(len(next(iter(pieces.values())))):
            piece = inputs | {name: split[i] for name, split in pieces.items()}
            output, state = checkpoint(  # type: ignore[misc]
                self.call, piece, "reference", state, use_reentrant=False, preserve_rng_state=False
            )
            outputs.append(output)
        return torch.cat(outputs, 1)


@dataclass(frozen=True)
class Costs:
    """What the work takes at least; forward alone, and forward and backward together.

    Attributes:
        forward_bytes: every input read once, the output written once.
        training_bytes: and for the backward pass the inputs and the output's gradient read once,
            the inputs' gradients written once. Nothing is kept in between. States are left out.
        forward_flops: by the formulas the operators are registered with; masks are not halved.
        training_flops: the same with the backward pass.
    """

    forward_bytes: int
    training_bytes: int
    forward_flops: int
    training_flops: int


def costs(operator: Operator, inputs: Tensors) -> Costs:
    """Traced on meta tensors: nothing is computed."""
    meta = {n: x.detach().to("meta").requires_grad_(x.requires_grad) for n, x in inputs.items()}
    counter = FlopCounterMode(display=False)
    with counter:
        output, _ = operator.call(meta, "auto", None)
        forward_flops = counter.get_total_flops()
        output.sum().backward()
    read = sum(x.nbytes for x in inputs.values())
    gradients = sum(x.nbytes for x in inputs.values() if x.requires_grad)
    forward = read + output.nbytes
    return Costs(forward, 2 * forward + gradients, forward_flops, counter.get_total_flops())


def retention_decays(heads: int, device: torch.device) -> Tensor:
    """Log-decays of RetNet's heads, log(1 - 2^(-5-h)); Sun et al. 2023."""
    return torch.log1p(-(2.0 ** -torch.arange(5, 5 + heads, device=device)))


def _draw_scan(kind: str) -> Callable[..., Tensors]:
    def draw(normal: Normal, B: int, T: int, H: int, K: int) -> Tensors:
        inputs = {name: normal(B, T, H, K) for name in ("q", "k", "v")}
        if kind == "fixed":
            inputs["log_decay"] = retention_decays(H, inputs["q"].device)
        elif kind == "scalar":
            inputs["log_decay"] = F.logsigmoid(normal(B, T, H))
        elif kind == "vector":
            inputs["log_decay"] = F.logsigmoid(normal(B, T, H, K)).clamp(min=-5)
        return inputs

    return draw


def _scan(t: Tensors, backend: Any, state: Tensor | None) -> tuple[Tensor, Tensor]:
    decay = t.get("log_decay")
    return kernels.scan(t["q"], t["k"], t["v"], decay, initial_state=state, backend=backend)


def _draw_ssd(normal: Normal, B: int, T: int, H: int, P: int, N: int, G: int) -> Tensors:
    x = normal(B, T, H, P)
    A = -torch.linspace(1, 16, H, device=x.device)
    dt = F.softplus(normal(B, T, H) - 4)  # about 0.02, the middle of Mamba-2's initial range
    return {"x": x, "dt": dt, "A": A, "B": normal(B, T, G, N), "C": normal(B, T, G, N)}


def _ssd(t: Tensors, backend: Any, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mamba-2's arguments; what it costs to make scan's of them is timed with it."""
    v, g = t["x"] * t["dt"][..., None], t["dt"] * t["A"]
    return kernels.scan(t["C"], t["B"], v, g, scale=1.0, initial_state=state, backend=backend)


def _draw_delta_scan(normal: Normal, B: int, T: int, H: int, K: int) -> Tensors:
    return {
        "q": F.normalize(normal(B, T, H, K), dim=-1),
        "k": F.normalize(normal(B, T, H, K), dim=-1),
        "v": normal(B, T, H, K),
        "beta": normal(B, T, H).sigmoid(),
        "log_decay": F.logsigmoid(normal(B, T, H)),
    }


def _delta_scan(t: Tensors, backend: Any, state: Tensor | None) -> tuple[Tensor, Tensor]:
    inputs = t["q"], t["k"], t["v"], t["beta"], t["log_decay"]
    return kernels.delta_scan(*inputs, initial_state=state, backend=backend)


def _draw_selective_scan(normal: Normal, B: int, T: int, D: int, N: int) -> Tensors:
    x = normal(B, T, D)
    A = -torch.arange(1.0, N + 1, device=x.device).expand(D, N).contiguous()
    delta = F.softplus(normal(B, T, D) - 4)
    return {
        "x": x,
        "delta": delta,
        "A": A,
        "B": normal(B, T, N),
        "C": normal(B, T, N),
        "D": normal(D),
    }


def _selective_scan(t: Tensors, backend: Any, state: Tensor | None) -> tuple[Tensor, Tensor]:
    return kernels.selective_scan(**t, initial_state=state, backend=backend)


def _draw_causal_conv(normal: Normal, B: int, T: int, D: int, W: int) -> Tensors:
    return {"x": normal(B, T, D), "weight": normal(D, W) / math.sqrt(W), "bias": normal(D)}


def _causal_conv(activation: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    def call(t: Tensors, backend: Any, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return kernels.causal_conv(**t, activation=activation, initial_state=state, backend=backend)

    return call


SCAN_SHAPES: dict[str, list[Shape]] = {
    "cpu": [(4, 512, 4, 64), (1, 2048, 4, 64), (8, 256, 4, 32), (1, 8192, 8, 64)],
    "cuda": [
        (1, 8192, 96, 128), (2, 16384, 16, 128), (4, 2048, 16, 128),
        (4, 4096, 64, 128), (8, 2048, 32, 256), (8, 1024, 8, 64),
    ],
}  # fmt: skip
SSD_SHAPES: dict[str, list[Shape]] = {
    "cpu": [(4, 512, 4, 64, 64, 1), (1, 2048, 4, 64, 64, 1)],
    "cuda": [(4, 2048, 32, 64, 64, 1), (4, 2048, 256, 64, 256, 8)],
}
SELECTIVE_SHAPES: dict[str, list[Shape]] = {
    "cpu": [(1, 2048, 128, 16), (8, 256, 128, 16)],
    "cuda": [(2, 2048, 2048, 16), (8, 2048, 5120, 16), (2, 8192, 2048, 16)],
}
CONV_SHAPES: dict[str, list[Shape]] = {
    device: [(B, T, H * K, 4) for B, T, H, K in shapes] for device, shapes in SCAN_SHAPES.items()
}

_OPERATORS = [
    *(
        Operator(
            f"scan.{kind}", "BTHK", _draw_scan(kind), _scan, SCAN_SHAPES,
            constants=frozenset({"log_decay"} if kind == "fixed" else ()),
            weights=frozenset({"log_decay"} if kind == "fixed" else ()),
        )
        for kind in ("none", "fixed", "scalar", "vector")
    ),
    Operator("ssd", "BTHPNG", _draw_ssd, _ssd, SSD_SHAPES, weights=frozenset("A")),
    Operator("delta_scan", "BTHK", _draw_delta_scan, _delta_scan, SCAN_SHAPES),
    Operator(
        "selective_scan", "BTDN", _draw_selective_scan, _selective_scan, SELECTIVE_SHAPES,
        weights=frozenset("AD"),
    ),
    Operator("causal_conv.none", "BTDW", _draw_causal_conv, _causal_conv(None), CONV_SHAPES),
    Operator("causal_conv.silu", "BTDW", _draw_causal_conv, _causal_conv("silu"), CONV_SHAPES),
]  # fmt: skip

OPERATORS = {operator.name: operator for operator in _OPERATORS}
