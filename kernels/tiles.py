"""Tiles: the block, warps and stages that a kernel is launched with.

The table is checked in, and nothing is tuned while a program runs. A row is for one architecture,
kernel, width of the inputs' dtype and size; a call takes the row of the next size up, or of the
largest. Rows are chosen by compiling (`python tests/kernels/ahead.py`): the first of
the candidates, largest first, that spills no register.
"""

import re

import torch

from .launch import Device, Tile

# Architectures on whose chips every row has passed the gradient check. The others are compiled and
# not run, and backend "auto" does not choose Triton there.
RUN: frozenset[str] = frozenset()


Rows = dict[tuple[str, int], dict[int, tuple[int, int, int]]]


def tile_of(device: Device, kernel: str, size: int, dtype: torch.dtype) -> Tile:
    """The row of the table that is nearest to this call."""
    sizes = TABLE[nearest_architecture(device.architecture)][kernel, dtype.itemsize]
    size = min((n for n in sizes if n >= size), default=max(sizes))
    return Tile(*sizes[size])


def nearest_architecture(architecture: str) -> str:
    """The table's architecture for a chip: its own, or the newest that is not newer."""
    if architecture in TABLE:
        return architecture
    vendor = re.match("[a-z]+", architecture)
    known = [a for a in TABLE if vendor and a.startswith(vendor[0])]
    older = [a for a in known if _number(a) <= _number(architecture)]
    if not older:
        raise ValueError(
            f"no Triton tiles for {architecture}: there are {', '.join(TABLE)} and newer; use "
            "backend='chunked'"
        )
    return max(older, key=_number)


def _number(architecture: str) -> int:
    return int(re.sub("^[a-z_]+", "", architecture), 16)


TABLE: dict[str, Rows] = {
    "sm_90": {
        ("scan o scalar", 2): {64: (64, 4, 2), 128: (64, 8, 2), 256: (64, 8, 2)},
        ("scan dq scalar", 2): {64: (64, 8, 2), 128: (64, 8, 2), 256: (32, 8, 1)},
        ("scan dk scalar", 2): {64: (64, 4, 1), 128: (64, 8, 2), 256: (64, 8, 1)},
        ("scan dv scalar", 2): {64: (64, 4, 2), 128: (64, 8, 2), 256: (64, 8, 2)},
        ("scan o vector", 2): {64: (32, 4, 2), 128: (32, 4, 2), 256: (32, 8, 1)},
        ("scan dq vector", 2): {64: (32, 4, 2), 128: (32, 4, 2), 256: (32, 8, 1)},
        ("scan dk vector", 2): {64: (32, 4, 2), 128: (32, 4, 2), 256: (32, 4, 1)},
        ("scan dv vector", 2): {64: (32, 4, 2), 128: (32, 4, 2), 256: (32, 8, 1)},
        ("scan o scalar", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
        ("scan dq scalar", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
        ("scan dk scalar", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
        ("scan dv scalar", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
        ("scan o vector", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
        ("scan dq vector", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
        ("scan dk vector", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
        ("scan dv vector", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
        ("delta systems", 2): {256: (64, 4, 1)},
        ("delta write", 2): {128: (32, 8, 2), 256: (32, 8, 1)},
        ("delta unwrite", 2): {128: (32, 8, 2), 256: (32, 8, 1)},
        ("delta gather", 2): {256: (32, 8, 1)},
        ("delta systems", 4): {256: (64, 4, 1)},
        ("delta write", 4): {256: (32, 8, 1)},
        ("delta unwrite", 4): {256: (16, 8, 1)},
        ("delta gather", 4): {256: (32, 8, 1)},
        ("conv forward", 2): {64: (64, 1, 1), 128: (128, 1, 1), 256: (256, 1, 1)},
        ("conv backward", 2): {64: (64, 1, 1), 128: (128, 1, 1)},
        ("conv forward", 4): {64: (64, 1, 1), 128: (128, 1, 1)},
        ("conv backward", 4): {64: (64, 1, 1), 128: (128, 1, 1)},
        ("selective forward", 2): {64: (64, 1, 1)},
        ("selective backward", 2): {64: (64, 1, 1)},
        ("selective forward", 4): {64: (64, 1, 1)},
        ("selective backward", 4): {64: (64, 1, 1)},
    },
}
