"""Blocks against their equations written the slow way, and births against their papers' figures."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from archsearch.blocks import Mixer
from archsearch.blocks.delta import DeltaNet, GatedDeltaNet
from archsearch.blocks.gla import GLA
from archsearch.blocks.hgrn import HGRN
from archsearch.blocks.linear_attention import LinearAttention, Performer, orthogonal_directions
from archsearch.blocks.mamba2 import Mamba2
from archsearch.blocks.retention import Retention

B, T, DIM, HEADS = 2, 50, 16, 2


def tokens() -> Tensor:
    return torch.randn(B, T, DIM, dtype=torch.float64)


def heads_of(block: Mixer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The projections q, k and v per head, (B, H, T, K)."""
    parts = block.qkv(x).chunk(3, dim=-1)  # type: ignore[operator]
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
    return q, k, v


def attended(weights: Tensor, v: Tensor) -> Tensor:
    """Rows of causal weights, normalised, over the values; (B, T, D)."""
    weights = weights.tril()
    return (weights / weights.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(-2)


def test_linear_attention_is_a_normalised_sum_over_the_past() -> None:
    block, x = LinearAttention(DIM, heads=HEADS).double(), tokens()
    q, k, v = heads_of(block, x)
    weights = (F.elu(q) + 1) @ (F.elu(k) + 1).mT
    torch.testing.assert_close(block(x)[0], block.out(attended(weights, v)))


def test_performer_is_its_features_whatever_maximum_was_taken_off() -> None:
    block, x = Performer(DIM, heads=HEADS, features=20).double(), 3 * tokens()
    q, k, v = heads_of(block, x)

    def phi(z: Tensor) -> Tensor:
        z = z * z.shape[-1] ** -0.25
        return (z @ block.directions.mT.double() - z.square().sum(-1, keepdim=True) / 2).exp()

    want = block.out(attended(phi(q) @ phi(k).mT, v))
    torch.testing.assert_close(block(x)[0], want, rtol=0, atol=1e-3)  # features have 1e-6 more


def test_performer_comes_near_softmax_attention() -> None:
    """The error falls as one over the root of the number of features, here by 4 for 16 times."""
    x, errors = 0.5 * tokens(), []
    for features in (64, 1024):
        distances = []
        for seed in range(8):
            torch.manual_seed(0)
            block = Performer(DIM, heads=HEADS, features=features, seed=seed).double()
            q, k, v = heads_of(block, x)
            weights = (q @ k.mT / (DIM // HEADS) ** 0.5).exp()
            want = block.out(attended(weights, v))
            distances.append((block(x)[0] - want).norm() / want.norm())
        errors.append(torch.stack(distances).mean().item())
    assert errors[1] < 0.05 and errors[0] / errors[1] == pytest.approx(4, rel=0.5)


def test_random_directions_are_orthogonal_and_as_long_as_normal_ones() -> None:
    rows = orthogonal_directions(3 * 64, 64, seed=1).double()
    for block in rows.split(64):
        between = block @ block.mT
        torch.testing.assert_close(between, between.diag().diag(), rtol=0, atol=1e-4)
    assert rows.square().sum(-1).mean() == pytest.approx(64, rel=0.05)
    assert torch.equal(orthogonal_directions(7, 4, 0), orthogonal_directions(7, 4, 0))
    assert not torch.equal(orthogonal_directions(7, 4, 0), orthogonal_directions(7, 4, 1))


@pytest.mark.parametrize("lower", [0.0, 0.7])
def test_hgrn_step_by_step(lower: float) -> None:
    block, x = HGRN(DIM, lower=lower).double(), tokens()
    forget, write = block.into(x).chunk(2, dim=-1)
    f = lower + (1 - lower) * torch.sigmoid(forget)
    h, outputs = torch.zeros(B, DIM, dtype=torch.float64), []
    for t in range(T):
        h = f[:, t] * h + (1 - f[:, t]) * F.silu(write[:, t])
        outputs.append(h)
    assert block.gate is not None
    want = block.out(block.norm(torch.stack(outputs, 1)) * F.silu(block.gate(x)))
    torch.testing.assert_close(block(x)[0], want, rtol=1e-4, atol=1e-5)  # f is at most 1 - 1e-6


def test_births() -> None:
    """Mamba-2 and the gated delta rule: rates and steps; small maps; GLA: slow decays."""
    mamba2, delta = Mamba2(64, heads=32), GatedDeltaNet(64, heads=32)
    for log_rate, low, high in ((mamba2.a, 1.0, 16.0), (delta.a, 1e-3, 16.0)):
        assert low <= log_rate.exp().min() < high / 3 < 2 * high / 3 < log_rate.exp().max() <= high
    for bias in (mamba2.step, delta.step.bias):
        step = F.softplus(bias)
        assert 1e-3 * 0.999 < step.min() < 1e-2 < step.max() < 0.1 * 1.001
    assert mamba2.D.eq(1).all() and mamba2.norm.eq(1).all()
    for block in (Retention(64, expand=2), GLA(64), delta, DeltaNet(64)):  # Glorot's, 2^-2.5
        for weight in block.qkv.weight.split(block.widths):
            bound = 2**-2.5 * (6 / (64 + len(weight))) ** 0.5
            assert 0.99 * bound < weight.max() <= bound and -bound <= weight.min() < -0.99 * bound
    gla, x = GLA(64), torch.randn(8, 50, 64)
    kept = torch.sigmoid(gla.forget(x)) ** (1 / 16)
    assert kept.mean().item() == pytest.approx(0.5 ** (1 / 16), abs=0.01)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearAttention(64, heads=5), r"linear_attention: heads \(5\) must divide dim"),
        (lambda: Performer(64, features=0), r"performer: features must be positive, got 0"),
        (lambda: GLA(64, heads=4, expand_k=0.03), r"heads \(4\) must divide expand_k \* dim \(2\)"),
        (
            lambda: GatedDeltaNet(64, heads=5),
            r"gated_delta_net: heads \(5\) must divide dim \(64\)",
        ),
        (lambda: HGRN(64, lower=1.0), r"hgrn: lower must be in \[0, 1\), got 1.0"),
        (lambda: Mamba2(64, heads=4, groups=3), r"mamba2: groups \(3\) must divide heads \(4\)"),
        (lambda: Mixer.members["lstm"](64, expand=0), r"lstm: expand must be positive, got 0"),
    ],
)
def test_impossible_sizes_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
