"""The text of tables: rows are streamed into files once, up to a limit, and mapped from there.

So a corpus of terabytes costs what is read of it, and no memory. A row ends with a line break. The
splits of the data are kept; what it has no split for, a hash of the row takes from train.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from archsearch.tasks import cache, tables
from archsearch.tasks.corpus import SPLITS, Corpus, split_of, whole
from archsearch.tasks.task import TaskError

ALLOWED = (
    "Allowed: 'stdlib', a file or folder of text, a .jsonl, .json, .csv or .parquet file, a folder "
    "of such files alone, or hub:NAME; a relative path starts at the folder of the YAML file"
)


def is_table(source: str) -> bool:
    """Whether a source has rows: a table, a folder of nothing else, or what is on the Hub."""
    path = Path(source)
    if source.startswith(tables.HUB) or not path.is_dir():
        return source.startswith(tables.HUB) or path.suffix in tables.KINDS
    files = [file for file in path.iterdir() if not file.name.startswith(".")]
    return bool(files) and all(file.is_file() and file.suffix in tables.KINDS for file in files)


def load(source: str, column: str, limit: int, *, refresh: bool = False) -> Corpus:
    """The corpus of a column of a source: of at most `limit` bytes, a tenth of it in val and test.

    As corpus.load, which reads again what changed on disk where it is to `refresh`.

    Raises:
        TaskError: it cannot be read, lacks the column, or has no text.
    """
    asked = (source, column, limit)
    if asked in _loaded and not refresh:
        return _loaded[asked]
    identity = {"source": source, "column": column, "limit": limit, "files": _stamps(source)}

    def make(folder: Path) -> None:
        try:
            found = tables.load(source, "language", streamed=True)
            _write(folder, found, source, column, limit)
        except TaskError:
            raise
        except (OSError, ValueError) as error:
            raise TaskError(
                f"language: data {source!r} cannot be read: {error}. {ALLOWED}"
            ) from error

    folder = cache.made("corpus", identity, make)
    sha256 = (folder / "sha256").read_text(encoding="utf-8")
    if asked not in _loaded or _loaded[asked].sha256 != sha256:
        parts = [cache.mapped(folder / split, np.uint8) for split in SPLITS]
        _loaded[asked] = Corpus(*parts, sha256=sha256)
    return _loaded[asked]


_loaded: dict[tuple[str, str, int], Corpus] = {}


def _stamps(source: str) -> list[list[Any]]:
    """What shows that local files changed; of the Hub nothing does, as long as it is kept here."""
    if source.startswith(tables.HUB):
        return []
    path = Path(source)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _write(folder: Path, found: dict[str, Any], source: str, column: str, limit: int) -> None:
    if "train" not in found:
        raise ValueError(f"it has no split that is named train; it has {[*found]}")
    room = {"train": limit, "val": limit // 10, "test": limit // 10}
    digests = {split: hashlib.sha256() for split in SPLITS}
    with ExitStack() as stack:
        files = {split: stack.enter_context((folder / split).open("wb")) for split in SPLITS}
        for split, text in _rows(found, source, column, room):
            part = text if len(text) <= room[split] else whole(text[: room[split]])
            room[split] = room[split] - len(part) if part is text else 0
            files[split].write(part)
            digests[split].update(part)
    told = "".join(digests[split].hexdigest() for split in SPLITS)
    sha256 = hashlib.sha256(told.encode()).hexdigest()
    (folder / "sha256").write_text(sha256, encoding="utf-8")


def _rows(
    found: dict[str, Any], source: str, column: str, room: dict[str, int]
) -> Iterator[tuple[str, bytes]]:
    """(split, text) of the rows of each table until its split has no room left."""
    for own, table in found.items():
        for (row,) in tables.texts(table, (column,), source, "language"):
            text = row.encode("utf-8", "surrogatepass")
            split = split_of(text) if own == "train" else own
            yield own if split in found else split, text if text.endswith(b"\n") else text + b"\n"
            if not room[own]:
                break
