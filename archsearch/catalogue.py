"""From a block's constructor to its schema, and from a spec back to the block.

A member of a family (blocks.Family) takes its owner's sizes by position and its options by keyword.
The keyword-only parameters with their types, defaults and `Args:` lines are the pydantic model by
which it is written in YAML. A parameter of type `Part[Family]` is a nested part, tagged by `type`.

    {type: retention, heads: 4, decay: {type: selective, per: channel}}
"""

import collections.abc
import functools
import inspect
import re
from functools import partial
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import pydantic
from torch import nn

from archsearch.blocks import ChannelMixer, Family, Merge, Mixer, Norm


class PartSpec(pydantic.BaseModel):
    """A part by name and options: what YAML says of it. Frozen, closed, equal by value."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    if TYPE_CHECKING:
        type: str = ""

    def options(self) -> dict[str, Any]:
        """The options without the tag."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "type"}


def argument_docs(cls: type) -> dict[str, str]:
    """The descriptions in the `Args:` section of a class docstring."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(cls) or "", re.S | re.M)
    entries = re.findall(
        r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section[1] if section else "", re.S | re.M
    )
    return {name: " ".join(text.split()) for name, text in entries}


def options_of(cls: type) -> list[inspect.Parameter]:
    """The keyword-only parameters of a part's constructor: what a spec may set."""
    parameters = inspect.signature(cls).parameters.values()
    return [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def family_of(annotation: Any) -> type[Family] | None:
    """The family of a `Part[...]` annotation, or None for a plain value."""
    if get_origin(annotation) is not collections.abc.Callable:
        return None
    result = get_args(annotation)[1]
    return result if isinstance(result, type) and issubclass(result, Family) else None


@functools.cache
def schema(cls: type[Family]) -> type[PartSpec]:
    """The pydantic model of one member of a family, derived from its constructor."""
    hints, docs = get_type_hints(cls.__init__), argument_docs(cls)
    fields: dict[str, Any] = {"type": (Literal[cls.name], cls.name)}
    for parameter in options_of(cls):
        kind, default = hints[parameter.name], parameter.default
        if family := family_of(kind):
            kind = part(family, within=cls)
            if inspect.isclass(default):
                default = schema(default)()
        field = pydantic.Field(default, description=docs.get(parameter.name))
        fields[parameter.name] = (kind, field)
    first_line = (inspect.getdoc(cls) or "").partition("\n")[0]
    return pydantic.create_model(
        f"{cls.__name__}Spec", __base__=PartSpec, __doc__=first_line, **fields
    )


def expand_name(value: Any) -> Any:
    """A part may be written by its name alone: `rmsnorm` is `{type: rmsnorm}`."""
    return {"type": value} if isinstance(value, str) else value


def part(family: type[Family], within: type[Family] | None = None) -> Any:
    """The type of a field that holds any member of `family`, told apart by `type`.

    A mixer within a mixer is a causal one: a wrapper has no use for itself or for whole sequences.
    """
    members = family.members.values()
    if within is not None and issubclass(within, family):
        members = [member for member in members if member.causal]
    models = [schema(member) for member in members]
    tagged = Annotated[Union[tuple(models)], pydantic.Field(discriminator="type")]  # noqa: UP007
    return Annotated[tagged, pydantic.BeforeValidator(expand_name)]


FAMILIES: dict[str, type[Family]] = {family.__name__: family for family in Family.__subclasses__()}


@functools.cache
def classes() -> dict[type[PartSpec], type[nn.Module]]:
    """The class behind every schema."""
    return {schema(c): c for family in FAMILIES.values() for c in family.members.values()}


def factory(spec: PartSpec) -> collections.abc.Callable[..., nn.Module]:
    """The class that a spec names with its options bound, nested parts as factories in turn."""
    options = {
        name: factory(value) if isinstance(value, PartSpec) else value
        for name, value in spec.options().items()
    }
    return partial(classes()[type(spec)], **options)


def is_causal(spec: PartSpec) -> bool:
    """False for a part that sees the future: by its class, or by its option of that name."""
    return getattr(classes()[type(spec)], "causal", True) and spec.options().get("causal", True)


if TYPE_CHECKING:
    MixerSpec = ChannelMixerSpec = MergeSpec = NormSpec = PartSpec
else:
    MixerSpec, ChannelMixerSpec = part(Mixer), part(ChannelMixer)
    MergeSpec, NormSpec = part(Merge), part(Norm)
