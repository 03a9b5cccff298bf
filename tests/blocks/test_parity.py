"""A block with the weights of a released implementation gives its outputs: whole, and step by step."""

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from archsearch.blocks import Mixer

DIM, T = 24, 70


def close(block: nn.Module, theirs: Tensor, x: Tensor) -> None:
    """The block's outputs over x are theirs to 1e-5, in one pass and token by token."""
    whole, _ = block(x)
    state, steps = None, []
    for x_t in x.split(1, dim=1):
        y_t, state = block(x_t, state)
        steps.append(y_t)
    for ours in (whole, torch.cat(steps, dim=1)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def off_birth(module: nn.Module) -> nn.Module:
    """Every parameter moved: what is zero or one at birth counts as well."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def load(block: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Every parameter of the block, and no other."""
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.copy_(weights.pop(name).reshape(parameter.shape))
    assert not weights
    return block.eval()


@torch.no_grad()
def test_mamba() -> None:
    models: Any = import_module("transformers.models.mamba.modeling_mamba")
    config = models.MambaConfig(hidden_size=DIM, state_size=5, num_hidden_layers=1)
    theirs = off_birth(models.MambaMixer(config, 0))
    w = dict(theirs.named_parameters())
    names = {
        "A_log": "A_log", "D": "D", "into.weight": "in_proj.weight", "out.weight": "out_proj.weight",
        "conv.filter": "conv1d.weight", "conv.bias": "conv1d.bias", "select.weight": "x_proj.weight",
        "step.weight": "dt_proj.weight", "step.bias": "dt_proj.bias",
    }  # fmt: skip
    block = load(Mixer.members["mamba"](DIM, state=5), {a: w[b] for a, b in names.items()})
    x = torch.randn(2, T, DIM)
    close(block, theirs(x), x)


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2(groups: int) -> None:
    models: Any = import_module("transformers.models.mamba2.modeling_mamba2")
    config = models.Mamba2Config(
        hidden_size=DIM, state_size=6, num_heads=4, head_dim=2 * DIM // 4, n_groups=groups,
        num_hidden_layers=1, chunk_size=32,
    )  # fmt: skip
    theirs = off_birth(models.Mamba2Mixer(config, 0))
    w = dict(theirs.named_parameters())
    names = {
        "a": "A_log", "D": "D", "into.weight": "in_proj.weight", "out.weight": "out_proj.weight",
        "conv.filter": "conv1d.weight", "conv.bias": "conv1d.bias", "step": "dt_bias",
        "norm": "norm.weight",
    }  # fmt: skip
    block = Mixer.members["mamba2"](DIM, heads=4, state=6, groups=groups)
    x = torch.randn(2, T, DIM)
    close(load(block, {a: w[b] for a, b in names.items()}), theirs(x), x)


@torch.no_grad()
def test_gated_delta_net() -> None:
    models: Any = import_module("transformers.models.qwen3_next.modeling_qwen3_next")
    H, K = 4, DIM // 4
    config = models.Qwen3NextConfig(
        hidden_size=DIM, linear_num_value_heads=H, linear_num_key_heads=H, linear_key_head_dim=K,
        linear_value_head_dim=2 * K, num_hidden_layers=4,
    )  # fmt: skip
    theirs = off_birth(models.Qwen3NextGatedDeltaNet(config, 0))
    w = dict(theirs.named_parameters())
    per_head = w["in_proj_qkvz.weight"].unflatten(0, (H, -1))
    q, k, v, z = (part.flatten(0, 1) for part in per_head.split((K, K, 2 * K, 2 * K), dim=1))
    beta, step = w["in_proj_ba.weight"].unflatten(0, (H, 2)).unbind(1)
    block = load(
        Mixer.members["gated_delta_net"](DIM, heads=H, expand=2),
        {
            "qkv.weight": torch.cat((q, k, v)), "conv.filter": w["conv1d.weight"],
            "conv.bias": torch.zeros(4 * DIM), "beta.weight": beta, "step.weight": step,
            "step.bias": w["dt_bias"], "a": w["A_log"], "norm.weight": w["norm.weight"],
            "gate.weight": z, "out.weight": w["out_proj.weight"],
        },
    )  # fmt: skip
    x = torch.randn(2, T, DIM)
    close(block, theirs(x), x)


@torch.no_grad()
@pytest.mark.parametrize(("name", "net"), [("rnn", nn.RNN), ("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_recurrent_nets(name: str, net) -> None:
    theirs = net(DIM, 2 * DIM, batch_first=True)
    block = Mixer.members[name](DIM, expand=2)
    weights = {f"weights.{i}": p for i, p in enumerate(theirs.parameters())}
    block = load(block, weights | {"out.weight": torch.eye(2 * DIM)[:DIM]})
    x = torch.randn(2, T, DIM)
    close(block, theirs(x)[0][..., :DIM], x)
