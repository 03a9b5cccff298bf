"""The grouped product against its specification, values and gradients, and what it owes PyTorch."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from archsearch.kernels.grouped_mm import grouped_mm, grouped_mm_reference

N, WIDTH_IN, WIDTH_OUT = 9, 5, 3
ENDS = {"even": [3, 6, 9], "empty": [0, 9, 9], "one": [9]}


def arguments(ends: list[int], device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)

    x, weight = leaf(N, WIDTH_IN), leaf(len(ends), WIDTH_OUT, WIDTH_IN)
    return x, weight, torch.tensor(ends, device=device)


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_values_and_gradients(ends: list[int]) -> None:
    """An empty group's matrix has the gradient zero."""
    x, weight, borders = arguments(ends)
    dy = torch.randn(N, WIDTH_OUT, dtype=torch.float64)
    y, want = (f(x, weight, borders) for f in (grouped_mm, grouped_mm_reference))
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(*(torch.autograd.grad(z, (x, weight), dy) for z in (y, want)))


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_opcheck(ends: list[int]) -> None:
    results = torch.library.opcheck(torch.ops.archsearch.grouped_mm.default, arguments(ends))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_flops(device: str) -> None:
    """Of one matrix a row, whatever their number; twice that backward."""
    x, weight, ends = arguments(ENDS["even"], device)
    forward = 2 * N * WIDTH_IN * WIDTH_OUT
    with FlopCounterMode(display=False) as counter:
        y = grouped_mm(x, weight, ends)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * forward


def test_autocast_takes_its_dtype() -> None:
    x, weight, ends = arguments(ENDS["even"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert grouped_mm(x.float(), weight.float(), ends).dtype == torch.bfloat16
        assert grouped_mm(x, weight, ends).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(9, 4)}, r"weight must have shape \(G, O, I\) with I = 4; got \(3, 3, 5"),
        ({"weight": torch.ones(3, 3, 5).half()}, r"weight must be of x's dtype, torch.float32"),
        ({"ends": torch.tensor([3.0, 6, 9])}, r"ends must be 3 numbers of int32 or int64; got"),
        ({"ends": torch.tensor([3, 9])}, r"ends must be 3 numbers of int32 or int64; got \(2,\)"),
        ({"ends": torch.tensor([3, 6, 8])}, r"rise from 0 or more to N = 9; got \[3, 6, 8\]"),
        ({"ends": torch.tensor([6, 3, 9])}, r"rise from 0 or more to N = 9; got \[6, 3, 9\]"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Tensor], message: str) -> None:
    given = {"x": torch.ones(9, 5), "weight": torch.ones(3, 3, 5), "ends": torch.tensor([3, 6, 9])}
    with pytest.raises(ValueError, match="grouped_mm: .*" + message):
        grouped_mm(**given | change)
