"""Bytes to model, in three splits that share none: the standard library, a folder, or one file.

The files of a split are joined in the order of their names: a window may span two files, never two
splits.
"""

import hashlib
import itertools
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from archsearch.tasks.task import TaskError

STDLIB = "stdlib"
SPLITS = ("train", "val", "test")
BLOCKS = 50  # of a single file; of every ten, eight are train, the ninth val, the tenth test

# Files and folders left out of the library: its tests, data written as code, GUI programs that not
# every distribution installs, and what a user or a machine put there (config-* holds its paths).
NOT_STDLIB = re.compile(
    "tests?|idle_test|idlelib|lib2to3|tkinter|turtledemo|distutils|ensurepip|encodings|pydoc_data|"
    "venv|site-packages|dist-packages|lib-dynload|config-.*|_sysconfigdata.*"
)
HIDDEN = re.compile(r"\..*|__pycache__")


@dataclass(frozen=True, eq=False)  # hashed by identity: results on a corpus can be cached
class Corpus:
    """The bytes of each split (uint8), and what identifies them all.

    Attributes:
        train: to learn from.
        val: to choose by.
        test: to report on.
        sha256: of a single file, its own; of several, that of their list as sha256sum prints it:
            `cd FOLDER && find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum`
    """

    train: Tensor
    val: Tensor
    test: Tensor
    sha256: str


def load(source: str, *, refresh: bool = False) -> Corpus:
    """The corpus of "stdlib" or of a path, read once; `refresh` reads again what changed on disk.

    So between two refreshes a study sees one text, even while somebody edits the file.

    Raises:
        TaskError: a file is missing or cannot be read.
    """
    if source in _loaded and not refresh:
        return _loaded[source][1]
    try:
        files = documents(source)
        stats = [(path, path.stat()) for path in files.values()]
        stamp = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        if source not in _loaded or _loaded[source][0] != stamp:
            _loaded[source] = stamp, _read(files, one_file=_root(source).is_file())
    except OSError as error:
        raise TaskError(
            f"language: data {source!r} cannot be read: {error}. Allowed: {STDLIB!r}, a file, or a "
            "folder of files; a relative path starts at the folder of the YAML file"
        ) from error
    return _loaded[source][1]


def documents(source: str) -> dict[str, Path]:
    """The files of a source by name, sorted; a name is the path below the folder, with slashes."""
    root, suffix = _root(source), ".py" if source == STDLIB else ""
    if not root.is_dir():
        return {root.name: root}
    found = {}
    for folder, folders, files in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not _left_out(name, source)]
        for name in files:
            path = Path(folder, name)
            if name.endswith(suffix) and not _left_out(name, source) and path.is_file():
                found[path.relative_to(root).as_posix()] = path
    return dict(sorted(found.items()))


def split_of(name: str | bytes) -> str:
    """The split of a file: sha256(name) mod 100, below 10 test, below 20 val. Files never move."""
    bucket = digest(name) % 100
    return "test" if bucket < 10 else "val" if bucket < 20 else "train"


def digest(name: str | bytes) -> int:
    """The sha256 of a name."""
    return int(hashlib.sha256(os.fsencode(name)).hexdigest(), 16)


_loaded: dict[str, tuple[list[tuple[Path, int, int]], Corpus]] = {}


def _root(source: str) -> Path:
    return Path(sysconfig.get_path("stdlib") if source == STDLIB else source)


def _left_out(name: str, source: str) -> bool:
    local = source == STDLIB and NOT_STDLIB.fullmatch(name)
    return bool(local or HIDDEN.fullmatch(name))


def _raise(error: OSError) -> None:
    raise error  # os.walk would pass over a folder that it may not read


def _read(files: dict[str, Path], *, one_file: bool) -> Corpus:
    texts = {name: path.read_bytes() for name, path in files.items()}
    digests = {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}
    if one_file:
        (text,), (sha256,) = texts.values(), digests.values()
        parts = list(_blocks(text))
    else:
        parts = [(split_of(name), text) for name, text in texts.items()]
        listing = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
        sha256 = hashlib.sha256(os.fsencode(listing)).hexdigest()
    train, val, test = (
        _tensor(b"".join(text for part, text in parts if part == split)) for split in SPLITS
    )
    return Corpus(train, val, test, sha256)


def _blocks(text: bytes) -> Iterator[tuple[str, bytes]]:
    """Val and test are blocks spread over the file: its end may differ from its beginning."""
    cuts = [len(whole(text[: len(text) * i // BLOCKS])) for i in range(BLOCKS)] + [len(text)]
    for i, (start, end) in enumerate(itertools.pairwise(cuts)):
        yield {8: "val", 9: "test"}.get(i % 10, "train"), text[start:end]


def whole(text: bytes) -> bytes:
    """Without the beginning of a character, in UTF-8, whose end is not there."""
    for back, byte in enumerate(text[:-4:-1], 1):
        if byte & 0xC0 == 0xC0:  # a character of several bytes begins: of 2, 3 or 4
            size = 2 + (byte >= 0xE0) + (byte >= 0xF0)
            return text[:-back] if size > back else text
        if byte < 0x80:
            break
    return text


def _tensor(text: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(text, np.uint8).copy())  # frombuffer's is read-only
