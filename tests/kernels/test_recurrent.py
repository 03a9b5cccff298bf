"""PyTorch's recurrent nets as an operator: what it owes PyTorch, and the gradient it takes."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from archsearch.kernels.recurrent import recurrent

B, T, D, H = 2, 7, 5, 3
NETS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def arguments(kind: str, length: int = T, device: str = "cpu"):
    def leaf(*shape: int):
        return torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)

    weights = [leaf(*p.shape) for p in NETS[kind](D, H).parameters()]
    states = [leaf(B, H) for _ in range(1 + (kind == "lstm"))]
    return kind, leaf(B, length, D), states, weights


@pytest.mark.parametrize("length", [1, T])
@pytest.mark.parametrize("kind", NETS)
def test_opcheck(kind: str, length: int) -> None:
    operator = torch.ops.archsearch.recurrent.default
    results = torch.library.opcheck(operator, arguments(kind, length))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("kind", NETS)
def test_values_and_gradients(kind: str) -> None:
    """Those of torch.nn's module, the states' included, and those of finite differences."""
    _, x, states, weights = arguments(kind)
    net = NETS[kind](D, H, batch_first=True).double()
    with torch.no_grad():
        for parameter, weight in zip(net.parameters(), weights, strict=True):
            parameter.copy_(weight)
    first = [state[None] for state in states]
    want, last = net(x, tuple(first) if kind == "lstm" else first[0])
    got, found = recurrent(kind, x, states, weights)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close([s[None] for s in found], [*last] if kind == "lstm" else [last])

    def outputs(x, *rest):
        y, last = recurrent(kind, x, rest[: len(states)], rest[len(states) :])
        return y, *last

    assert torch.autograd.gradcheck(outputs, (x, *states, *weights))


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize(("kind", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
def test_flops(kind: str, gates: int, device: str) -> None:
    """Forward, and backward with the forward pass again."""
    forward = 2 * B * T * gates * H * (D + H)
    with FlopCounterMode(display=False) as counter:
        y, _ = recurrent(*arguments(kind, device=device))
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 3 * forward
