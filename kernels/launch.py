"""What kernels are launched with: the device, a tile out of a checked-in table, no autotuning."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)  # TRITON_INTERPRET=1: kernels run on the CPU
HIP = bool(torch.version.hip)  # AMD's chips


class Device(NamedTuple):
    """What a plan depends on: the architecture, such as "sm_90" or "gfx942", and its processors."""

    architecture: str
    processors: int


class Tile(NamedTuple):
    """One configuration of a kernel: the block it owns, warps, stages of the load pipeline."""

    block: int
    warps: int
    stages: int


def device_of(tensor: Tensor) -> Device:
    """The device that a tensor's kernels run on."""
    if INTERPRETED:
        return Device("sm_90", 4)
    found = torch.cuda.get_device_properties(tensor.device)
    return Device(architecture(tensor.device), found.multi_processor_count)


def architecture(device: torch.device) -> str:
    """The name of a GPU's instruction set, such as "sm_90" or "gfx942"."""
    found = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return found.gcnArchName.split(":")[0]
    return f"sm_{found.major}{found.minor}"


def launch(kernel: Any, programs: int, tile: Tile, *arguments: Any, **constants: Any) -> None:
    """Run a kernel on its first tensor's device and one axis: the others end at 65535."""
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, **constants, **compile_options(tile))


def compile_options(tile: Tile) -> dict[str, int]:
    """What a kernel is compiled with.

    Where registers do not suffice, ptxas gives up most of them, to run more programs at a time: it
    takes 32 and spills thousands of bytes. So it is told to use all there are.
    """
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return options if HIP else options | {"maxnreg": min(255, 2048 // tile.warps)}


def product_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype that tiles are multiplied in: what the tensors promote to."""
    dtype = tensors[0].dtype
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    # The interpreter keeps bfloat16 as integers, and multiplies those.
    return torch.float32 if INTERPRETED and dtype == torch.bfloat16 else dtype


def precision(dtype: torch.dtype) -> str:
    """How tl.dot multiplies float32: in three parts, or in TF32 where PyTorch may."""
    if dtype != torch.float32 or HIP:
        return "ieee"  # has no say for other dtypes; AMD's units multiply float32 itself
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def cdiv(a: int, b: int) -> int:
    """How many times b, to hold a."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The least power of 2 that is n or more."""
    return 1 << (n - 1).bit_length()


def unit_stride(x: Tensor) -> Tensor:
    """The tensor, or a copy of it whose last axis is contiguous."""
    return x if x.stride(-1) == 1 or x.dim() == 1 else x.contiguous()


def contiguous(x: Tensor | None) -> Tensor | None:
    """The tensor, or a contiguous copy of it; None stays None."""
    return None if x is None else x.contiguous()


def strides(x: Tensor | None) -> tuple[int, int, int]:
    """Of batch, time and head; a fixed decay has only heads."""
    if x is None:
        return 0, 0, 0
    return (0, 0, x.stride(0)) if x.dim() == 1 else (x.stride(0), x.stride(1), x.stride(2))
