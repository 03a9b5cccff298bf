"""`extends: base.yaml`, one level of reuse.

Of the sections below both files' keys stand together, this file's in place of the base's, whole;
of all else this file's stands, or the base's where this one says nothing. Only the name is not
handed on: a study is called by it.
"""

from pathlib import Path
from typing import Any

from archsearch import reading
from archsearch.errors import Place, Problem, SpecError
from archsearch.reading import Document, Key

SECTIONS = ("shared", "define", "model", "budgets", "train", "search", "final")


def read(path: str | Path) -> Document:
    """Reads a file and what it extends. Errors as reading.read, of either file."""
    document = reading.read(path)
    if "extends" not in document.data:
        return document
    name = document.data.pop("extends")
    if not isinstance(name, str) or Path(name).name != name:
        raise _refused(document, f"got {name!r}; must be the name of a file beside this one")
    if not (Path(path).parent / name).is_file():
        raise _refused(document, f"{name} is not beside {Path(path).name}; check the name")
    base = reading.read(Path(path).parent / name)
    if "extends" in base.data:
        raise _refused(document, f"{name} itself extends a file; one level is all there is")
    base.data.pop("name", None)
    return _joined(base, document)


def _refused(document: Document, message: str) -> SpecError:
    return SpecError([Problem(document.place(("extends",)), "extends", message)])


def _joined(base: Document, own: Document) -> Document:
    data: dict[str, Any] = dict(base.data)
    taken: list[Key] = []  # the paths that are this file's
    for key, value in own.data.items():
        both = isinstance(value, dict) and isinstance(data.get(key), dict)
        if both and key in SECTIONS:
            data[key] = {**data[key], **value}
            taken += [(key, inner) for inner in value]
        else:
            data[key] = value
            taken.append((key,))

    def chosen(base: dict[Key, Place], own: dict[Key, Place]) -> dict[Key, Place]:
        kept = {k: v for k, v in base.items() if k[:1] not in taken and k[:2] not in taken}
        return {**kept, **own}

    return Document(own.file, data, chosen(base.places, own.places), chosen(base.keys, own.keys))
