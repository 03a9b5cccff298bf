"""The compiled model: streaming, causal, and the same as its graph says."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, stack_module_state

from archsearch import build, reference
from archsearch.baselines import DESIGNS
from archsearch.spec import ModelSpec

PLAIN = {"type": "interleave", "major": "retention"}
SMALL = {"dim": 16, "layers": 1}


DESIGN_SPECS = {name: reference(name, dim=16, layers=2) for name in DESIGNS}
each_design = pytest.mark.parametrize("spec", DESIGN_SPECS.values(), ids=DESIGN_SPECS)


def check_streaming_and_causality(spec: ModelSpec) -> None:
    net, tokens = build(spec, vocab=23).double().eval(), torch.randint(23, (2, 41))
    logits, last = net(tokens)
    assert logits.shape == (2, 41, 23)
    state, pieces = None, []
    for start, end in pairwise([0, 1, 2, 3, 20, 41]):
        y, state = net(tokens[:, start:end], state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), logits, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(state, last, rtol=1e-7, atol=1e-9)
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 23
    torch.testing.assert_close(net(changed)[0][:, :20], logits[:, :20], rtol=1e-9, atol=1e-10)


def check_every_parameter_has_a_gradient(spec: ModelSpec) -> None:
    net = build(spec, vocab=23)
    net(torch.randint(23, (2, 10)))[0].square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@each_design
def test_a_design_learns_in_twenty_steps(spec: ModelSpec) -> None:
    """Tokens that repeat with a period of five: well below chance, which is log 23."""
    net = build(spec, vocab=23)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    starts = torch.randint(23, (8, 5))
    tokens = starts.repeat(1, 6)
    losses = []
    for _ in range(20):
        logits, _ = net(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    assert all(b < a for a, b in pairwise([sum(losses[i : i + 5]) for i in (0, 5, 10, 15)]))


@each_design
def test_a_design_streams_and_learns_everywhere(spec: ModelSpec) -> None:
    check_streaming_and_causality(spec)
    check_every_parameter_has_a_gradient(spec)


@each_design
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # operators without a rule
def test_a_design_is_a_function_of_its_weights(spec: ModelSpec) -> None:
    """As torch.func calls it, several at once too: losses and gradients of each are its own."""
    nets = [build(spec, vocab=23).double() for _ in range(2)]
    tokens = torch.randint(23, (2, 3, 10))
    weights, buffers = stack_module_state(nets)  # type: ignore[arg-type]
    weights = {name: stack.detach().requires_grad_() for name, stack in weights.items()}

    def loss(weights: dict, buffers: dict, tokens: torch.Tensor) -> torch.Tensor:
        return functional_call(nets[0], (weights, buffers), (tokens,))[0].square().mean()

    if spec in (DESIGN_SPECS["s4"], DESIGN_SPECS["lstm"]):  # refused, as torch has no rule
        with pytest.raises(RuntimeError, match="Batching rule not implemented"):
            torch.vmap(loss)(weights, buffers, tokens)
        return
    together = torch.vmap(loss)(weights, buffers, tokens)
    together.sum().backward()
    for i, net in enumerate(nets):
        alone = net(tokens[i])[0].square().mean()
        alone.backward()
        torch.testing.assert_close(together[i], alone, rtol=1e-9, atol=1e-12)
        for name, parameter in net.named_parameters():
            grad = weights[name].grad
            assert grad is not None
            torch.testing.assert_close(grad[i], parameter.grad, rtol=1e-7, atol=1e-10)


def test_a_fusion_streams_and_learns_everywhere(fusion: ModelSpec) -> None:
    check_streaming_and_causality(fusion)
    check_every_parameter_has_a_gradient(fusion)


def model(spec: dict[str, Any]) -> Any:
    return build(ModelSpec.model_validate(spec), vocab=23).double()


def test_what_layers_at_a_lower_rate_see() -> None:
    """Written out: they run on means of whole groups, and their work is held until the next."""
    stage = {"mixer": "retention", "rate": 4}
    topology = {"type": "hierarchical", "stages": {"slow": stage}, "depth": {"slow": 1}}
    slow = model(SMALL | {"topology": topology})
    fast = model(SMALL | {"topology": PLAIN})
    fast.load_state_dict(slow.state_dict())
    tokens = torch.randint(23, (1, 11))
    x = slow.embed(tokens)
    u = x[:, :8].unflatten(1, (2, 4)).mean(2)
    h = u + fast.layer0_mixer(fast.layer0_norm(u))[0]
    h = h + fast.layer0_mlp(fast.layer0_mlp_norm(h))[0]
    held = torch.cat((torch.zeros_like(x[:, :3]), (h - u).repeat_interleave(4, 1)), 1)[:, :11]
    logits = slow.norm(x + held) @ slow.embed.weight.T
    torch.testing.assert_close(slow(tokens)[0], logits)


def test_a_division_by_hand() -> None:
    """Channels: each part has its own. Heads: each reads all of them, and both are projected."""
    parts = [{"type": "retention", "heads": 2}, "mamba"]
    for over in ("channels", "heads"):
        topology = {"type": "split", "parts": parts, "ratio": 0.75, "over": over}
        net = model(SMALL | {"mlp": None, "topology": topology})
        tokens = torch.randint(23, (1, 7))
        embedded = net.embed(tokens)
        x = net.layer0_norm(embedded)
        if over == "channels":
            ends = [net.layer0_part0(x[..., :12])[0], net.layer0_part1(x[..., 12:])[0]]
            y = torch.cat(ends, -1)
        else:
            ends = [
                getattr(net, f"layer0_part{j}")(getattr(net, f"layer0_part{j}_read")(x))[0]
                for j in (0, 1)
            ]
            y = net.layer0_write(torch.cat(ends, -1))
        torch.testing.assert_close(net(tokens)[0], net.norm(embedded + y) @ net.embed.weight.T)


def test_a_join_reads_named_layers() -> None:
    nodes = {
        "a": {"mixer": "retention", "reads": ["input"]},
        "b": {"mixer": "mamba", "reads": ["a", "input"], "join": "gate"},
    }
    spec = {"dim": 16, "layers": 2, "mlp": None, "topology": {"type": "graph", "nodes": nodes}}
    net = model(spec)
    tokens = torch.randint(23, (1, 7))
    x = net.embed(tokens)
    a = x + net.layer0_mixer(net.layer0_norm(x))[0]
    b = net.layer1_join((a + x) / 2, x, a)  # the sources bottom to top
    b = b + net.layer1_mixer(net.layer1_norm(b))[0]
    torch.testing.assert_close(net(tokens)[0], net.norm(b) @ net.embed.weight.T)


def test_a_residual_layer_by_hand() -> None:
    """x + mix(norm(x)), then x + mlp(norm(x)), norm, tied head."""
    net = model(DESIGN_SPECS["retnet"].model_dump())
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
        a = model(DESIGN_SPECS["mamba"].model_dump()).state_dict()
        torch.manual_seed(seed)
        b = model(DESIGN_SPECS["mamba"].model_dump()).state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a) == equal
