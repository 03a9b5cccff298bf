"""What takes long to make and is the same the next time: kept in files, made once.

In $XDG_CACHE_HOME/archsearch, and in ~/.cache/archsearch where that is not set. A folder is there
whole or not at all; deleting it costs nothing but time.
"""

import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
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


def arrays(kind: str, identity: dict[str, Any], make: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Tensors that `make` makes where nobody did before, mapped: all processes share one copy.

    Args:
        kind: of what they are.
        identity: all that they depend on; the code that makes them too.
        make: them, each of a dtype that numpy has.
    """

    def write(folder: Path) -> None:
        shapes = []
        for i, tensor in enumerate(make()):
            array = np.ascontiguousarray(tensor.numpy())
            (folder / str(i)).write_bytes(array.data)
            shapes.append([str(array.dtype), list(array.shape)])
        (folder / "shapes.json").write_text(json.dumps(shapes), encoding="utf-8")

    folder = made(kind, identity, write)
    shapes = json.loads((folder / "shapes.json").read_text(encoding="utf-8"))
    return [
        mapped(folder / str(i), np.dtype(dtype)).view(*shape)
        for i, (dtype, shape) in enumerate(shapes)
    ]


def code(*modules: ModuleType) -> str:
    """A hash of the text of modules: what they made is not made by them once they changed."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:16]


def mapped(path: Path, dtype: np.dtype | type) -> Tensor:
    """The numbers of a file, read as they are used; what is written to them stays in memory.

    By torch: a memmap of numpy's keeps a file open for each.
    """
    none = torch.from_numpy(np.empty(0, dtype))
    count = path.stat().st_size // none.element_size()
    return torch.from_file(str(path), False, count, dtype=none.dtype) if count else none
