"""The mixture of experts: its equation, the loss that it adds by itself, and what it costs."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from archsearch import cost
from archsearch.blocks.moe import MoE
from archsearch.spec import ModelSpec

DIM = 8


def written_out(block: MoE, x: Tensor) -> Tensor:
    """Token by token, expert by expert, for a sequence (T, D)."""
    up = block.up.weight.chunk(block.experts)
    down = block.down.weight.chunk(block.experts)
    rows = []
    for x_t in x:
        p = torch.softmax(block.router.weight @ x_t, 0)
        chosen = sorted(range(block.experts), key=lambda e: -p[e].item())[: block.top_k]
        y_t = torch.zeros_like(x_t)
        for e in chosen:
            gate, value = (up[e] @ x_t).chunk(2)
            y_t = y_t + p[e] * (down[e] @ (F.silu(gate) * value))
        rows.append(y_t / p[chosen].sum() if block.top_k > 1 else y_t)
    return torch.stack(rows)


def balance_loss(block: MoE, x: Tensor) -> Tensor:
    """E sum_e f_e P_e over all tokens."""
    p = torch.softmax(block.router(x.flatten(0, 1)), -1)
    f = F.one_hot(p.topk(block.top_k).indices, block.experts).double().mean((0, 1))
    return block.experts * (f * p.mean(0)).sum()


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_its_equation(top_k: int) -> None:
    block = MoE(DIM, experts=5, top_k=top_k, expand=2.0).double()
    x = torch.randn(1, 30, DIM, dtype=torch.float64)
    torch.testing.assert_close(block(x)[0][0], written_out(block, x[0]))


@pytest.mark.parametrize("top_k", [1, 3])
def test_the_gradient_has_the_balance_loss_in_training_only(top_k: int) -> None:
    block = MoE(DIM, experts=4, top_k=top_k, balance=0.3).double()
    x, weights = torch.randn(2, 2, 20, DIM, dtype=torch.float64)
    x.requires_grad_()
    leaves = [x, *block.parameters()]

    def gradient(loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, leaves, materialize_grads=True)

    task = gradient((block.eval()(x)[0] * weights).sum())
    both = gradient((block(x)[0] * weights).sum() + 0.3 * balance_loss(block, x))
    assert not torch.allclose(both[1], task[1])
    torch.testing.assert_close(gradient((block.train()(x)[0] * weights).sum()), both)
    block.balance = 0.0
    torch.testing.assert_close(gradient((block(x)[0] * weights).sum()), task)


def largest_share(balance: float) -> float:
    """Of one expert among four, after training a router that was born to choose the first."""
    torch.manual_seed(0)
    block = MoE(DIM, experts=4, top_k=1, balance=balance)
    with torch.no_grad():
        block.router.weight[0, 0] = 3.0
    optimizer = torch.optim.Adam(block.parameters(), 1e-2)
    for _ in range(150):
        x = torch.randn(1, 64, DIM)
        x[..., 0] = 1.0
        loss = (block(x)[0] - x.flip(-1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(1000, DIM)
    x[..., 0] = 1.0
    return block.route(x)[2].max().item() / 1000


def test_training_balances_the_load() -> None:
    assert largest_share(balance=0.0) > 0.9
    assert largest_share(balance=0.1) < 0.4


def spec(mlp: dict[str, Any]) -> ModelSpec:
    topology = {"type": "interleave", "major": "short_conv"}
    return ModelSpec.model_validate({"dim": 16, "layers": 1, "mlp": mlp, "topology": topology})


def test_cost_counts_the_experts_that_run_and_the_weights_of_all() -> None:
    """As a SwiGLU of top_k experts' width and a router; more experts add parameters alone."""
    sizes: dict[str, Any] = {"batch": 2, "seq_len": 32, "vocab": 10}
    dense = cost(spec({"type": "swiglu", "expand": 2.0}), **sizes)
    for experts in (4, 16):
        sparse = cost(spec({"type": "moe", "experts": experts, "top_k": 2}), **sizes)
        router = 2 * 16 * experts
        assert sparse.forward_flops == dense.forward_flops + 2 * 32 * router
        assert sparse.train_flops == dense.train_flops + 3 * 2 * 32 * router
        assert sparse.decode_flops == dense.decode_flops + 2 * router
        extra = (experts - 2) * 3 * 16 * 16
        assert sparse.parameters == dense.parameters + extra + 16 * experts


def test_under_autocast_and_in_bfloat16() -> None:
    x = torch.randn(2, 10, DIM)
    block = MoE(DIM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = block(x)
        y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    assert MoE(DIM).bfloat16()(x.bfloat16())[0].dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's
def test_compiled_training_equals_eager() -> None:
    block, x = MoE(DIM, balance=0.3).double(), torch.randn(2, 9, DIM, dtype=torch.float64)
    compiled: Any = torch.compile(block, backend="aot_eager", fullgraph=True)
    eager = torch.autograd.grad(block(x)[0].sum(), list(block.parameters()))
    compiled_gradient = torch.autograd.grad(compiled(x)[0].sum(), list(block.parameters()))
    torch.testing.assert_close(compiled_gradient, eager)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 0}, r"moe: experts must be positive, got 0"),
        ({"top_k": 5}, r"moe: top_k must be from 1 to experts \(4\), got 5"),
        ({"top_k": 0}, r"moe: top_k must be from 1 to experts \(4\), got 0"),
        ({"expand": 0.0}, r"moe: expand must be positive, got 0"),
        ({"balance": -0.1}, r"moe: balance must not be negative, got -0.1"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoE(DIM, **options)
