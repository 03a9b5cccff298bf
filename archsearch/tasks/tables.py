"""Tables, from files or the Hugging Face Hub: by the names of their splits, read row by row.

Files are .jsonl, .json, .csv or .parquet; a folder holds such files, named for their splits.
`hub:NAME` and `hub:NAME:CONFIG` are data sets of the Hub: those of benchmarks.py are known by name,
with their columns. Nothing of the Hub is read that was not named.
"""

import socket
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from archsearch.tasks import benchmarks
from archsearch.tasks.task import HUB, TaskError

KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
OWN = {
    "train": "train",
    "validation": "val",
    "val": "val",
    "valid": "val",
    "validation_matched": "val",  # MNLI's, of the kinds of text that train has
    "test": "test",
    "test_matched": "test",
}
"""Ours of the names that splits go by."""


def load(source: str, who: str, *, streamed: bool = False, images: bool = False) -> dict[str, Any]:
    """The tables of a source by ours of the names of their splits; others are left out.

    Args:
        source: a path, or hub:NAME[:CONFIG].
        who: the task that asks, for errors.
        streamed: rows are read as they are asked for, and nothing is kept on disk.
        images: folders within a folder hold the images of a class each.

    Raises:
        TaskError: the Hub cannot be reached.
        OSError, ValueError: it cannot be read, which the caller tells.
    """
    if source.startswith(HUB):
        _reach_hub(source, who)
    found = _loaded(source, streamed, images)
    return {OWN[str(name)]: table for name, table in found.items() if str(name) in OWN}


def _loaded(source: str, streamed: bool, images: bool) -> Mapping[Any, Any]:
    path = Path(source)
    if not source.startswith(HUB) and not path.is_dir() and path.suffix not in KINDS:
        raise ValueError(f"its name ends in {path.suffix!r}")
    if path.is_file() and not path.stat().st_size:
        raise ValueError("it is empty")
    from datasets import disable_progress_bars, load_dataset  # slow to import
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    how: dict[str, Any] = {"streaming": streamed}
    try:
        if source.startswith(HUB):
            name, config, files = benchmarks.place(source.removeprefix(HUB))
            if files is not None:  # without a script, which nothing runs any more
                return load_dataset("json", data_files=files, **how)
            return load_dataset(name, config, **how)
        if images and path.is_dir() and any(file.is_dir() for file in path.iterdir()):
            return load_dataset("imagefolder", data_dir=source, drop_labels=False, **how)
        if path.is_dir():
            return load_dataset(source, **how)
        return load_dataset(KINDS[path.suffix], data_files=source, **how)
    except DatasetsError as error:
        raise ValueError(str(error.__cause__ or error)) from error


def values(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column; `translation.de` is a value of a column that holds several."""
    for name in column.split("."):
        row = row[name]
    return row


def missing(columns: list[str], present: list[str]) -> list[str]:
    """Those of the columns that a table has not; `translation.de` goes by its first name."""
    return [name for name in columns if name.split(".")[0] not in present]


def texts(table: Any, columns: tuple[str, ...], source: str, who: str) -> Iterator[tuple[str, ...]]:
    """The texts of some columns, row by row.

    Raises:
        TaskError: a column is missing, or holds something else.
    """
    present = table.column_names
    if present is not None and (absent := missing([*columns], present)):
        raise TaskError(
            f"{who}: data {source!r} has no columns {absent}; it has {present}. Name the right ones"
        )
    for number, row in enumerate(table):
        try:
            found = tuple(values(row, column) for column in columns)
        except (KeyError, TypeError) as error:
            raise TaskError(
                f"{who}: data {source!r}: row {number} has no {error}; its columns are {[*row]}. "
                "Name the right ones"
            ) from error
        for column, value in zip(columns, found, strict=True):
            if not isinstance(value, str):
                raise TaskError(
                    f"{who}: data {source!r}: column {column!r} holds {value!r} in row {number}, "
                    "and text is read there"
                )
        yield found


def _reach_hub(source: str, who: str) -> None:
    """TaskError at once without a network, where the library would try again for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return
    host = urlsplit(constants.ENDPOINT).hostname or ""
    try:
        socket.create_connection((host, 443), timeout=5).close()
    except OSError as error:
        raise TaskError(
            f"{who}: data {source!r} needs a network, and {host} cannot be reached: {error}. "
            "Set HF_HUB_OFFLINE=1 to read what was downloaded before, or save the data as a .jsonl,"
            " .csv or .parquet file and give its path"
        ) from error
