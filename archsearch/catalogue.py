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
from pydantic_core import core_schema
from torch import nn

from archsearch import plugins
from archsearch.blocks import ChannelMixer, Family, Merge, Mixer, Norm
from archsearch.blocks.block import canonical as canonical_options
from archsearch.validation import LARGEST

plugins.load_entry_points()


class PartSpec(pydantic.BaseModel):
    """A part by name and options: what YAML says of it. Frozen, closed, equal by value."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    if TYPE_CHECKING:
        type: str = ""

    @pydantic.model_validator(mode="after")
    def _of_this_world(self) -> "PartSpec":
        for name, value in self.options().items():
            if isinstance(value, int | float) and not abs(value) <= LARGEST:
                raise ValueError(f"{name}: got {value!r}; numbers here are at most {LARGEST}")
        return self

    def __hash__(self) -> int:
        return hash((type(self), self.model_dump_json()))  # an option may be a list

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


@functools.cache
def _adapter(members: tuple[type[Family], ...]) -> pydantic.TypeAdapter:
    models = tuple(schema(member) for member in members)
    tagged: Any = Annotated[Union[models], pydantic.Field(discriminator="type")]  # noqa: UP007
    named: Any = Annotated[tagged, pydantic.BeforeValidator(expand_name)]
    return pydantic.TypeAdapter(named)


class AnyMember:
    """Validates as a member of a family, whichever there are then: files may bring more.

    Within another member only a causal one: a wrapper has no use for itself or for whole sequences.
    """

    def __init__(self, family: type[Family], within: bool = False) -> None:
        self.family, self.within = family, within

    def members(self) -> tuple[type[Family], ...]:
        """The classes."""
        members = self.family.members.values()
        return tuple(m for m in members if not self.within or getattr(m, "causal", True))

    def models(self) -> list[type[PartSpec]]:
        """The schemas of all members."""
        return [schema(member) for member in self.members()]

    def adapter(self) -> pydantic.TypeAdapter:
        """Pydantic's union of the members, told apart by `type`."""
        return _adapter(self.members())

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_plain_validator_function(
            lambda value: self.adapter().validate_python(value)
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        title = f"Causal{self.family.__name__}" if self.within else self.family.__name__
        words = {model.model_fields["type"].default: model.__doc__ for model in self.models()}
        names = {"enum": sorted(words), "enumDescriptions": [words[n] for n in sorted(words)]}
        return {"anyOf": [names, {**handler(self.adapter().core_schema), "title": title}]}


def part(family: type[Family], within: type[Family] | None = None) -> Any:
    """The type of a field that holds any member of `family`, perhaps of a member itself."""
    return Annotated[PartSpec, AnyMember(family, within is not None and issubclass(within, family))]


FAMILIES: dict[str, type[Family]] = {family.__name__: family for family in Family.__subclasses__()}


def classes() -> dict[type[PartSpec], type[nn.Module]]:
    """The class behind every schema."""
    return {schema(c): c for family in FAMILIES.values() for c in family.members.values()}


def factory(spec: PartSpec) -> partial[nn.Module]:
    """The class that a spec names with its options bound, nested parts as factories in turn."""
    options = {
        name: factory(value) if isinstance(value, PartSpec) else value
        for name, value in spec.options().items()
    }
    return partial(classes()[type(spec)], **options)


def canonical(spec: PartSpec, *sizes: int) -> PartSpec:
    """The part in the one way to say it, of those that build and compute the same at these sizes.

    See blocks.Family.canonical, by which each class says so of its own options.
    """
    return _spec(canonical_options(factory(spec), *sizes))


def _spec(made: partial) -> PartSpec:
    """The spec whose factory this is; zeros have no sign."""
    options = {k: _spec(v) if isinstance(v, partial) else v for k, v in made.keywords.items()}
    options |= {k: 0.0 for k, v in options.items() if isinstance(v, float) and v == 0}
    return schema(made.func).model_validate(options)  # type: ignore[arg-type]


def is_causal(spec: PartSpec) -> bool:
    """False for a part that sees the future: by its class, or by its option of that name."""
    return getattr(classes()[type(spec)], "causal", True) and spec.options().get("causal", True)


def parts_of(value: Any) -> collections.abc.Iterator[PartSpec]:
    """Every part below a value: a spec, a part, or lists and mappings of them."""
    if isinstance(value, PartSpec):
        yield value
    if isinstance(value, pydantic.BaseModel):
        value = [getattr(value, name) for name in type(value).model_fields]
    if isinstance(value, dict):
        value = list(value.values())
    for child in value if isinstance(value, list) else ():
        yield from parts_of(child)


def block_files(value: Any) -> dict[str, plugins.BlockFile]:
    """The files from elsewhere that a spec needs, by their names."""
    found = (plugins.file_of(classes()[type(part)]) for part in parts_of(value))
    return {file.path.name: file for file in found if file is not None}


if TYPE_CHECKING:
    MixerSpec = ChannelMixerSpec = MergeSpec = NormSpec = PartSpec
else:
    MixerSpec, ChannelMixerSpec = part(Mixer), part(ChannelMixer)
    MergeSpec, NormSpec = part(Merge), part(Norm)
