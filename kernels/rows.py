"""Rows of channels, one a step: what kernels that go step by step read and write, in tuples."""

# Triton compiles what follows: its static_range has no iterator, its tuples no unpacking (RUF005).
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def load(pointer, mask):
    """In float32, and zero where the mask is not."""
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def only_if(condition, mask):
    """The mask, or nothing of it."""
    return tl.where(condition, mask, False)  # & would be an int32 in the interpreter of Triton 3.9


@triton.jit
def rows(x, stride, d, known, count, ROWS: tl.constexpr):
    """The channels d of ROWS rows from x on, as they are in memory; zero from `count` on."""
    loaded = ()
    for i in tl.static_range(ROWS):
        x_i = tl.load(x + i * stride + d, mask=only_if(i < count, known), other=0.0)
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
        tl.store(x + i * stride + d, value, mask=only_if(i < count, known))
