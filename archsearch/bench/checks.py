"""Values and gradients against float64: who is wrong is not timed."""

from collections.abc import Callable

import torch
from torch import Tensor

from archsearch.bench.cases import Tensors

# Of the norm of what is wanted, by dtype. float32 leaves room for sums taken in another order; on a
# GPU it also has to let TensorFloat-32 pass, which Triton's products use unless told otherwise.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
TF32 = 2e-3


def tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """The largest relative error that is rounding."""
    return TF32 if (device.type, dtype) == ("cuda", torch.float32) else TOLERANCE[dtype]


def evaluate(function: Callable[[Tensors], Tensor], inputs: Tensors, dtype: torch.dtype) -> Tensors:
    """The output, and the gradients of one fixed functional of it to every input that has one.

    The functional's weights are rounded to `dtype`, so that float64 sees the same ones.
    """
    output = function(inputs)
    generator = torch.Generator(output.device).manual_seed(1)
    weights = torch.randn(output.shape, generator=generator, device=output.device).to(dtype)
    leaves = {name: x for name, x in inputs.items() if x.requires_grad}
    gradients = torch.autograd.grad(
        output, list(leaves.values()), weights.to(output.dtype), allow_unused=True
    )
    named = {
        f"gradient to {name}": torch.zeros_like(x) if g is None else g
        for (name, x), g in zip(leaves.items(), gradients, strict=True)
    }
    return {"output": output.detach(), **named}


def doubled(inputs: Tensors) -> Tensors:
    """The same numbers as float64 leaves."""
    return {n: x.detach().double().requires_grad_(x.requires_grad) for n, x in inputs.items()}


def largest_error(got: Tensors, want: Tensors) -> tuple[float, str]:
    """The largest |got - want| / |want| and where it is; infinite when something is not finite."""
    errors = []
    for name, b in want.items():
        a = got[name].double()
        size = max(b.norm().item(), 1e-9)  # where all is zero, float32 may have underflowed
        error = (a - b).norm().item() / size if a.shape == b.shape else float("inf")
        errors.append((error if error == error else float("inf"), name))
    return max(errors)
