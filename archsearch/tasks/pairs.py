"""Texts and what is to be written after them, in three splits: of a table, the Hub, or the library.

A hash of the input tells its split, where the data comes with none: one that is there twice is in
one split. Of the standard library a pair is a function's signature and its docstring's first line.
"""

import functools
import re
from collections.abc import Iterator

from archsearch.tasks import tables
from archsearch.tasks.corpus import SPLITS, STDLIB, documents, split_of
from archsearch.tasks.task import TaskError

LEAST = 5  # pairs of a split
FUNCTION = re.compile(rb'^ *(?:async )?(def \w+\([^)]*\))[^:\n]*:\n\s+r?"""([^\n"]{10,})', re.M)
ALLOWED = (
    f"Allowed: {STDLIB!r}, a .jsonl, .json, .csv or .parquet file, a folder of such files, or "
    "hub:NAME; a relative path starts at the folder of the YAML file"
)
Pair = tuple[bytes, bytes]


@functools.lru_cache(maxsize=4)
def load(source: str, columns: tuple[str, str], most: int) -> dict[str, list[Pair]]:
    """The pairs of each split, at most so many in train and a tenth of it in val and test.

    Raises:
        TaskError: they cannot be read, lack a column, or are too few.
    """
    limits = {"train": most, "val": max(LEAST, most // 10), "test": max(LEAST, most // 10)}
    found: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for split, pair in _pairs(source, columns):
        if len(found[split]) < limits[split] and all(pair):
            found[split].append(pair)
    sizes = {split: len(pairs) for split, pairs in found.items()}
    if min(sizes.values()) < LEAST:
        raise TaskError(
            f"generation: data {source!r} is too small: its splits have {sizes} pairs of texts that"
            f" are not empty, and {LEAST} are the least. A hash of the input tells the split, 8 to "
            f"1 to 1: give {20 * LEAST} or more, or raise most"
        )
    return found


def _pairs(source: str, columns: tuple[str, str]) -> Iterator[tuple[str, Pair]]:
    if source == STDLIB:
        for path in documents(STDLIB).values():
            for signature, told in FUNCTION.findall(path.read_bytes()):
                read = b" ".join(signature.split())
                yield split_of(read), (read, told.strip())
        return
    try:
        found = tables.load(source, "generation")
        for own, table in found.items():
            for texts in tables.texts(table, columns, source, "generation"):
                read, told = (text.encode("utf-8", "surrogatepass") for text in texts)
                split = split_of(read) if own == "train" else own
                yield own if split in found else split, (read, told)
    except TaskError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's own are ValueErrors
        raise TaskError(
            f"generation: data {source!r} cannot be read: {error}. {ALLOWED}"
        ) from error
