"""What is remembered of operators is what they really make."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from archsearch import counting, shapes
from archsearch.blocks import Mixer
from archsearch.counting import Counts
from archsearch.ends import language
from archsearch.memory import train_memory
from archsearch.spec import ModelSpec

aten = torch.ops.aten
LANGUAGE = language(32)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What other tests asked for is no help here, nor what is asked here elsewhere."""
    shapes._known.clear()
    counting._run.cache_clear()
    yield
    shapes._known.clear()


def look(x: Any) -> Any:
    if isinstance(x, Tensor):
        return tuple(x.shape), x.stride(), x.dtype, x.device, x.untyped_storage().nbytes()
    return tuple(map(look, x)) if isinstance(x, tuple | list) else x


def trace(mixer: str, length: int) -> None:
    topology = {"type": "interleave", "major": {"type": mixer}}
    spec = ModelSpec.model_validate({"dim": 16, "layers": 2, "topology": topology, "causal": False})
    Counts(spec, LANGUAGE).train(2, length)
    train_memory(spec, LANGUAGE, batch=2, seq_len=length)


@pytest.mark.parametrize("mixer", Mixer.members)
def test_every_block_is_traced_as_it_runs(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a second length too, of which the first one taught what does not depend on it."""
    remembered = shapes.run

    def compared(func: Any, args: Any, kwargs: Any) -> Any:
        if func._schema.is_mutable:
            return remembered(func, args, kwargs)
        real, out = func(*args, **kwargs), remembered(func, args, kwargs)
        assert look(out) == look(real), func
        return out

    monkeypatch.setattr(shapes, "run", compared)
    for length in (24, 40):
        trace(mixer, length)


def test_what_is_known_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trace("mamba", 24)
    counting._run.cache_clear()
    asked: list[Any] = []
    made = shapes._made
    monkeypatch.setattr(shapes, "_made", lambda *args: asked.append(args[0]) or made(*args))
    trace("mamba", 24)
    assert not asked
    trace("mamba", 40)
    assert asked
    assert aten.rsqrt.default not in asked  # pointwise: what is known is so of any length


CASES: dict[str, Callable[[], list[tuple[Any, tuple]]]] = {
    "a number that is no tensor promotes less than a tensor without dimensions": lambda: [
        (aten.mul.Tensor, (half(2, 3), full())),
        (aten.mul.Tensor, (half(2, 3), full(3))),
        (aten.mul.Tensor, (half(2, 3), 2.0)),
    ],
    "an integer and a float that are equal": lambda: [
        (aten.mul.Tensor, (whole(3), 2)),
        (aten.mul.Tensor, (whole(3), 2.0)),
        (aten.mul.Tensor, (whole(3), True)),
    ],
    "arguments that are laid out otherwise": lambda: [
        (aten.add.Tensor, (full(3, 4), full(3, 4))),
        (aten.add.Tensor, (full(4, 3).t(), full(4, 3).t())),
        (aten.add.Tensor, (full(3, 4), full(1, 4))),
        (aten.clone.default, (full(1, 4).expand(3, 4),)),
    ],
    "results that are an argument or a view of one": lambda: [
        (aten.view.default, (full(3, 4), [12])),
        (aten._unsafe_view.default, (full(3, 4), [12])),
        (aten.alias.default, (full(3, 4),)),
    ],
    "other devices": lambda: [
        (aten.exp.default, (full(3),)),
        (aten.exp.default, (torch.zeros(3),)),
        (aten.mul.Tensor, (full(3), torch.tensor(2.0))),
    ],
}


def full(*size: int) -> Tensor:
    return torch.empty(size, device="meta")


def half(*size: int) -> Tensor:
    return torch.empty(size, dtype=torch.bfloat16, device="meta")


def whole(*size: int) -> Tensor:
    return torch.empty(size, dtype=torch.int64, device="meta")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", [1, -1])
def test_what_looks_alike_is_told_apart(case: str, order: int) -> None:
    for _ in range(2):
        for func, args in CASES[case]()[::order]:
            out, real = shapes.run(func, args, {}), func(*args)
            assert look(out) == look(real)
            shared = args[0].untyped_storage()._cdata == real.untyped_storage()._cdata
            assert (args[0].untyped_storage()._cdata == out.untyped_storage()._cdata) == shared


def test_sizes_that_do_not_go_together_are_refused_in_torchs_words() -> None:
    shapes.run(aten.add.Tensor, (full(3), full(3)), {})
    with pytest.raises(RuntimeError, match="broadcast"):
        shapes.run(aten.add.Tensor, (full(3), full(4)), {})


def test_no_more_is_kept_than_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "MOST", 3)
    for size in range(1, 9):
        shapes.run(aten.cat.default, ([full(size), full(size)],), {})
        assert len(shapes._known) <= 3


def test_a_layout_that_is_asked_for_is_kept() -> None:
    x, layout = full(2, 3, 4, 5), {"memory_format": torch.channels_last}
    for _ in range(2):
        assert look(shapes.run(aten.clone.default, (x,), layout)) == look(x.clone(**layout))
