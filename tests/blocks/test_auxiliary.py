"""Losses that blocks add by themselves: their gradients are those of the loss written out."""

from typing import Any

import pytest
import torch
from torch import Tensor

from archsearch.blocks.auxiliary import scaled_losses
from archsearch.blocks.merge import Gate, Merge, Route

DIM, BRANCHES = 6, 3
MERGES: dict[str, tuple[type[Merge], dict[str, Any]]] = {
    "gate": (Gate, {}),
    "gate, channel": (Gate, {"per": "channel"}),
    "route": (Route, {"temperature": 0.7}),
    "route, hard": (Route, {"hard": True}),
}
Chooser = Any
"""A gate or a route."""


@pytest.fixture(params=MERGES)
def merge(request: pytest.FixtureRequest) -> Chooser:
    cls, options = MERGES[request.param]
    made = cls(DIM, BRANCHES, **options, entropy=0.4).double()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_()  # gates of a channel are born at their most open, where nothing drives them
    return made


def data() -> list[Tensor]:
    """What is read and the branches."""
    sequences = torch.randn(1 + BRANCHES, 2, 7, DIM, dtype=torch.float64)
    return [x.clone().requires_grad_() for x in sequences]


def entropy(merge: Chooser, x: Tensor) -> Tensor:
    """The mean over tokens and channels of what is chosen."""
    if isinstance(merge, Route):
        return (
            torch.distributions.Categorical(logits=merge.read(x) / merge.temperature)
            .entropy()
            .mean()
        )
    logits = merge.theta if merge.per == "channel" else merge.read(x).unflatten(-1, (BRANCHES, DIM))
    return torch.distributions.Bernoulli(logits=logits).entropy().sum(-2).mean()


def loss(merge: Chooser, read: list[Tensor]) -> Tensor:
    return merge(*read).square().sum()


def gradients(merge: Chooser, read: list[Tensor], total: Tensor) -> tuple[Tensor, ...]:
    leaves = [*read, *merge.parameters()]
    return torch.autograd.grad(total, leaves, materialize_grads=True)


@pytest.mark.parametrize("factor", [0.4, -2.0])
def test_the_gradient_has_the_entropy_in_training_only(merge: Chooser, factor: float) -> None:
    read, merge.entropy = data(), factor
    task = gradients(merge, read, loss(merge.eval(), read))
    written = gradients(merge, read, loss(merge, read) + factor * entropy(merge, read[0]))
    own = gradients(merge, read, loss(merge.train(), read))
    torch.testing.assert_close(own, written)
    assert not torch.allclose(own[-1], task[-1])
    merge.entropy = 0.0
    assert all(map(torch.equal, gradients(merge, read, loss(merge, read)), task))


def test_its_outputs_are_those_without_it(merge: Chooser) -> None:
    read = data()
    assert torch.equal(merge(*read), merge.eval()(*read))


def test_a_loop_that_scales_its_loss_says_so(merge: Chooser) -> None:
    read = data()
    whole = gradients(merge, read, loss(merge, read))
    with scaled_losses(merge, 0.25):
        scaled = gradients(merge, read, 0.25 * loss(merge, read))
    torch.testing.assert_close(scaled, tuple(0.25 * g for g in whole))
    assert all(map(torch.equal, gradients(merge, read, loss(merge, read)), whole))


@pytest.mark.parametrize("size", [0.0, 1e4])
def test_gradients_are_finite_where_all_is_open_or_decided(merge: Chooser, size: float) -> None:
    with torch.no_grad():
        for p in merge.parameters():
            p.mul_(size)
    read = data()
    assert all(g.isfinite().all() for g in gradients(merge, read, loss(merge, read)))


@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_above_zero_it_decides_and_below_it_opens(merge: Chooser, factor: float) -> None:
    merge.entropy, read = factor, [x.detach() for x in data()]
    optimizer, before = torch.optim.SGD(merge.parameters(), 0.1), entropy(merge, read[0])
    for _ in range(20):
        optimizer.zero_grad()
        (0.0 * loss(merge, read)).backward()
        optimizer.step()
    assert ((entropy(merge, read[0]) - before) * factor).item() < -0.01


def test_under_autocast_and_in_bfloat16(merge: Chooser) -> None:
    read = [x.detach().float() for x in data()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss(merge.float(), read).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in merge.parameters())
    loss(merge.bfloat16(), [x.bfloat16() for x in read]).backward()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's
def test_compiled_training_equals_eager_at_every_scale(merge: Chooser) -> None:
    compiled: Any = torch.compile(merge, backend="aot_eager", fullgraph=True)
    read = data()
    for scale in (1.0, 0.5, 0.25):
        with scaled_losses(merge, scale):
            eager = gradients(merge, read, loss(merge, read))
            torch.testing.assert_close(gradients(merge, read, loss(compiled, read)), eager)


@pytest.mark.parametrize("cls", [Gate, Route])
@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
def test_a_factor_that_is_no_number_is_refused(cls: type[Merge], factor: float) -> None:
    with pytest.raises(
        ValueError, match=f"{cls.name}: entropy must be a finite number, got {factor}"
    ):
        cls(DIM, BRANCHES, entropy=factor)
