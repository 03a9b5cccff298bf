"""Compiling kernels for GPUs that are not there, from the very launches the operators make.

`python tests/kernels/ahead.py sm_90` looks for every row of that architecture in kernels/tiles.py
again: the first of its candidates that spills at most SPILL bytes a thread, or the one that spills
least.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from archsearch.kernels import launch as launching
from archsearch.kernels.launch import Device, Tile
from archsearch.kernels.tiles import TABLE
from archsearch.kernels.tuning import CANDIDATES, Row

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
}
DTYPES = {2: torch.bfloat16, 4: torch.float32}  # by the bytes of a row
# Bytes that a program may hold. The rows of sm_80 and sm_100 are also those of sm_86, sm_89 and
# sm_120, which have less than their namesakes.
SHARED = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 99 * 1024, "gfx942": 64 * 1024}
SPILL = 128  # bytes; the next smaller tile would read its inputs once more instead


class Launch(NamedTuple):
    kernel: Any
    tile: Tile
    arguments: tuple
    constants: dict
    options: dict


class Compiled(NamedTuple):
    registers: int
    stack: int  # bytes of spilled registers a thread
    shared: int  # bytes
    register_operands: int  # wgmma that read their left operand from registers


@contextmanager
def recorded(
    module: Any, device: Device, tile_of: Callable | None = None
) -> Iterator[list[Launch]]:
    """What `module` launches, on `device`, with the table's tiles or other ones; none of it runs."""
    launches: list[Launch] = []

    def launch(kernel, programs, tile, *arguments, **constants):
        options = launching.compile_options(tile)
        launches.append(Launch(kernel, tile, arguments, constants, options))

    mine = {"launch": launch, "device_of": lambda _: device, "tile_of": tile_of or module.tile_of}
    theirs = {name: getattr(module, name) for name in mine}
    hip = launching.HIP
    try:
        launching.HIP = device.architecture.startswith("gfx")
        for name, value in mine.items():
            setattr(module, name, value)
        yield launches
    finally:
        launching.HIP = hip
        for name, value in theirs.items():
            setattr(module, name, value)


