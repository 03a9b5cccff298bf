"""Files written whole or not at all, whatever is killed and whenever the power goes."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room on the disk, in the quota, or in what a file may hold."""
SAID = (*(os.strerror(code) for code in FULL), "disk is full", "file write failed")
"""How libraries tell of it that keep no number: safetensors, SQLite, torch."""


def is_full(error: BaseException) -> bool:
    """Whether an error, or one behind it, is that there is no room to write."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    behind = error.__cause__ or error.__context__
    said = any(text in str(error) for text in SAID)
    return said or (behind is not None and is_full(behind))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A neighbour to write to, which takes the place of `path` when it is whole and on disk.

    It is this writer's own: two that write the same file, on whatever machines, do not meet in it.
    What fails leaves nothing behind; what is killed leaves the neighbour, `.NAME.PID-XXXX.partial`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = f"{os.getpid()}-{secrets.token_hex(4)}"
    partial = path.with_name(f".{path.name}.{mine}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)  # the new name is on disk too


def write_atomic(path: Path, text: str) -> None:
    """Writes a text whole, over what was there."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
