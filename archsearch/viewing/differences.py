"""What differs between two values, by path and in words.

    ~ topology/major/heads  4 -> 8
    + tasks/in_context_recall  length 64, vocab 16
    - topology/minor  attention (window 32)

Values are what a spec or a space is made of: models, parts, mappings, lists, scalars. Of models and
parts only what differs from their defaults is told.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pydantic

from archsearch.catalogue import PartSpec
from archsearch.viewing import words

Sign = Literal["+", "-", "~"]


@dataclass(frozen=True)
class Change:
    """A difference: something more (+), something less (-), something else (~)."""

    sign: Sign
    path: str
    text: str


def below(path: str, key: str | int) -> str:
    """The path of what stands at a key of what stands at `path`."""
    return f"{path}/{key}".lstrip("/")


def compare(path: str, a: Any, b: Any) -> Iterator[Change]:
    """The differences between two values at a path."""
    if isinstance(a, pydantic.BaseModel) and type(a) is type(b):
        for name in type(a).model_fields:
            yield from compare(below(path, name), getattr(a, name), getattr(b, name))
    elif isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            here = below(path, key)
            if key not in b:
                yield Change("-", here, text(a[key]))
            elif key not in a:
                yield Change("+", here, text(b[key]))
            else:
                yield from compare(here, a[key], b[key])
    elif _of_models(a) and _of_models(b):
        yield from compare(path, dict(enumerate(a)), dict(enumerate(b)))
    elif not same(a, b):
        yield Change("~", path, arrow(a, b))


def _of_models(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(v, pydantic.BaseModel) for v in value)


def same(a: Any, b: Any) -> bool:
    """Equality in which true is not 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def arrow(a: Any, b: Any) -> str:
    """`old -> new`, in all digits where a rounded number would not show the difference."""
    old, new = text(a), text(b)
    return f"{old} -> {new}" if old != new else f"{a!r} -> {b!r}"


def text(value: Any) -> str:
    """A value in words."""
    if isinstance(value, PartSpec):
        return words.told(value)
    if not isinstance(value, pydantic.BaseModel):
        return words.scalar(value)
    fields = {name: getattr(value, name) for name in type(value).model_fields if name != "type"}
    defaults = {name: field.default for name, field in type(value).model_fields.items()}
    told = [f"{name} {text(v)}" for name, v in fields.items() if v != defaults[name]]
    return ", ".join(told) or "as it is by default"
