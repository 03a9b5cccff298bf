"""The blocks of a spec that refuse their own sizes: seen by making each without memory."""

import functools
from collections.abc import Iterator
from typing import Any

import pydantic
import torch

from archsearch.blocks import ChannelMixer, Mixer
from archsearch.catalogue import PartSpec, classes, factory
from archsearch.layers import Division
from archsearch.reading import Key
from archsearch.spec import ModelSpec
from archsearch.validation import Finding


def refusals(spec: ModelSpec) -> list[Finding]:
    """The blocks of a spec that refuse their own sizes, each at its path."""
    return list(_below(spec, spec.dim, ()))


@functools.lru_cache(4096)
def _refusal(kind: type[PartSpec], text: str, dim: int) -> str | None:
    """Why a part cannot be made at a width; the draws of a space share most of their parts."""
    try:
        with torch.device("meta"):
            factory(kind.model_validate_json(text))(dim)
    except ValueError as error:
        return str(error)
    except RuntimeError as error:  # of torch, whose tensors end at 2^63 bytes
        return f"cannot be made at dim {dim}: {str(error).splitlines()[0]}"
    return None


def _below(value: Any, dim: int, path: Key) -> Iterator[Finding]:
    if isinstance(value, PartSpec) and issubclass(classes()[type(value)], Mixer | ChannelMixer):
        if message := _refusal(type(value), value.model_dump_json(), dim):
            yield Finding(path, message)
    elif isinstance(value, Division):
        for i, (mixer, width) in enumerate(zip(value.parts, value.widths(dim), strict=True)):
            yield from _below(mixer, width, (*path, "parts", i))
    elif isinstance(value, pydantic.BaseModel):
        for name in type(value).model_fields:
            yield from _below(getattr(value, name), dim, (*path, name))
    elif isinstance(value, list | dict):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in pairs:
            yield from _below(child, dim, (*path, key))
