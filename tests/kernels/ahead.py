"""Compiling kernels for GPUs that are not there, from the very launches the operators make.

`python tests/kernels/ahead.py sm_90` tries tiles for every row of kernels/tiles.py, largest first,
and prints the rows: the first that spills at most SPILL bytes a thread, or the one that spills least.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
}
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
SPILL = 96  # bytes; the next smaller tile would read its inputs once more instead


class Launch(NamedTuple):
    kernel: Any
    tile: Any
    arguments: tuple
    constants: dict


class Compiled(NamedTuple):
    registers: int
    stack: int  # bytes of spilled registers a thread
    shared: int  # bytes
    register_operands: int  # wgmma that read their left operand from registers


@contextmanager
def recorded(module: Any, device: Any, tile_of: Callable | None = None) -> Iterator[list[Launch]]:
    """What `module` launches, on `device`, with the table's tiles or other ones; none of it runs."""
    launches: list[Launch] = []

    def launch(kernel, programs, tile, *arguments, **constants):
        launches.append(Launch(kernel, tile, arguments, constants))

    mine = {"launch": launch, "device_of": lambda _: device, "tile_of": tile_of or module.tile_of}
    theirs = {name: getattr(module, name) for name in mine}
    try:
        for name, value in mine.items():
            setattr(module, name, value)
        yield launches
    finally:
        for name, value in theirs.items():
            setattr(module, name, value)


def scan_launches(
    architecture: str,
    kind: str,
    K: int,
    V: int,
    dtype: torch.dtype,
    tile_of: Callable | None = None,
) -> dict[str, Launch]:
    """All that one call of scan launches when time is cut into segments: the fullest case."""
    from archsearch.kernels import scan_triton as module
    from archsearch.kernels.launch import Device

    def empty(*shape, dtype=torch.float32):
        return torch.empty(shape, device="meta", dtype=dtype)

    B, T, H = 1, 8192, 8
    q, k, v = (
        empty(B, T, H, K, dtype=dtype),
        empty(B, T, H, K, dtype=dtype),
        empty(B, T, H, V, dtype=dtype),
    )
    shapes = {"none": None, "fixed": (H,), "scalar": (B, T, H), "vector": (B, T, H, K)}
    g = None if kind == "none" else empty(*shapes[kind])
    state = empty(B, H, K, V)
    with recorded(module, Device(architecture, 132), tile_of) as launches:
        module.forward(q, k, v, g, 0.1, state, None, True)
        module.backward(v, state, q, k, v, g, 0.1, state, None, state, g is not None)
    return dict(zip(("state", "o", "dq", "dk", "dv"), launches, strict=True))


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
    options = {"num_warps": launch.tile.warps, "num_stages": launch.tile.stages}
    if architecture.startswith("gfx"):
        target = GPUTarget("hip", architecture, 64)
        compiled = triton.compile(source(launch), target=target, options=options)
        text = compiled.asm["amdgcn"]
        stack = int(re.findall(r"ScratchSize: (\d+)", text)[0])
        return Compiled(0, stack, compiled.metadata.shared, 0)
    target = GPUTarget("cuda", int(architecture[3:]), 32)
    compiled = triton.compile(source(launch), target=target, options=options)
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


def compile_call(
    architecture: str, kind: str, size: int, dtype: torch.dtype
) -> dict[str, Compiled]:
    """Every launch of one call of scan, compiled with the table's tiles."""
    launches = scan_launches(architecture, kind, size, size, dtype)
    return {role: compile_for(architecture, launch) for role, launch in launches.items()}


def _always(tile: Any) -> Callable:
    return lambda *_: tile


def candidates(kind: str, size: int, dtype: torch.dtype) -> list[tuple[int, int, int]]:
    """Blocks, warps and stages worth trying, the best first."""
    wide = [(64, 8, 2), (64, 8, 1), (32, 8, 1), (32, 4, 1), (16, 8, 1), (16, 4, 1)]
    thin = [(32, 4, 2), (32, 4, 1), (32, 8, 1), (16, 4, 1), (16, 8, 1)]  # few rows: fewer warps
    if dtype == torch.float32:
        return thin if size <= 64 else thin[-2:]
    if kind == "vector":
        return thin
    return [(64, 4, 2), (64, 4, 1), *wide] if size <= 64 else wide


def search(architecture: str) -> None:
    """Print the rows of the table for one architecture."""
    from archsearch.kernels.launch import Tile

    for dtype in (torch.bfloat16, torch.float32):
        for kind in ("scalar", "vector"):
            for role in ("o", "dq", "dk", "dv"):
                chosen = {}
                for size in (64, 128, 256):
                    found = []
                    for candidate in candidates(kind, size, dtype):
                        tile = Tile(*candidate)
                        launches = scan_launches(
                            architecture, kind, size, size, dtype, _always(tile)
                        )
                        try:
                            result = compile_for(architecture, launches[role])
                        except Exception as error:  # ptxas and LLVM refuse some tiles
                            print(f"# {kind} {size} {role} {candidate}: {str(error)[:80]!r}")
                            continue
                        if result.shared > SHARED[architecture] or result.register_operands:
                            continue
                        found.append((max(result.stack, SPILL), len(found), tile, result.stack))
                        if result.stack <= SPILL:
                            break
                    *_, chosen[size], stack = min(found)
                    print(
                        f"# {architecture} {kind} {size} {role} {tuple(chosen[size])} stack {stack}"
                    )
                rows = {size: tuple(tile) for size, tile in chosen.items()}
                print(f'("scan {role} {kind}", {dtype.itemsize}): {rows},', flush=True)


def delta_launches(
    architecture: str,
    kind: str,
    K: int,
    V: int,
    dtype: torch.dtype,
    tile_of: Callable | None = None,
) -> dict[str, Launch]:
    """All that one call of delta_scan launches; but backwards no output is written."""
    from archsearch.kernels import delta_scan_triton as module
    from archsearch.kernels.launch import Device

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
    names = ("systems", "write", "systems again", "states", "unwrite", "gather")
    made: dict[str, Launch] = dict(zip(names, launches, strict=True))
    del made["systems again"]
    return made


def conv_launches(
    architecture: str, D: int, W: int, dtype: torch.dtype, tile_of: Callable | None = None
) -> dict[str, Launch]:
    """All that one call of causal_conv launches, with every tensor there can be."""
    from archsearch.kernels import causal_conv_triton as module
    from archsearch.kernels.launch import Device

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
    """All that one call of selective_scan launches when time is cut into parts: the fullest case."""
    from archsearch.kernels import selective_scan_triton as module
    from archsearch.kernels.launch import Device

    def empty(*shape, dtype=dtype):
        return torch.empty(shape, device="meta", dtype=dtype)

    x, weights, rates = empty(1, 8192, D), empty(1, 8192, N), empty(D, N, dtype=torch.float32)
    skip, state = empty(D, dtype=torch.float32), empty(1, D, N, dtype=torch.float32)
    inputs = x, x, rates, weights, weights, skip
    with recorded(module, Device(architecture, 132), tile_of) as launches:
        module.forward(*inputs, state, None, True)
        module.backward(x, state, state, *inputs, None)
    return dict(zip(("state", "forward", "dstate", "backward"), launches, strict=True))


if __name__ == "__main__":
    search(sys.argv[1])
