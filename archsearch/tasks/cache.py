"""What takes long to make and is the same the next time: kept in files, made once.

In $XDG_CACHE_HOME/archsearch, and in ~/.cache/archsearch where that is not set. A folder is there
whole or not at all; deleting it costs nothing but time.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archsearch.tasks.task import TaskError


def made(kind: str, identity: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder of what has this identity; `make` fills it where it is not there yet.

    Raises:
        TaskError: the cache cannot be written to.
    """
    text = json.dumps(identity, sort_keys=True)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "archsearch")
    folder = home / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    if folder.exists():
        return folder
    try:
        home.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=home))
    except OSError as error:
        raise TaskError(
            f"{kind}: cannot be kept in {home}: {error}. Set XDG_CACHE_HOME to a folder that can be"
            " written to"
        ) from error
    try:
        make(partial)
        (partial / "identity.json").write_text(text, encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:  # somebody else made it meanwhile
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def mapped(path: Path, dtype: np.dtype | type) -> Tensor:
    """The numbers of a file, read as they are used; what is written to them stays in memory."""
    if not path.stat().st_size:
        return torch.from_numpy(np.empty(0, dtype))
    return torch.from_numpy(np.memmap(path, dtype, "c"))
