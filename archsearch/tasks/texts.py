"""Texts and their classes, in three splits: from a table, a folder, the Hub, the standard library.

A hash of a text tells its split, where the data comes with none: the same text is never in two.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archsearch.tasks import tables
from archsearch.tasks.corpus import SPLITS, STDLIB, digest, documents, split_of
from archsearch.tasks.task import TaskError

SECRET = -1  # the label of texts whose classes are kept back, as the Hub has it
LEAST = 5  # texts of a split
PACKAGES = ("asyncio", "email", "importlib", "multiprocessing", "unittest", "xml")
MOST = 40  # windows of one file of the library: a few are a third of their package
BETWEEN = b"\x1f"  # ASCII's unit separator: between texts that are read one after the other
Columns = tuple[tuple[str, ...], str]  # of the texts, and of the label
Row = tuple[str, bytes, Any]  # the split that the data gives, a text, its label

ALLOWED = (
    f"Allowed: {STDLIB!r}, a .jsonl, .csv or .parquet file, a folder of such files or of one "
    "folder for each class, or hub:NAME; a relative path starts at the folder of the YAML file"
)


@dataclass(frozen=True, eq=False)  # hashed by identity: what is made of it can be cached
class Texts:
    """The texts of each split with the numbers of their classes, and the names of the classes."""

    splits: dict[str, list[tuple[bytes, int]]]
    classes: tuple[Any, ...]


@functools.lru_cache(maxsize=4)
def load(source: str, columns: Columns, length: int) -> Texts:
    """The texts of a source, read once in a process.

    Args:
        source: where they are, as `Documents.data` says.
        columns: of a table, the names of the texts' and of the label's.
        length: bytes of a window of the standard library, and of several texts together; a text
            by itself is given whole.

    Raises:
        TaskError: they cannot be read, lack a column or values, or are too few.
    """
    rows = [*_rows(source, columns, length)]
    if empty := sum(not text for _, text, _ in rows):
        raise TaskError(
            f"documents: data {source!r}: {empty} of {len(rows)} texts are empty; leave them out"
        )
    own = {split for split, _, _ in rows}
    parts: dict[str, list[tuple[bytes, Any]]] = {split: [] for split in SPLITS}
    for split, text, label in rows:
        cut = split_of(text)  # train gives what the data has no split for
        parts[cut if split == "train" and cut not in own else split].append((text, label))
    return _numbered(source, parts)


def _numbered(source: str, parts: dict[str, list[tuple[bytes, Any]]]) -> Texts:
    sizes = {split: len(part) for split, part in parts.items()}
    if min(sizes.values()) < LEAST:
        raise TaskError(
            f"documents: data {source!r} is too small: its splits have {sizes} texts, and {LEAST} "
            "are the least. A hash of a text tells its split, 8 to 1 to 1: give "
            f"{20 * LEAST} or more"
        )
    labels = {split: {label for _, label in part} for split, part in parts.items()}
    if len(labels["train"]) < 2:
        raise TaskError(
            f"documents: data {source!r} has only one class in train, {[*labels['train']]}; "
            "two are the least"
        )
    if strange := sorted((labels["val"] | labels["test"]) - labels["train"]):
        raise TaskError(
            f"documents: data {source!r}: train has no text of the classes {strange}, "
            "which val or test have; give more texts of them, or leave them out"
        )
    classes = sorted(labels["train"])
    numbers = {label: number for number, label in enumerate(classes)}
    splits = {split: [(text, numbers[y]) for text, y in part] for split, part in parts.items()}
    return Texts(splits, tuple(classes))


def _rows(source: str, columns: Columns, length: int) -> Iterator[Row]:
    """What a source has; of data without splits all is train."""
    if source == STDLIB:
        yield from _library(length)
        return
    try:
        if _has_classes(source):
            files = documents(source).items()
            yield from (("train", p.read_bytes(), n.split("/")[0]) for n, p in files if "/" in n)
            return
        found = tables.load(source, "documents")
    except (OSError, ValueError) as error:  # pyarrow's own are ValueErrors
        raise TaskError(f"documents: data {source!r} cannot be read: {error}. {ALLOWED}") from error
    for split, table in found.items():
        yield from ((split, *row) for row in _told(table, columns, source, length))


def _has_classes(source: str) -> bool:
    """Whether it is a folder, and of no tables."""
    path = Path(source)
    return path.is_dir() and not any(file.suffix in tables.KINDS for file in path.iterdir())


def _told(table: Any, columns: Columns, source: str, length: int) -> Iterator[tuple[bytes, Any]]:
    """The texts and labels of a table; none where the labels are kept secret."""
    inputs, label = columns
    if absent := tables.missing([*inputs, label], table.column_names):
        raise TaskError(
            f"documents: data {source!r} has no columns {absent}; it has {table.column_names}. "
            "Name the right ones under `text` and `label`"
        )
    *parts, labels = (_column(table, name) for name in (*inputs, label))
    checked = [*((name, part, str) for name, part in zip(inputs, parts, strict=True))]
    for name, values, kinds in (*checked, (label, labels, str | int)):
        if bad := sum(not isinstance(value, kinds) for value in values):
            words = "text" if kinds is str else "text, a whole number, or true or false"
            raise TaskError(
                f"documents: data {source!r}: {bad} of {len(values)} values of column {name!r} are "
                f"not {words}, such as {next(v for v in values if not isinstance(v, kinds))!r}"
            )
    names = getattr(table.features.get(label), "names", None)
    if set(labels) == {SECRET}:
        return
    for *text, answer in zip(*parts, labels, strict=True):
        yield joined(text, length), names[answer] if names else answer


def _column(table: Any, name: str) -> list[Any]:
    first, _, within = name.partition(".")
    found = list(table[first])
    return [tables.values(row, within) for row in found] if within else found


def joined(texts: list[str], length: int) -> bytes:
    """Several texts as one of at most so many bytes, each with an equal part if it is too long."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    if len(parts) > 1 and sum(map(len, parts)) + len(parts) - 1 > length:
        share = (length - len(parts) + 1) // len(parts)
        parts = [part[:share] for part in parts]
    return BETWEEN.join(parts)


def _library(length: int) -> Iterator[Row]:
    """Windows without overlap; of each package, a fifth of the files are val and a fifth test."""
    files = documents(STDLIB)
    for package in PACKAGES:
        mine = sorted((name for name in files if name.startswith(f"{package}/")), key=digest)
        for i, name in enumerate(mine):
            text = files[name].read_bytes()
            starts = range(0, len(text) - length + 1, length)
            for k in range(min(MOST, len(starts))):
                start = starts[k * len(starts) // min(MOST, len(starts))]
                split = {0: "val", 1: "test"}.get(i % 5, "train")
                yield split, text[start : start + length], package