def source(launch: Launch) -> ASTSource:
    """The specialisation that Triton would make of these arguments."""
    signature, constants, attributes = {}, dict(launch.constants), {}
    names = launch.kernel.arg_names
    free = {names[i] if isinstance(i, int) else i for i in launch.kernel.do_not_specialize or ()}
    for i, (name, value) in enumerate(zip(names, launch.arguments, strict=False)):
        if value is None:
            constants[name] = None
        elif isinstance(value, Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1 and name not in free:
            constants[name] = 1
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0 and name not in free:
                attributes[(i,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in launch.kernel.arg_names}
    return ASTSource(launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


def compile_for(architecture: str, launch: Launch) -> Compiled:
    if architecture.startswith("gfx"):
        target = GPUTarget("hip", architecture, 64)
        compiled = triton.compile(source(launch), target=target, options=launch.options)
        text = compiled.asm["amdgcn"]
        registers, stack = (
            int(re.findall(rf"{name}: (\d+)", text)[0]) for name in ("TotalNumVgprs", "ScratchSize")
        )
        return Compiled(registers, stack, compiled.metadata.shared, 0)
    target = GPUTarget("cuda", int(architecture[3:]), 32)
    compiled = triton.compile(source(launch), target=target, options=launch.options)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0]
    held = re.findall(r"wgmma\.mma_async[^;]*?\}\s*,\s*\{", compiled.asm["ptx"])
    return Compiled(int(registers), int(stack), compiled.metadata.shared, len(held))


def rows_of(architecture: str) -> list[Row]:
    """Every row of the table for one architecture."""
    return [
        Row(architecture, kernel, bytes, size)
        for (kernel, bytes), sizes in TABLE[architecture].items()
        for size in sizes
    ]


def compile_row(row: Row, tile: Tile | None = None) -> Compiled:
    """The kernel of a row, at its size, with the table's tile or another one."""
    operator, role, *_ = row.kernel.split()
    launches, case = LAUNCHES[operator]
    tile_of = None if tile is None else lambda *_: tile
    made = launches(row.architecture, *case(row), DTYPES[row.bytes], tile_of)
    return compile_for(row.architecture, made[role])


def pool() -> ProcessPoolExecutor:
    """Processes that compile the same code in less time: without line numbers, on large pages."""
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    return ProcessPoolExecutor(2, get_context("spawn"), _without_lines)


def _without_lines() -> None:
    knobs.compilation.disable_line_info = True


def best_tile(row: Row) -> tuple[Tile, Compiled]:
    """The first candidate that spills little, or the one that spills least."""
    found = []
    for tile in (Tile(*each) for each in CANDIDATES[row.kernel, row.bytes]):
        try:
            result = compile_row(row, tile)
        except (triton.TritonError, RuntimeError) as error:  # ptxas and LLVM refuse some tiles
            print(f"# {row} {tile}: {str(error)[:80]!r}")
            continue
        if result.shared > SHARED[row.architecture] or result.register_operands:
            continue
        found.append((max(result.stack, SPILL), len(found), tile, result))
        if result.stack <= SPILL:
            break
    return min(found)[2:]


def search(architecture: str) -> None:
    """Print the rows of the table for one architecture."""
    rows, chosen = rows_of(architecture), {}
    with pool() as processes:
        for row, (tile, result) in zip(rows, processes.map(best_tile, rows), strict=True):
            print(f"# {row.kernel} {row.bytes} {row.size}: {tile} {result}", flush=True)
            chosen.setdefault((row.kernel, row.bytes), {})[row.size] = tuple(tile)
    for key in TABLE[architecture]:
        print(f"        {key}: {dict(sorted(chosen[key].items()))},".replace("'", '"'))


# What one call of each operator launches, by role: the fullest case, on tensors without data.


def scan_launches(
    architecture: str,
    kind: str,
    K: int,
    V: int,
    dtype: torch.dtype,
    tile_of: Callable | None = None,
) -> dict[str, Launch]:
    """Time is cut into segments."""
    from archsearch.kernels import scan_triton as module

    def empty(*shape, dtype=torch.float32):
        return torch.empty(shape, device="meta", dtype=dtype)

    B, T, H = 1, 8192, 8
    q, k, v = (empty(B, T, H, width, dtype=dtype) for width in (K, K, V))
    shapes = {"none": None, "fixed": (H,), "scalar": (B, T, H), "vector": (B, T, H, K)}
    g = None if kind == "none" else empty(*shapes[kind])
    state = empty(B, H, K, V)
    with recorded(module, Device(architecture, 132), tile_of) as launches:
        module.forward(q, k, v, g, 0.1, state, None, True)
        module.backward(v, state, q, k, v, g, 0.1, state, None, state, g is not None)
    # The first only adds up the segments' states: a part of the second.
    return dict(zip(("o", "dq", "dk", "dv"), launches[1:], strict=True))


def delta_launches(
    architecture: str,
    kind: str,
    K: int,
    V: int,
    dtype: torch.dtype,
    tile_of: Callable | None = None,
) -> dict[str, Launch]:
    """Backwards the systems are solved and the states written again: a part of what is forward."""
    from archsearch.kernels import delta_scan_triton as module

    def empty(*shape, dtype=torch.float32):
        return torch.empty(shape, device="meta", dtype=dtype)

    B, T, H = 1, 8192, 8
    q, v, beta = (empty(B, T, H, *width, dtype=dtype) for width in ((K,), (V,), ()))
    shapes = {"none": None, "fixed": (H,), "scalar": (B, T, H)}
    g = None if kind == "none" else empty(*shapes[kind])
    state = empty(B, H, K, V)
    with recorded(module, Device(architecture, 132), tile_of) as launches:
        module.forward(q, q, v, beta, g, 0.1, state, None, False)
        module.backward(v, state, q, q, v, beta, g, 0.1, state, None, g is not None)
    return dict(
        zip(("systems", "write", "unwrite", "gather"), launches[:2] + launches[4:], strict=True)
    )


def conv_launches(
    architecture: str, D: int, W: int, dtype: torch.dtype, tile_of: Callable | None = None
) -> dict[str, Launch]:
    """With every tensor there can be."""
    from archsearch.kernels import causal_conv_triton as module

    def empty(*shape, dtype=dtype):
        return torch.empty(shape, device="meta", dtype=dtype)

    x, weight, bias, state = empty(1, 8192, D), empty(D, W), empty(D), empty(1, D, W - 1)
    with recorded(module, Device(architecture, 132), tile_of) as launches:
        module.forward(x, weight, bias, "silu", state, None)
        module.backward(x, state, x, weight, bias, "silu", state, None)
    return dict(zip(("forward", "backward"), launches, strict=True))


def selective_launches(
    architecture: str, D: int, N: int, dtype: torch.dtype, tile_of: Callable | None = None
) -> dict[str, Launch]:
    """Time is cut into parts."""
    from archsearch.kernels import selective_scan_triton as module

    def empty(*shape, dtype=dtype):
        return torch.empty(shape, device="meta", dtype=dtype)

    x, weights, rates = empty(1, 8192, D), empty(1, 8192, N), empty(D, N, dtype=torch.float32)
    skip, state = empty(D, dtype=torch.float32), empty(1, D, N, dtype=torch.float32)
    inputs = x, x, rates, weights, weights, skip
    with recorded(module, Device(architecture, 132), tile_of) as launches:
        module.forward(*inputs, state, None, True)
        module.backward(x, state, state, *inputs, None)
    # The first of each only adds up what the parts do: a part of the second.
    return dict(zip(("forward", "backward"), launches[1::2], strict=True))


# How an operator's launches are recorded, and the case that a row stands for: kind and sizes.
LAUNCHES: dict[str, tuple[Callable, Callable[[Row], tuple]]] = {
    "scan": (scan_launches, lambda row: (row.kernel.split()[2], row.size, row.size)),
    "delta": (delta_launches, lambda row: ("scalar", row.size, row.size)),
    "conv": (conv_launches, lambda row: (row.size, 4)),
    "selective": (selective_launches, lambda row: (row.size, 16)),
}


if __name__ == "__main__":
    search(sys.argv[1])
