"""Every row of the table compiles for its architecture, spills little, avoids what miscompiles."""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from ahead import SHARED, SPILL, compile_call, compile_for, conv_launches, selective_launches

from archsearch.kernels.tiles import TABLE

# Bytes a thread may spill beyond SPILL. Float32 is multiplied in three parts, and a tile of 16 rows
# and 128 or 256 channels of it does not fit; on Ampere neither do 64 rows of 256 channels.
EXCEPTIONS = {("float32", 256): 10_000, ("bfloat16", 256): 4_000}


@pytest.mark.slow
def test_every_row_compiles():
    dtypes = {2: torch.bfloat16, 4: torch.float32}
    calls = {
        (architecture, kernel.split()[-1], size, dtypes[width])
        for architecture, table in TABLE.items()
        for (kernel, width), rows in table.items()
        if kernel.startswith("scan")
        for size in rows
    }
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        futures = {call: pool.submit(compile_call, *call) for call in sorted(calls, key=str)}
        for call, future in futures.items():
            architecture, _, size, dtype = call
            allowed = EXCEPTIONS.get((str(dtype).removeprefix("torch."), size), SPILL)
            for role, got in future.result().items():
                where = f"{call} {role}: {got}"
                assert got.register_operands == 0, where
                assert got.shared <= SHARED[architecture], where
                assert got.stack <= allowed, where


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("operator", "inner"), [("conv", 4), ("selective", 16)])
def test_step_by_step_kernels_keep_all_in_registers(operator, inner, dtype):
    launches = {"conv": conv_launches, "selective": selective_launches}[operator]
    for architecture, table in TABLE.items():
        sizes = {n for (kernel, _), rows in table.items() if operator in kernel for n in rows}
        for size in sizes:
            for role, launch in launches(architecture, size, inner, dtype).items():
                got = compile_for(architecture, launch)
                assert got.stack <= 16, f"{architecture} {operator} {role} {size} {dtype}: {got}"
                assert got.shared <= SHARED[architecture]
