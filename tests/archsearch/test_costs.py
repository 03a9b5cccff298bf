"""Costs are traced, and agree with formulas derived by hand, with each other, and with reality."""

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from archsearch import build, cost, reference
from archsearch.baselines import DESIGNS
from archsearch.budgets import BYTES, COUNT, Budgets, quantity
from archsearch.costs import forward_flops, parameters, state_bytes, train_memory
from archsearch.graph import period
from archsearch.spec import ModelSpec

D, LAYERS, V, B, T = 16, 2, 32, 2, 64


def spec(name: str) -> ModelSpec:
    return reference(name, dim=D, layers=LAYERS)


@pytest.mark.parametrize("name", DESIGNS)
def test_costs_agree_with_the_real_model(name: str) -> None:
    check_costs(spec(name))


def test_costs_of_fusions_agree_with_the_real_model(fusion: ModelSpec) -> None:
    check_costs(fusion)


def check_costs(spec: ModelSpec) -> None:
    """Traced without memory, equal to what the built model has and does."""
    traced = cost(spec, batch=B, seq_len=T, vocab=V)
    model = build(spec, vocab=V)
    tokens = torch.randint(V, (B, T))
    assert traced.parameters == sum(p.numel() for p in model.parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            logits, state = model(tokens)
        with FlopCounterMode(display=False) as backward:
            logits.sum().backward()
        leaves = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
        with FlopCounterMode(display=False) as decode, torch.no_grad():
            for _ in range(period(spec.graph())):  # a slow layer's work falls on one of these
                _, state = model(tokens[:, :1], state)
    assert traced.forward_flops == forward.get_total_flops()
    assert traced.train_flops == forward.get_total_flops() + backward.get_total_flops()
    assert traced.decode_flops == round(decode.get_total_flops() / period(spec.graph()))
    assert traced.state_bytes == sum(leaf.nbytes for leaf in leaves)


def test_transformer_flops_by_hand() -> None:
    """2 FLOPs a weight and token, and 4 T^2 D a layer for scores and values."""
    hidden = round(8 / 3 * D)
    weights = LAYERS * (4 * D * D + 3 * D * hidden) + V * D
    expected = B * T * 2 * weights + B * LAYERS * 4 * T * T * D
    assert forward_flops(spec("transformer"), batch=B, seq_len=T, vocab=V) == expected


def test_retnet_flops_by_hand() -> None:
    """The scan adds 2 C (K + V) + 4 K V a token and head, with chunks of C = 64."""
    hidden, H, K, W = round(4 / 3 * D), 4, D // 4, D // 2  # W: value width of a head
    weights = LAYERS * (8 * D * D + 3 * D * hidden) + V * D
    scan = LAYERS * H * (2 * 64 * (K + W) + 4 * K * W)
    got = forward_flops(spec("retnet"), batch=B, seq_len=T, vocab=V)
    assert got == B * T * (2 * weights + scan)


def test_state_bytes_by_hand() -> None:
    grown = [state_bytes(spec("transformer"), batch=B, seq_len=t, vocab=V) for t in (10, 100)]
    assert grown[1] - grown[0] == LAYERS * B * 90 * 2 * D * 4  # keys and values, float32
    same = [state_bytes(spec("mamba"), batch=B, seq_len=t, vocab=V) for t in (10, 100)]
    inner = 2 * D
    assert same[0] == same[1] == 2 * LAYERS * B * 4 * (inner * 16 + inner * 3)


@pytest.mark.parametrize("name", ["retnet", "mamba", "transformer", "lstm"])
def test_costs_grow_with_size(name: str) -> None:
    small = asdict(cost(spec(name), batch=1, seq_len=32, vocab=V))
    wider = asdict(cost(reference(name, dim=2 * D, layers=LAYERS), batch=1, seq_len=32, vocab=V))
    deeper = asdict(cost(reference(name, dim=D, layers=2 * LAYERS), batch=1, seq_len=32, vocab=V))
    longer = asdict(cost(spec(name), batch=1, seq_len=64, vocab=V))
    for key, value in small.items():
        assert value < wider[key], key
        assert value < deeper[key], key
        assert value <= longer[key], key
    assert small["bytes_moved"] > 0


def test_train_memory_is_the_allocators_peak() -> None:
    """Of a transformer, whose operators allocate nothing unseen: within 1% of what the CPU did."""
    size = {"batch": 4, "seq_len": 128, "vocab": 64}
    spec = reference("transformer", dim=32, layers=2)
    model = build(spec, vocab=64)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        logits, _ = model(tokens)
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    tokens = torch.randint(64, (4, 128))
    step()
    standing = sum(p.nbytes for p in model.parameters()) * 3 + tokens.nbytes
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()  # type: ignore[attr-defined]
            peak = max(peak, now)
    assert train_memory(spec, **size) == pytest.approx(standing + peak, rel=0.01)


@pytest.mark.parametrize(
    ("text", "units", "value"),
    [("400k", COUNT, 400_000), ("1.5M", COUNT, 1_500_000), ("7", COUNT, 7), ("2 G", COUNT, 2 * 10**9),
     ("600MiB", BYTES, 600 * 2**20), ("1.5 KiB", BYTES, 1536), ("3MB", BYTES, 3_000_000)],
)  # fmt: skip
def test_quantities(text: str, units: dict, value: int) -> None:
    assert quantity(units)(text) == value


@pytest.mark.parametrize("text", ["4kk", "k", "1.2.3k", "600MiB", "-3k", "."])
def test_quantities_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number with a unit of k, M, G, T"):
        quantity(COUNT)(text)


def test_the_first_limit_broken_stops_the_screen() -> None:
    architecture = spec("transformer")
    limits = {"parameters": {"max": "1M"}, "state": {"max": 8, "context": 16}}
    costs, excess = Budgets.model_validate(limits).screen(architecture, V)
    assert list(costs) == ["parameters", "flops_per_token", "state"]
    assert costs["parameters"] == parameters(architecture, vocab=V)
    assert excess is not None
    assert (excess.budget, excess.max, excess.cost) == ("state", 8, costs["state"])
    assert excess.ratio == costs["state"] / 8 - 1
    costs, excess = Budgets().screen(architecture, V)
    assert excess is None
    assert list(costs) == ["parameters", "flops_per_token", "state", "train_memory"]
