"""The compiled model: streaming, causal, and the same as its graph says."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from archsearch import build, reference
from archsearch.baselines import DESIGNS
from archsearch.spec import ModelSpec

FUSIONS = {
    "interleave": {"type": "interleave", "major": "mamba", "minor": "attention", "period": 2},
    "parallel": {
        "type": "parallel",
        "branches": ["retention", "mamba", {"type": "attention", "window": 4}],
        "merge": "route",
    },
    "hierarchical": {
        "type": "hierarchical",
        "stages": {
            "low": {"mixer": "mamba"},
            "high": {"parallel": {"branches": ["retention", "short_conv"], "merge": "concat"}},
        },
        "depth": {"low": 1, "high": 2},
    },
}


def model(name: str) -> Any:
    if name not in FUSIONS:
        return build(reference(name, dim=16, layers=2), vocab=23).double()
    data = {"dim": 16, "layers": 3, "topology": FUSIONS[name]}
    return build(ModelSpec.model_validate(data), vocab=23).double()


each = pytest.mark.parametrize("name", [*FUSIONS, *DESIGNS])


@each
def test_streaming_and_causality(name: str) -> None:
    net, tokens = model(name).eval(), torch.randint(23, (2, 41))
    logits, last = net(tokens)
    assert logits.shape == (2, 41, 23)
    state, pieces = None, []
    for start, end in pairwise([0, 1, 2, 20, 41]):
        y, state = net(tokens[:, start:end], state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), logits, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(state, last, rtol=1e-7, atol=1e-9)
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 23
    torch.testing.assert_close(net(changed)[0][:, :20], logits[:, :20], rtol=1e-9, atol=1e-10)


@each
def test_every_parameter_has_a_gradient(name: str) -> None:
    net = model(name)
    net(torch.randint(23, (2, 10)))[0].square().sum().backward()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None, parameter_name


def test_a_residual_layer_by_hand() -> None:
    """x + mix(norm(x)), then x + mlp(norm(x)), norm, tied head."""
    net = model("retnet")
    tokens = torch.randint(23, (1, 7))
    x = net.embed(tokens)
    for i in range(2):
        get = lambda part, i=i: getattr(net, f"layer{i}_{part}")  # noqa: E731
        x = x + get("mixer")(get("norm")(x))[0]
        x = x + get("mlp")(get("mlp_norm")(x))[0]
    torch.testing.assert_close(net(tokens)[0], net.norm(x) @ net.embed.weight.T)


def test_the_seed_decides_the_weights() -> None:
    for seed, equal in ((1, True), (2, False)):
        torch.manual_seed(1)
        a = model("mamba").state_dict()
        torch.manual_seed(seed)
        b = model("mamba").state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a) == equal
