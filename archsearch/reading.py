"""Strict YAML: plain data with a place for every value, every trap of YAML refused; and its writer.

Scalars follow YAML 1.2's core schema (`1e-3` is a float, `no` and `1:5` are strings, `010` is ten).
Duplicate keys, anchors, aliases, merge keys, tags, several documents, nesting over 64, files over
1 MiB and keys that are no strings are errors with file:line:column. Nothing in a file can run.
"""

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from archsearch.errors import Place, Problem, SpecError, UserError

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A file as plain data: `data` in dicts, lists and scalars, `places[path]` where each stands.

    `keys[path]` is the place of the key rather than of its value.
    """

    file: str
    data: Any
    places: dict[Key, Place]
    keys: dict[Key, Place]

    def place(self, path: Key, *, key: bool = False) -> Place | None:
        """The place of a path, or of its nearest ancestor that stands in the file."""
        if key and path in self.keys:
            return self.keys[path]
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path)


def show_path(path: Iterable[str | int]) -> str:
    """`model.branches[0].heads`."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A sentence with what is allowed, the nearest name first when there is one."""
    names = sorted(map(str, allowed))
    close = difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(names) if names else 'nothing here'}"


def read(path: str | Path) -> Document:
    """Reads a file; SpecError with every scalar trap named, UserError when it cannot be read."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if len(raw) > MAX_BYTES:
        raise UserError(f"{path}: {len(raw)} bytes; a space or spec is at most {MAX_BYTES}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    return parse(text, str(path))


def parse(text: str, file: str = "<text>") -> Document:
    """The document in a text. All problems that do not hide each other come in one SpecError."""
    reader = _Reader(file)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark else None
        raise SpecError([Problem(place, "", f"not YAML: {error.problem}")]) from None
    except yaml.YAMLError as error:
        raise SpecError([Problem(None, file, f"not YAML: {error}")]) from None
    if reader.problems:
        raise SpecError(reader.problems)
    if not isinstance(reader.root, dict):
        raise SpecError([Problem(Place(file, 1, 1), "", "expected a mapping at the top")])
    return Document(file, reader.root, reader.places, reader.keys)


class _Reader:
    """Builds data from parse events, so that depth is known before anything recurses."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Any = None
        self.documents = 0
        self.problems: list[Problem] = []
        self.places: dict[Key, Place] = {}
        self.keys: dict[Key, Place] = {}
        self.open: list[tuple[Key, dict | list]] = []  # containers being filled
        self.key: list[str | None] = []  # per open container: the mapping key that awaits a value

    def take(self, event: yaml.Event) -> None:
        place = Place(self.file, event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise self.fatal(place, "a second document; one file holds one document")
        elif isinstance(event, yaml.AliasEvent):
            raise self.fatal(
                place, f"alias *{event.anchor}; say shared: or define: and ${event.anchor}"
            )
        elif isinstance(event, yaml.NodeEvent):
            if event.anchor:
                raise self.fatal(place, f"anchor &{event.anchor}; name the value under define:")
            if isinstance(event, yaml.ScalarEvent):
                self.scalar(event, place)
            else:
                self.container({} if isinstance(event, yaml.MappingStartEvent) else [], place)
        elif isinstance(event, yaml.CollectionEndEvent):
            self.open.pop()
            self.key.pop()

    def fatal(self, place: Place, message: str) -> SpecError:
        return SpecError([*self.problems, Problem(place, "", message)])

    def container(self, value: dict | list, place: Place) -> None:
        if len(self.open) >= MAX_DEPTH:
            raise self.fatal(place, f"nested deeper than {MAX_DEPTH} levels")
        if self.open and isinstance(self.open[-1][1], dict) and self.key[-1] is None:
            raise self.fatal(place, "a key must be a string")
        path = self.put(value, place)
        self.open.append((path, value))
        self.key.append(None)

    def scalar(self, event: yaml.ScalarEvent, place: Place) -> None:
        if event.tag not in (None, "!"):
            self.problems.append(
                Problem(place, "", f"tag {event.tag}; tags are not part of the language")
            )
        if self.open and isinstance(self.open[-1][1], dict) and self.key[-1] is None:
            self.take_key(event.value, place)
        else:
            self.put(event.value if event.style else plain_scalar(event.value), place)

    def take_key(self, key: str, place: Place) -> None:
        path, _ = self.open[-1]
        here = (*path, key)
        if key == "<<":
            self.problems.append(
                Problem(
                    place,
                    show_path(path),
                    "merge keys (<<) are not part of the language; use define:",
                )
            )
        elif here in self.keys:
            self.problems.append(
                Problem(
                    place, show_path(here), f"a second {key!r}; the first is at {self.keys[here]}"
                )
            )
        self.keys.setdefault(here, place)
        self.key[-1] = key

    def put(self, value: Any, place: Place) -> Key:
        if not self.open:
            self.root, path = value, ()
        else:
            parent, container = self.open[-1]
            if isinstance(container, list):
                path = (*parent, len(container))
                container.append(value)
            else:
                path = (*parent, str(self.key[-1]))
                container[str(self.key[-1])] = value
                self.key[-1] = None
        self.places.setdefault(path, place)
        return path


_INT = re.compile(r"[-+]?[0-9]{1,64}|0o[0-7]{1,64}|0x[0-9a-fA-F]{1,64}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}


def plain_scalar(text: str) -> Any:
    """The value of an unquoted scalar in YAML 1.2's core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        prefix = text[:2]
        return int(text[2:], {"0o": 8, "0x": 16}[prefix]) if prefix in ("0o", "0x") else int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def write(data: Any, *, flow: bool | None = False) -> str:
    """The text that `parse` reads as `data`; so does a reader of YAML 1.1.

    `flow` is PyYAML's: None writes the innermost lists and mappings on one line.
    """
    return yaml.dump(data, Dumper=_Writer, sort_keys=False, default_flow_style=flow)


class _Writer(yaml.SafeDumper):
    """Quotes the strings that YAML 1.1 or 1.2 would take for something else, such as 1e3 and no."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        tag = super().resolve(kind, value, implicit)
        plain = kind is yaml.ScalarNode and implicit[0]
        if plain and tag.endswith(":str") and not isinstance(plain_scalar(value), str):
            return ""  # no string's tag, and so it is quoted
        return tag

    def ignore_aliases(self, data: Any) -> bool:
        return True  # `parse` refuses them
