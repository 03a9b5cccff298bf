"""Rows of channels, one a step: what kernels that go step by step read and write, in tuples."""

# Triton compiles what follows: its static_range has no iterator, its tuples no unpacking (RUF005).
# pyright: reportGeneralTypeIssues=false

# A mask of channels under one condition is where(condition, mask, False): of a scalar and a tensor,
# the interpreter of Triton 3.9 makes & an int32.

import triton
import triton.language as tl


@triton.jit
def load(pointer, mask):
    """In float32, and zero where the mask is not."""
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def rows(x, stride, d, known, count, ROWS: tl.constexpr):
    """The channels d of ROWS rows from x on, as they are in memory; zero from `count` on."""
    loaded = ()
    for i in tl.static_range(ROWS):
        x_i = tl.load(x + i * stride + d, mask=tl.where(i < count, known, False), other=0.0)
        loaded = loaded + (x_i,)  # noqa: RUF005
    return loaded


@triton.jit
def floats(loaded):
    converted = ()
    for i in tl.static_range(len(loaded)):
        converted = converted + (loaded[i].to(tl.float32),)  # noqa: RUF005
    return converted


@triton.jit
def zeros(BLOCK: tl.constexpr, ROWS: tl.constexpr):
    made = ()
    for _ in tl.static_range(ROWS):
        made = made + (tl.zeros([BLOCK], tl.float32),)  # noqa: RUF005
    return made


@triton.jit
def store_rows(x, values, stride: tl.constexpr, d, known, count):
    """Each where `rows` would read it, but for those from `count` on."""
    for i in tl.static_range(len(values)):
        value = values[i].to(x.dtype.element_ty)
        tl.store(x + i * stride + d, value, mask=tl.where(i < count, known, False))
