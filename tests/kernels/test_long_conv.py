"""long_conv: its Fourier form against the sums, and what an operator owes PyTorch and the user."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from archsearch.kernels import long_conv

B, D = 2, 3


def arguments(T: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
    shapes = (B, T, D), (D, T)
    return [torch.randn(s, dtype=dtype, device=device, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("T", [1, 2, 7, 64, 81])
def test_fft_is_the_reference(T: int) -> None:
    x, kernel = arguments(T)
    weights = torch.randn(B, T, D, dtype=torch.float64)

    def run(backend):
        y = long_conv(x, kernel, backend=backend)
        return y, *torch.autograd.grad((y * weights).sum(), (x, kernel))

    torch.testing.assert_close(run("fft"), run("reference"), rtol=1e-10, atol=1e-10)


def test_half_precision_is_summed_in_float32() -> None:
    x, kernel = (z.detach().bfloat16() for z in arguments(300))
    want = long_conv(x.double(), kernel.double())
    assert long_conv(x, kernel).dtype == torch.bfloat16
    torch.testing.assert_close(long_conv(x, kernel), want.bfloat16(), rtol=1e-2, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(long_conv(x.float(), kernel), want.float())


@pytest.mark.parametrize("T", [1, 40])
def test_opcheck(T: int) -> None:
    results = torch.library.opcheck(torch.ops.archsearch.long_conv_fft.default, (*arguments(T),))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_flops(device: str) -> None:
    """T = 40: transforms of 80 steps, three forward and five backward, kernels once a batch."""
    transform, product = 2.5 * 80 * math.log2(80), 6 * 80 / 2
    with FlopCounterMode(display=False) as counter:
        y = long_conv(*arguments(40, device=device))
    assert counter.get_total_flops() == round(D * (2 * B + 1) * transform) + D * B * product
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == round(D * (3 * B + 2) * transform) + 2 * D * B * product


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kernel": torch.ones(D, 8)}, r"long_conv: kernel must have shape \(D, T\) with D = 3, T"),
        ({"x": torch.ones(B, 9)}, r"long_conv: x must have shape \(B, T, D\)"),
        ({"backend": "triton"}, r"backend must be one of 'auto', 'reference', 'fft'; got 'triton'"),
    ],
)
def test_mistakes_are_refused(changed, message: str) -> None:
    x, kernel = arguments(9)
    with pytest.raises(ValueError, match=message):
        long_conv(**{"x": x, "kernel": kernel, **changed})
