"""The laws of a block, over the whole catalogue and over every value of every option.

A new block is tested by being in the catalogue. Everything runs in float64, so that a law that does
not hold stands out from rounding by many orders of magnitude.
"""

import collections.abc
import inspect
import types
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from archsearch.blocks import Block, ChannelMixer, Family, Mixer

DIM = 16
NUMBERS: dict[str, list[Any]] = {  # values for options that are numbers, by name
    "heads": [1, 2], "kv_heads": [1, 2], "window": [1, 5], "conv": [0, 3], "width": [1, 4],
    "expand": [1, 2], "state": [2, 4], "half_life": [3.0], "temperature": [0.5],
    "features": [3, 9], "seed": [1], "expand_k": [0.5, 1.5], "groups": [2], "lower": [0.5],
    "key_heads": [1, 2], "dilation": [3], "sinks": [2], "softcap": [2.0], "shift": [1, 9],
}  # fmt: skip
NEEDS: dict[str, dict[str, Any]] = {  # options that mean something beside others only
    "dilation": {"window": 4}, "sinks": {"window": 5},
}  # fmt: skip


def values(name: str, kind: Any) -> list[Any]:
    """Values to try for one option."""
    origin = get_origin(kind)
    if origin is Literal:
        return list(get_args(kind))
    if kind is bool:
        return [False, True]
    if origin is collections.abc.Callable:
        family = get_args(kind)[1]
        return [p for member in family.members.values() for p in variants(member)]
    if origin in (Union, types.UnionType) or kind in (int, float):
        return NUMBERS[name]
    raise TypeError(f"no values for {name}: {kind}; add them to NUMBERS")


def variants(cls: type[Family]) -> Iterator[partial]:
    """A part with its defaults, then with one option changed at a time."""
    yield partial(cls)
    hints = get_type_hints(cls.__init__)
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "eps":
            for value in values(parameter.name, hints[parameter.name]):
                yield partial(cls, **{parameter.name: value}, **NEEDS.get(parameter.name, {}))


def name_of(part: Any) -> str:
    if not isinstance(part, partial):
        return str(part)
    options = ",".join(f"{k}={name_of(v)}" for k, v in part.keywords.items())
    return f"{part.func.name}({options})"  # type: ignore[attr-defined]


MIXERS = [v for cls in Mixer.members.values() for v in variants(cls)]
BLOCKS = MIXERS + [v for cls in ChannelMixer.members.values() for v in variants(cls)]
each_block = pytest.mark.parametrize("part", BLOCKS, ids=name_of)
each_mixer = pytest.mark.parametrize("part", MIXERS, ids=name_of)


def build(part: partial) -> Block:
    """The block in float64, every parameter off its birth value."""
    block = part(DIM).double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return block


def noise(B: int, T: int) -> Tensor:
    return torch.randn(B, T, DIM, dtype=torch.float64)


def tensors(state: Any) -> list[Tensor]:
    """The tensors of a state."""
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)  # states are float64, too


@each_block
def test_shape_and_causality(part: partial) -> None:
    block, x = build(part), noise(2, 70)
    y, _ = block(x)
    assert y.shape == x.shape
    for t in (1, 33, 64, 69):
        changed = torch.cat((x[:, :t], noise(2, 70 - t)), dim=1)
        close(block(changed)[0][:, :t], y[:, :t])
        assert not torch.allclose(block(changed)[0][:, t:], y[:, t:])


@each_block
def test_streaming_equals_the_whole(part: partial) -> None:
    block, x = build(part), noise(2, 67)
    whole, last = block(x)
    for cuts in ([0, 1, 2, 3, 67], [0, 31, 67], [0, 64, 65, 66, 67], [0, 66, 67]):
        state, pieces = None, []
        for start, end in pairwise(cuts):
            y, state = block(x[:, start:end], state)
            pieces.append(y)
        close(torch.cat(pieces, dim=1), whole)
        close(state, last)


