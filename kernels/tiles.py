"""Tiles: the block, warps and stages that a kernel is launched with.

The table is checked in, and nothing is tuned while a program runs. A row is for one architecture,
kernel, width of the inputs' dtype and size; a call takes the row of the next size up, or of the
largest. Rows are chosen by compiling (`python tests/kernels/ahead.py`): the first of the
candidates, largest first, that spills next to nothing.

With ARCHSEARCH_TUNE=tiles.json set, rows are measured instead and kept in that file, see tuning.py.
"""

import re

import torch

from .launch import Device, Tile
from .tuning import Row, measured

# Architectures on whose chips every row has passed the gradient check. The others are compiled and
# not run, and backend "auto" does not choose Triton there.
RUN: frozenset[str] = frozenset()


Rows = dict[tuple[str, int], dict[int, tuple[int, int, int]]]


def tile_of(device: Device, kernel: str, size: int, dtype: torch.dtype) -> Tile:
    """The row of the table that is nearest to this call, or the one tuned for it."""
    row = Row(device.architecture, kernel, dtype.itemsize, size)
    return measured(row, checked_in(device, kernel, size, dtype))


def checked_in(device: Device, kernel: str, size: int, dtype: torch.dtype) -> Tile:
    """The row of the table that is nearest to this call, whatever has been tuned."""
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


# What goes step by step, or whose products are small, runs the same everywhere.
COMMON: Rows = {
    ("conv forward", 2): {2048: (256, 1, 1)},
    ("conv backward", 2): {2048: (128, 1, 1)},
    ("conv forward", 4): {2048: (128, 1, 1)},
    ("conv backward", 4): {2048: (128, 1, 1)},
    ("selective forward", 2): {2048: (64, 1, 1)},
    ("selective backward", 2): {2048: (64, 1, 1)},
    ("selective forward", 4): {2048: (64, 1, 1)},
    ("selective backward", 4): {2048: (64, 1, 1)},
    ("delta systems", 2): {256: (64, 4, 1)},
    ("delta write", 2): {128: (32, 8, 2), 256: (32, 8, 1)},
    ("delta unwrite", 2): {128: (32, 8, 2), 256: (32, 8, 1)},
    ("delta gather", 2): {256: (32, 8, 1)},
    ("delta systems", 4): {256: (64, 4, 1)},
    ("delta write", 4): {256: (32, 8, 1)},
    ("delta unwrite", 4): {256: (16, 8, 1)},
    ("delta gather", 4): {256: (32, 8, 1)},
}
TABLE: dict[str, Rows] = {
    "sm_90": COMMON
    | {
        ("scan o scalar", 2): {64: (64, 4, 2), 256: (64, 8, 2)},
        ("scan dq scalar", 2): {128: (64, 8, 2), 256: (32, 8, 1)},
        ("scan dk scalar", 2): {64: (64, 4, 1), 128: (64, 8, 2), 256: (64, 8, 1)},
        ("scan dv scalar", 2): {64: (64, 4, 2), 256: (64, 8, 2)},
        ("scan o vector", 2): {128: (32, 4, 2), 256: (32, 8, 1)},
        ("scan dq vector", 2): {128: (32, 4, 2), 256: (32, 8, 1)},
        ("scan dk vector", 2): {128: (32, 4, 2), 256: (32, 4, 1)},
        ("scan dv vector", 2): {128: (32, 4, 2), 256: (32, 8, 1)},
        ("scan o scalar", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
        ("scan dq scalar", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
        ("scan dk scalar", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
        ("scan dv scalar", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
        ("scan o vector", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
        ("scan dq vector", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
        ("scan dk vector", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
        ("scan dv vector", 4): {64: (32, 4, 2), 256: (16, 8, 1)},
    },
    "sm_80": COMMON
    | {
        ("scan o scalar", 2): {256: (64, 8, 1)},
        ("scan dq scalar", 2): {64: (16, 4, 1), 256: (32, 8, 1)},
        ("scan dk scalar", 2): {64: (32, 4, 1), 256: (64, 8, 1)},
        ("scan dv scalar", 2): {64: (64, 4, 2), 256: (64, 8, 1)},
        ("scan o vector", 2): {256: (32, 8, 1)},
        ("scan dq vector", 2): {256: (16, 8, 1)},
        ("scan dk vector", 2): {256: (16, 4, 1)},
        ("scan dv vector", 2): {256: (32, 8, 1)},
        ("scan o scalar", 4): {256: (16, 8, 1)},
        ("scan dq scalar", 4): {256: (16, 8, 1)},
        ("scan dk scalar", 4): {256: (16, 8, 1)},
        ("scan dv scalar", 4): {256: (16, 8, 1)},
        ("scan o vector", 4): {256: (16, 8, 1)},
        ("scan dq vector", 4): {256: (16, 8, 1)},
        ("scan dk vector", 4): {256: (16, 8, 1)},
        ("scan dv vector", 4): {256: (16, 8, 1)},
    },
    "sm_100": COMMON
    | {
        ("scan o scalar", 2): {128: (64, 8, 1), 256: (64, 8, 2)},
        ("scan dq scalar", 2): {128: (64, 8, 1), 256: (64, 8, 2)},
        ("scan dk scalar", 2): {128: (64, 8, 1), 256: (32, 8, 1)},
        ("scan dv scalar", 2): {128: (64, 8, 1), 256: (64, 4, 1)},
        ("scan o vector", 2): {256: (32, 8, 1)},
        ("scan dq vector", 2): {256: (32, 8, 1)},
        ("scan dk vector", 2): {256: (32, 8, 1)},
        ("scan dv vector", 2): {256: (32, 8, 1)},
        ("scan o scalar", 4): {256: (16, 8, 1)},
        ("scan dq scalar", 4): {256: (16, 8, 1)},
        ("scan dk scalar", 4): {256: (16, 8, 1)},
        ("scan dv scalar", 4): {256: (16, 8, 1)},
        ("scan o vector", 4): {256: (16, 8, 1)},
        ("scan dq vector", 4): {256: (16, 8, 1)},
        ("scan dk vector", 4): {256: (16, 8, 1)},
        ("scan dv vector", 4): {256: (16, 8, 1)},
    },
    "gfx942": COMMON
    | {
        ("delta gather", 2): {256: (32, 4, 1)},
        ("delta write", 4): {256: (16, 8, 1)},
        ("scan o scalar", 2): {256: (64, 4, 2)},
        ("scan dq scalar", 2): {128: (64, 4, 1), 256: (64, 4, 2)},
        ("scan dk scalar", 2): {256: (64, 4, 2)},
        ("scan dv scalar", 2): {256: (64, 4, 2)},
        ("scan o vector", 2): {256: (32, 4, 2)},
        ("scan dq vector", 2): {256: (32, 4, 2)},
        ("scan dk vector", 2): {256: (32, 4, 2)},
        ("scan dv vector", 2): {256: (32, 4, 2)},
        ("scan o scalar", 4): {256: (32, 4, 2)},
        ("scan dq scalar", 4): {256: (32, 4, 2)},
        ("scan dk scalar", 4): {256: (32, 4, 2)},
        ("scan dv scalar", 4): {256: (32, 4, 2)},
        ("scan o vector", 4): {256: (32, 4, 2)},
        ("scan dq vector", 4): {256: (32, 4, 2)},
        ("scan dk vector", 4): {256: (32, 4, 2)},
        ("scan dv vector", 4): {256: (32, 4, 2)},
    },
}
