"""The laws of a block (archsearch.laws), over the whole catalogue.

A new block is tested by being in the catalogue: every value of every option at one size, in float64,
so that a law that does not hold stands out from rounding by many orders of magnitude; then drawn
sizes and dtypes, where what fails is shrunk to its smallest case.
"""

import collections.abc
import inspect
import types
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from archsearch.blocks import Block, ChannelMixer, Family, Mixer
from archsearch.case import Case, Refused
from archsearch.checking import cases
from archsearch.laws import LAWS, hold

NUMBERS: dict[str, list[Any]] = {  # for options that are numbers, by name, or block and name
    "heads": [1, 2], "kv_heads": [1, 2], "window": [1, 5], "conv": [0, 3], "width": [1, 4],
    "expand": [1, 2], "state": [1, 4], "half_life": [3.0], "temperature": [0.5],
    "features": [3, 9], "seed": [1], "expand_k": [0.5, 1.5], "groups": [2], "lower": [0.5],
    "rank": [3], "summaries": [1], "length": [90],
    "key_heads": [1, 2], "dilation": [3], "sinks": [2], "softcap": [2.0], "experts": [3],
    "top_k": [1, 4], "balance": [0.0], "entropy": [0.1], "shift": [1, 8], "spread": [9.0],
    **{f"{name}.state": [2, 4] for name in ("s4", "s4d", "h3")},  # conjugate pairs
}  # fmt: skip
NEEDS: dict[str, dict[str, Any]] = {  # options that mean something beside others only
    "rank": {"weights": "random"}, "spread": {"per": "channel"}, "dilation": {"window": 4}, "sinks": {"window": 5},
}  # fmt: skip


def values(cls: type[Family], name: str, kind: Any) -> list[Any]:
    """Values to try for one option of a part."""
    origin = get_origin(kind)
    if origin is Literal:
        return list(get_args(kind))
    if kind is bool:
        return [False, True]
    if origin is collections.abc.Callable:
        family = get_args(kind)[1]
        if family is Mixer:
            return [partial(member) for member in family.members.values() if member.causal]
        return [p for member in family.members.values() for p in variants(member)]
    if origin in (Union, types.UnionType) or kind in (int, float):
        return NUMBERS.get(f"{cls.name}.{name}") or NUMBERS[name]
    raise TypeError(f"no values for {name}: {kind}; add them to NUMBERS")


def variants(cls: type[Family]) -> Iterator[partial]:
    """A part with its defaults, then with one option changed at a time."""
    yield partial(cls)
    hints = get_type_hints(cls.__init__)
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "eps":
            for value in values(cls, parameter.name, hints[parameter.name]):
                yield partial(cls, **{parameter.name: value}, **NEEDS.get(parameter.name, {}))


def name_of(part: Any) -> str:
    if not isinstance(part, partial):
        return str(part)
    options = ",".join(f"{k}={name_of(v)}" for k, v in part.keywords.items())
    return f"{part.func.name}({options})"  # type: ignore[attr-defined]


CLASSES = [*Mixer.members.values(), *ChannelMixer.members.values()]
BLOCKS = [part for cls in CLASSES for part in variants(cls)]
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.name)
SPAN = {
    "causality": 67,
    "streaming": 67,
    "finiteness": 67,
}  # beyond a chunk of 64; others 20 tokens
DRAWS = {  # the examples are the same every time
    "derandomize": True, "database": None, "deadline": None,
    "suppress_health_check": (HealthCheck.too_slow, HealthCheck.filter_too_much),
}  # fmt: skip


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("part", BLOCKS, ids=name_of)
def test_law(part: partial, law: str) -> None:
    hold(law, Case(part, length=SPAN.get(law, 20)))


def every_law(cls: type[Block], examples: int) -> None:
    """All laws on cases drawn for a block, half of which its constructor may refuse."""
    drawn = refused = 0

    @settings(max_examples=examples, **DRAWS)
    @given(cases(cls))
    def laws_hold(case: Case) -> None:
        nonlocal drawn, refused
        drawn += 1
        try:
            for law in LAWS:
                hold(law, case)
        except Refused:
            refused += 1
            hypothesis.reject()

    laws_hold()
    assert refused < drawn / 2, f"{refused} of {drawn} drawn sizes are refused"


@each_class
def test_laws_at_drawn_sizes(cls: type[Block]) -> None:
    every_law(cls, 2)


@pytest.mark.slow
@each_class
def test_laws_at_many_drawn_sizes(cls: type[Block]) -> None:
    every_law(cls, 40)


@pytest.mark.slow
@each_class
def test_compiled_equals_eager(cls: type[Block]) -> None:
    case = Case(cls, length=40)
    block, x, weights = case.block(), case.noise(), case.noise()
    compiled: nn.Module = torch.compile(block, backend="aot_eager", fullgraph=True)  # type: ignore
    case.close("outputs", compiled(x)[0], block(x)[0])
    parameters = list(block.parameters())
    eager = torch.autograd.grad((block(x)[0] * weights).sum(), parameters)
    gradients = torch.autograd.grad((compiled(x)[0] * weights).sum(), parameters)
    case.close("gradients", gradients, eager)
