"""What pydantic found wrong, in the words of the file: path, what came, what is allowed."""

import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import pydantic

from archsearch.errors import Problem, SpecError
from archsearch.reading import Document, Key, nearest, show_path

M = TypeVar("M", bound=pydantic.BaseModel)


LARGEST = 2**31 - 1
Positive = Annotated[int, pydantic.Field(ge=1, le=LARGEST)]


def told(words: str) -> Any:
    """What a field is, for one that has no other setting; pydantic's description of it."""
    return pydantic.Field(description=words)


class Frozen(pydantic.BaseModel):
    """The base of what a file says: closed, strict, immutable."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class Finding:
    """A problem at `path` of some data; `at_key` when the key itself is wrong."""

    path: Key
    message: str
    at_key: bool = False


def find(kind: type[pydantic.BaseModel], data: Any, context: dict | None = None) -> list[Finding]:
    """The problems of `data` as a `kind`, none if it is legal."""
    try:
        kind.model_validate(data, context=context)
    except pydantic.ValidationError as error:
        return [_explain(kind, problem, data) for problem in error.errors()]
    return []


def load(kind: type[M], document: Document, context: dict | None = None) -> M:
    """The document as a `kind`; SpecError with every problem at its place."""
    findings = find(kind, document.data, context)
    if findings:
        raise SpecError([locate(document, f.path, f) for f in findings])
    return kind.model_validate(document.data, context=context)


def locate(document: Document, source: Key, finding: Finding) -> Problem:
    """A finding as a problem at `source` in the file."""
    place = document.place(source, key=finding.at_key)
    return Problem(place, show_path(finding.path), finding.message)


def _explain(kind: type[pydantic.BaseModel], problem: Any, data: Any) -> Finding:
    loc, code, context = problem["loc"], problem["type"], problem.get("ctx", {})
    path, here = _real_steps(loc, data)
    if code == "extra_forbidden":
        allowed = _fields_at(kind, loc[:-1])
        return Finding(path, f"unknown key {loc[-1]!r}; {nearest(str(loc[-1]), allowed)}", True)
    if code == "missing":
        return Finding(path, f"{loc[-1]!r} is missing")
    if code.startswith("union_tag"):
        allowed = context.get("expected_tags", "").replace("'", "").split(", ")
        if not allowed[0]:  # pydantic names them with the invalid tag only
            allowed = _tags_at(kind, loc)
        tag = context.get("tag", "")
        came = f"unknown type {tag!r}" if tag else f"got {_show(here)}, which names no `type`"
        return Finding(path, f"{came}; {nearest(str(tag), allowed)}")
    message = problem["msg"].removeprefix("Value error, ")
    if code == "value_error":
        return Finding(path, message)
    expected = message.removeprefix("Input should be ")
    return Finding(path, f"got {_show(here)}; must be {expected}")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _real_steps(loc: tuple, data: Any) -> tuple[Key, Any]:
    """The steps of `loc` that exist in the data (pydantic adds union tags), and what is there."""
    path: list[str | int] = []
    for step in loc:
        is_key = isinstance(data, dict) and step in data
        is_index = isinstance(data, list) and isinstance(step, int) and step < len(data)
        if is_key or is_index:
            data = data[step]
            path.append(step)
    return tuple(path), data


def _models(annotation: Any) -> list[Any]:
    """The alternatives of an annotation with Annotated, Optional and Union taken apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        members = [
            m for meta in annotation.__metadata__ if hasattr(meta, "models") for m in meta.models()
        ]
        return members or _models(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [model for arm in get_args(annotation) for model in _models(arm)]
    return [annotation]


def _walk(annotation: Any, loc: tuple) -> list[Any]:
    """The annotations that stand at `loc` below an annotation; union tags select, steps descend."""
    found = _models(annotation)
    for step in loc:
        below: list[Any] = []
        for kind in found:
            origin = get_origin(kind)
            if origin in (list, dict):
                below += _models(get_args(kind)[-1])
            elif isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
                field = kind.model_fields.get("type")
                if len(found) > 1 and field is not None and field.default == step:
                    below = [kind]
                    break
                if step in kind.model_fields:
                    hints = typing.get_type_hints(kind, include_extras=True)
                    below += _models(hints.get(str(step), kind.model_fields[step].annotation))
        found = below or found
    return found


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


def _fields_at(kind: type[pydantic.BaseModel], loc: tuple) -> list[str]:
    return sorted(
        {name for model in _walk(kind, loc) if _is_model(model) for name in model.model_fields}
    )


def _tags_at(kind: type[pydantic.BaseModel], loc: tuple) -> list[str]:
    models = [m for m in _walk(kind, loc) if _is_model(m) and "type" in m.model_fields]
    return [str(model.model_fields["type"].default) for model in models]
