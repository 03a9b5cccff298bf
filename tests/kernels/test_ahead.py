"""Every row of the table compiles for its architecture, spills little, avoids what miscompiles."""

import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parent))
from ahead import LAUNCHES, SHARED, SPILL, Launch, compile_for, compile_row, pool, rows_of

from archsearch.kernels.launch import Tile, compile_options
from archsearch.kernels.tiles import TABLE

# Bytes a thread may spill where it is not SPILL, by architecture, bytes of the dtype and size. NVIDIA's
# units multiply float32 in three parts, in registers: 256 channels of them do not fit.
EXCEPTIONS = {(name, 4, 256): 2500 for name in ("sm_80", "sm_90", "sm_100")}


@pytest.fixture(scope="module")
def compiled():
    """What every row compiles to, once it has."""
    rows = [row for architecture in TABLE for row in rows_of(architecture)]
    rows.sort(key=lambda row: (-row.bytes, -row.size))  # the longest first
    with pool() as processes:
        yield {row: processes.submit(compile_row, row) for row in rows}
        processes.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize("operator", LAUNCHES)
def test_every_row_compiles(compiled, operator):
    rows = [row for row in compiled if row.kernel.split()[0] == operator]
    assert rows
    wrong = []
    for row in rows:
        got = compiled[row].result()
        allowed = EXCEPTIONS.get((row.architecture, row.bytes, row.size), SPILL)
        room = SHARED[row.architecture]
        if got.register_operands or got.shared > room or got.stack > allowed:
            wrong.append(f"{row}: {got}; {allowed} bytes of stack and {room} shared are allowed")
    assert not wrong, "\n".join(wrong)


@triton.jit
def _computed_on_the_left(x, y, out):
    i = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    product = tl.dot((tl.load(x + i) * 2.0).to(tl.bfloat16), tl.load(y + i))
    tl.store(out + i, product)


@pytest.mark.slow
def test_an_operand_in_registers_is_seen():
    x = torch.empty(64, 64, device="meta", dtype=torch.bfloat16)
    tile = Tile(64, 4, 1)
    arguments = (x, x, x.float())
    launch = Launch(_computed_on_the_left, tile, arguments, {}, compile_options(tile))
    assert compile_for("sm_90", launch).register_operands > 0


def test_every_operator_has_its_launches():
    assert {kernel.split()[0] for rows in TABLE.values() for kernel, _ in rows} == set(LAUNCHES)
