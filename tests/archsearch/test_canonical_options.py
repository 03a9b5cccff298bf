"""Options said in one way: equal exactly where a part is built, computes and learns the same."""

import random
from collections.abc import Iterator
from functools import partial
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from archsearch.blocks import Decay, Family, Merge
from archsearch.blocks.attention import Attention
from archsearch.blocks.bidirectional import Bidirectional
from archsearch.blocks.block import canonical
from archsearch.blocks.retention import Retention
from archsearch.case import tensors
from archsearch.catalogue import options_of
from archsearch.checking import variants

MEMBERS = [cls for family in Family.__subclasses__() for cls in family.members.values()]
each_member = pytest.mark.parametrize("cls", MEMBERS, ids=lambda c: c.__name__)
NUMBERS: dict[type, tuple] = {int: (1, 2, 4), float: (0.5, 0.52, 1.0, 3.0), type(None): (None,)}
WRONG: dict[type, tuple] = {int: (-1, 0, 7), float: (-1.0, 0.0, float("nan")), type(None): ()}
BASES, LENGTH = 5, 13


def sizes_of(cls: type[Family]) -> list[tuple[int, ...]]:
    """What a part of its family is built with: few heads and channels, for more to coincide."""
    if issubclass(cls, Decay):
        return [(8, 1, 2), (8, 2, 1), (10, 5, 2)]
    return [(8, 2), (8, 3)] if issubclass(cls, Merge) else [(4,)]


def values(cls: type[Family], numbers: dict[type, tuple]) -> dict[str, list[Any]]:
    """Values of every option: all that can be listed, and some numbers."""
    found: dict[str, list[Any]] = {option.name: [option.default] for option in options_of(cls)}
    if cls is Bidirectional:  # which takes any mixer, and so has no end of variants
        found["mixer"] += [partial(Retention, heads=2, key_heads=n) for n in (1, 2, None)]
        return found
    for made in variants(cls):
        for name, value in made.keywords.items():  # type: ignore[attr-defined]
            found[name].append(value)
    hints = get_type_hints(cls.__init__)
    for name, listed in found.items():
        for kind in get_args(hints[name]) or (hints[name],):
            listed += [n for n in numbers.get(kind, ()) if n not in listed]
    return found


def built(cls: type[Family], options: dict[str, Any], sizes: tuple[int, ...]) -> nn.Module | str:
    """The module born of a seed, or why it is refused."""
    torch.default_generator.manual_seed(0)
    try:
        return cls(*sizes, **options).double()  # type: ignore[call-arg,attr-defined]
    except ValueError as error:
        return str(error)


def ran(cls: type[Family], module: nn.Module, sizes: tuple[int, ...]) -> list[Tensor]:
    """Its weights at birth, then of weights moved a little what it gives and its gradients."""
    torch.default_generator.manual_seed(1)
    birth = [z.clone() for z in module.state_dict().values()]
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    several = sizes[1] if issubclass(cls, Merge) else 0
    length = min(LENGTH, getattr(module, "longest", None) or LENGTH)
    xs = [torch.randn(1, length, sizes[0], dtype=torch.float64) for _ in range(1 + several)]
    leaves = [z for z in tensors(module.train()(*xs)) if z.is_floating_point()]
    learned = [z for z in leaves if z.requires_grad]
    if not learned:
        return leaves + birth
    total = torch.cat([(z * torch.linspace(1, 2, z.numel()).view_as(z)).flatten() for z in learned])
    weights = list(module.parameters())
    gradients = torch.autograd.grad(total.sum(), weights, materialize_grads=True) if weights else ()
    return [*leaves, *gradients, *birth]


def alike(one: list[Tensor], other: list[Tensor]) -> bool:
    """Equal but for rounding."""
    if [z.shape for z in one] != [z.shape for z in other]:
        return False
    return all(torch.allclose(a, b, 1e-6, 1e-7) for a, b in zip(one, other, strict=True))


def told(part: Any, sizes: tuple[int, ...]) -> Any:
    """A part as it can be compared: its class, and its canonical options in turn."""
    made = canonical(part, *sizes)
    return made.func, {k: plain(v) for k, v in made.keywords.items()}


def plain(value: Any) -> Any:
    if isinstance(value, partial):
        return value.func, {k: plain(v) for k, v in value.keywords.items()}
    return (type(value), value)


def filled(cls: type, options: dict[str, Any]) -> dict[str, Any]:
    """All options, those of nested parts as well, as a spec has them."""
    full = {option.name: option.default for option in options_of(cls)} | options
    for name, value in full.items():
        if isinstance(value, partial) or (isinstance(value, type) and issubclass(value, Family)):
            made = value if isinstance(value, partial) else partial(value)
            full[name] = partial(made.func, **filled(made.func, made.keywords))  # type: ignore[arg-type]
    return full


def drawn(cls: type[Family], sizes: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Options at random that can be built, and after each those with one of them changed."""
    rng, known = random.Random(str(sizes)), values(cls, NUMBERS)
    legal: list[dict[str, Any]] = []
    while len(legal) < BASES:
        base = {name: rng.choice(v) for name, v in known.items() if rng.random() < 0.8}
        if isinstance(built(cls, filled(cls, base), sizes), nn.Module):
            legal.append(base)
    for base in legal:
        yield filled(cls, base)
        for name in rng.sample(sorted(known), min(4, len(known))):
            for value in rng.sample(known[name], min(3, len(known[name]))):
                yield filled(cls, base | {name: value})


@each_member
def test_equal_exactly_where_nothing_differs(cls: type[Family]) -> None:
    """Of all pairs that were drawn; so no option without effect is left to be found there."""
    for sizes in sizes_of(cls):
        seen: list[tuple[Any, dict[str, Any], list[Tensor]]] = []
        for options in drawn(cls, sizes):
            one = told(partial(cls, **options), sizes)
            module = built(cls, options, sizes)
            if isinstance(module, str) or one in [other for other, *_ in seen]:
                continue
            trace = ran(cls, module, sizes)
            rewritten = built(cls, canonical(partial(cls, **options), *sizes).keywords, sizes)
            assert isinstance(rewritten, nn.Module), f"{cls.__name__} {options}: {rewritten}"
            assert list(rewritten.state_dict()) == list(module.state_dict())
            assert alike(ran(cls, rewritten, sizes), trace), f"{options} does not compute {one}"
            for _, others, another in seen:
                assert not alike(another, trace), f"{sizes}: {options} and {others} are the same"
            seen.append((one, options, trace))


@each_member
def test_what_is_refused_stays_refused(cls: type[Family]) -> None:
    """In the same words, and of itself saying it in one way raises nothing."""
    for sizes in sizes_of(cls):
        for name, wrong in values(cls, WRONG).items():
            for value in wrong:
                options = filled(cls, {name: value})
                after = canonical(partial(cls, **options), *sizes).keywords
                first, second = built(cls, options, sizes), built(cls, after, sizes)
                assert isinstance(first, nn.Module) == isinstance(second, nn.Module)
                assert isinstance(first, nn.Module) or first == second


def test_a_subclass_speaks_for_itself() -> None:
    """It may compute something else by the same options, or have others."""

    class Mine(Attention):
        def __init__(self, dim: int, *, memory: int = 1) -> None:
            super().__init__(dim, window=memory)

    assert canonical(partial(Mine, memory=2), 8).keywords == {"memory": 2}