@each_block
def test_gradients_flow_through_the_state(part: partial) -> None:
    """Gradients of a sequence in two pieces equal those of the whole."""
    block, x = build(part), noise(2, 20)
    weights = noise(2, 20)
    parameters = [p for p in block.parameters() if p.requires_grad]
    whole = torch.autograd.grad((block(x)[0] * weights).sum(), parameters)
    first, state = block(x[:, :9])
    second, _ = block(x[:, 9:], state)
    pieces = torch.autograd.grad((torch.cat((first, second), 1) * weights).sum(), parameters)
    close(pieces, whole)


@each_mixer
def test_backends_agree(part: partial, monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = build(part), noise(2, 37)
    parameters = list(block.parameters())

    def run() -> tuple[Any, ...]:
        y, state = block(x)
        total = y.square().sum() + sum(leaf.sum() for leaf in tensors(state))
        return y, state, torch.autograd.grad(total, parameters)

    fast = run()
    for module in {inspect.getmodule(type(m)) for m in block.modules()}:
        for name in ("scan", "delta_scan", "selective_scan", "causal_conv"):
            if operator := getattr(module, name, None):
                monkeypatch.setattr(module, name, partial(operator, backend="reference"))
    close(fast, run())


@each_block
def test_batch_rows_do_not_see_each_other(part: partial) -> None:
    block, x = build(part), noise(3, 20)
    y, state = block(x)
    alone, alone_state = block(x[1:2])
    close(y[1:2], alone)
    rows = tree_map(lambda s: s[1:2] if isinstance(s, Tensor) and s.dim() else s, state)
    close(rows, alone_state)


@each_block
def test_evaluation_is_deterministic(part: partial) -> None:
    block, x = build(part), noise(2, 40)
    assert torch.equal(block(x)[0], block(x)[0])


@each_mixer
def test_the_state_grows_only_if_the_block_says_so(part: partial) -> None:
    block = build(part)
    sizes = [sum(leaf.nbytes for leaf in tensors(block(noise(1, T))[1])) for T in (50, 100)]
    assert (sizes[1] > sizes[0]) == block.grows


@each_block
@pytest.mark.parametrize("kind", ["zero", "constant", "huge", "long"])
def test_values_and_gradients_are_finite(part: partial, kind: str) -> None:
    """Huge inputs drive selective decays to both ends: g far below -50, and 0."""
    block = build(part).float()
    x = {
        "zero": torch.zeros(1, 65, DIM),
        "constant": torch.ones(1, 65, DIM),
        "huge": 1e3 * torch.randn(1, 65, DIM),
        "long": torch.randn(1, 700, DIM),
    }[kind].requires_grad_()
    y, _ = block(x)
    gradients = torch.autograd.grad(y.sum(), [x, *block.parameters()])
    for value in (y, *gradients):
        assert value.isfinite().all()


@each_block
def test_saving_and_loading_changes_nothing(part: partial, tmp_path: Any) -> None:
    block, x = build(part), noise(1, 20)
    torch.save(block.state_dict(), tmp_path / "weights.pt")
    twin = part(DIM).double().eval()
    twin.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert torch.equal(block(x)[0], twin(x)[0])


@each_block
def test_every_parameter_matters(part: partial) -> None:
    """A parameter without a gradient is a mistake, and costs budget for nothing."""
    block = build(part)
    (block(noise(2, 20))[0] * noise(2, 20)).sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.slow
@pytest.mark.parametrize("cls", [*Mixer.members.values()], ids=lambda c: c.name)
def test_compiled_equals_eager(cls: type[Block]) -> None:
    block, x = build(partial(cls)), noise(1, 40)
    compiled: nn.Module = torch.compile(block, backend="aot_eager", fullgraph=True)  # type: ignore
    close(compiled(x)[0], block(x)[0])
    weights = noise(1, 40)
    parameters = list(block.parameters())
    eager = torch.autograd.grad((block(x)[0] * weights).sum(), parameters)
    close(torch.autograd.grad((compiled(x)[0] * weights).sum(), parameters), eager)
