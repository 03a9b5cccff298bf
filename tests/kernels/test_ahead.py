"""Every row of the table compiles for its architecture, spills little and avoids what miscompiles."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from ahead import SHARED, SPILL, compile_for, scan_launches

from archsearch.kernels.tiles import TABLE

DTYPES = {2: torch.bfloat16, 4: torch.float32}
KINDS = {"scalar": ("scalar",), "vector": ("vector",)}

# Float32 is split into three parts, and rows over 64 wide do not fit the registers.
EXCEPTIONS = {4: 10_000}


def calls(architecture):
    """(kind, size, bytes) of the rows of one architecture."""
    return sorted(
        {(kind, n, b) for (_, kind, b), rows in TABLE[architecture].items() for n in rows}
    )


@pytest.mark.slow
@pytest.mark.parametrize("architecture", TABLE)
def test_every_row_compiles(architecture):
    for kind, size, width in calls(architecture):
        launches = scan_launches(architecture, kind, size, size, DTYPES[width])
        for role, launch in launches.items():
            got = compile_for(architecture, launch)
            where = f"{architecture} {kind} {size} {width} {role}: {got}"
            assert got.register_operands == 0, where
            assert got.shared <= SHARED[architecture], where
            assert got.stack <= (SPILL if width == 2 or size <= 64 else EXCEPTIONS[width]), where
