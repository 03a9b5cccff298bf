"""A block with the weights of a released implementation gives its outputs: whole, and step by step."""

import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

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


@torch.no_grad()
@pytest.mark.parametrize("form", ["parallel", "chunkwise", "recurrent"])
def test_retention(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchscale's three forms; it interleaves the pairs that it turns, ours are halves."""
    for name in ("fairscale", "fairscale.nn", "timm", "timm.models", "timm.models.layers"):
        monkeypatch.setitem(sys.modules, name, MagicMock())  # of other layers in the same file
    retnet: Any = import_module("torchscale.architecture.retnet")
    H, length = 2, 64
    args = SimpleNamespace(
        decoder_embed_dim=DIM, decoder_retention_heads=H, recurrent_chunk_size=16,
        layernorm_eps=1e-12, multiway=False,
    )  # fmt: skip
    theirs: Any = off_birth(retnet.MultiScaleRetention(args, DIM, 2 * DIM, H))
    theirs.v_proj.weight.mul_(1e3)  # free before the norm; makes ours, of larger eps, the same
    w = dict(theirs.named_parameters())
    q, k = (
        w[f"{name}_proj.weight"].unflatten(0, (H, -1, 2)).transpose(1, 2).flatten(0, 2)
        for name in "qk"
    )
    block = load(
        Mixer.members["retention"](DIM, heads=H, expand=2),
        {
            "qkv.weight": torch.cat((q, k, w["v_proj.weight"])), "gate.weight": w["g_proj.weight"],
            "out.weight": w["out_proj.weight"],
        },
    )  # fmt: skip
    positions, x = retnet.RetNetRelPos(args), torch.randn(2, length, DIM)
    if form == "recurrent":
        memory: dict[str, Tensor] = {}
        steps = [
            theirs(
                x[:, t : t + 1], positions(t + 1, activate_recurrent=True), incremental_state=memory
            )
            for t in range(length)
        ]
        want = torch.cat(steps, dim=1)
    else:
        chunks = form == "chunkwise"
        want = theirs(x, positions(length, chunkwise_recurrent=chunks), chunkwise_recurrent=chunks)
    close(block, want, x)


ATTENTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # our options, theirs
    "llama": ({}, {}),
    "qwen3": ({"qk_norm": True}, {"head_dim": DIM // 4}),
    "gemma2": (
        {"softcap": 3.0, "window": 9},
        {"head_dim": DIM // 4, "query_pre_attn_scalar": DIM // 4, "attn_logit_softcapping": 3.0,
         "sliding_window": 9, "layer_types": ["sliding_attention"]},
    ),
    "jamba": ({"positions": "none"}, {}),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name: str) -> None:
    """Grouped heads and positions of Llama, normed heads of Qwen 3, caps and window of Gemma 2."""
    models: Any = import_module(f"transformers.models.{name}.modeling_{name}")
    ours, theirs_options = ATTENTIONS[name]
    title = name.capitalize()
    config = getattr(models, f"{title}Config")(
        hidden_size=DIM, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1,
        attn_implementation="eager", **theirs_options,
    )  # fmt: skip
    theirs = off_birth(getattr(models, f"{title}Attention")(config, 0))
    w = dict(theirs.named_parameters())
    weights = {
        "qkv.weight": torch.cat([w[f"{part}_proj.weight"] for part in "qkv"]),
        "out.weight": w["o_proj.weight"],
        **{
            f"{part}.weight": w[f"{part}.weight"]
            for part in ("q_norm", "k_norm")
            if f"{part}.weight" in w
        },
    }
    block = load(Mixer.members["attention"](DIM, kv_heads=2, **ours), weights)
    x, at = torch.randn(2, T, DIM), torch.arange(T)
    hidden = at > at[:, None]
    if "window" in ours:
        hidden |= at <= at[:, None] - ours["window"]
    mask = torch.zeros(T, T).masked_fill(hidden, -torch.inf)[None, None]
    options = {"attention_mask": mask}
    if name != "jamba":
        rotary = getattr(models, f"{title}RotaryEmbedding")(config)
        options["position_embeddings"] = rotary(x, at[None])
    close(block, theirs(x, **options)[0], x)
