"""Compiling kernels for GPUs that are not there, from the very launches the operators make."""

import re
import subprocess
import tempfile
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


def recorder(launches: list[Launch]):
    def launch(kernel, programs, tile, *arguments, **constants):
        launches.append(Launch(kernel, tile, arguments, constants))

    return launch


def source(launch: Launch) -> ASTSource:
    """The specialisation that Triton would make of these arguments."""
    signature, constants, attributes = {}, dict(launch.constants), {}
    for i, (name, value) in enumerate(zip(launch.kernel.arg_names, launch.arguments, strict=False)):
        free = (
            name in {launch.kernel.arg_names[j] for j in launch.kernel.params_do_not_specialize}
            if hasattr(launch.kernel, "params_do_not_specialize")
            else False
        )
        if value is None:
            constants[name] = None
        elif isinstance(value, Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1 and not free:
            constants[name] = 1
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0 and not free:
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
        stack = int(re.search(r"ScratchSize: (\d+)", text)[1])
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
    print(usage[-300:]) if "REG:32 " in usage else 0
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    held = re.findall(r"wgmma\.mma_async[^;]*?\}\s*,\s*\{", compiled.asm["ptx"])
    return Compiled(int(found[1]), int(found[2]), compiled.metadata.shared, len(held))
