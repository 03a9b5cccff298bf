"""How kernel tests compare: the reference in float64 is the truth, values and gradients."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

# Relative to the norm of what is wanted. One table for all operators and sizes.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 3e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}

# Triton's kernels run where there is a GPU, or in Triton's interpreter: TRITON_INTERPRET=1 pytest.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*_triton.py"]
if torch.cuda.is_available() and not INTERPRETED:
    torch.set_default_device("cuda")

Results = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _seeded_and_poisoned() -> Iterator[None]:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # also fills torch.empty with NaN: unwritten rows show
    yield
    torch.use_deterministic_algorithms(False)


def run(function: Callable, tensors: dict[str, Tensor | None], **options) -> Results:
    """Values, and the gradients of one fixed functional of both outputs to every tensor."""
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items() if x is not None}
    output, state = function(**{**tensors, **leaves}, **options)
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    weights = [
        torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (output, state)
    ]
    outputs = (output.double(), state.double())
    gradients = torch.autograd.grad(outputs, list(leaves.values()), weights)
    named = {f"gradient to {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {"output": output, "state": state, **named}


def check(got: Results, want: Results, tolerance: float) -> None:
    assert got.keys() == want.keys()
    for name, b in want.items():
        a = got[name].detach().double()
        assert a.isfinite().all(), f"{name} is not finite"
        error, size = (a - b).norm().item(), b.norm().item()
        # Below 1e-9 float32 has underflowed where float64 has not: both are zero to us.
        assert error <= tolerance * max(size, 1e-9), f"{name}: {error:.1e} of {size:.1e}"


@pytest.fixture
def agree() -> Callable[..., None]:
    """agree(function, tensors, dtype, backend=...): one backend in `dtype` against the truth."""

    def agree(
        function, tensors, dtype=torch.float64, tolerance=None, backend="chunked", **options
    ) -> None:
        given = {name: None if x is None else x.to(dtype) for name, x in tensors.items()}
        exact = {name: None if x is None else x.double() for name, x in given.items()}
        want = run(function, exact, backend="reference", **options)
        got = run(function, given, backend=backend, **options)
        check(got, want, tolerance or TOLERANCE[dtype])

    return agree


@pytest.fixture
def same() -> Callable[..., None]:
    """same(got, want): two results of one dtype agree to float64 rounding."""

    def same(got, want) -> None:
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    return same
