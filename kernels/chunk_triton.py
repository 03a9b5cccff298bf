"""A chunk of time in Triton: its rows, its decays, its products."""

# Triton compiles what follows; its values are not what the type checker takes them for.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
FORGET = tl.constexpr(-128.0)  # exp of it is 0 in float32: so -inf is this, and stays finite


@triton.jit
def dot(x, y, PRECISION: tl.constexpr):
    return tl.dot(x, y, input_precision=PRECISION)  # which has a say for float32 only


@triton.jit
def rows_of(pointer, position, rows, channels, stride, valid, WIDTH: tl.constexpr):
    """The tile (C, channels) from step `position` on; what lies outside is zero."""
    # 64 bits for the tile's place, 32 within it.
    tile = pointer + position.to(tl.int64) * stride
    mask = valid[:, None] & (channels < WIDTH)[None, :]
    return tl.load(tile + (rows[:, None] * stride + channels[None, :]), mask=mask, other=0.0)


@triton.jit
def log2(g, SUM: tl.constexpr):
    return tl.maximum(g.to(tl.float32), FORGET).to(SUM) * LOG2E


@triton.jit
def power(x):
    return tl.exp2(x.to(tl.float32))


@triton.jit
def cumulative(
    g, position, rows, channels, stride, valid, steps, KIND: tl.constexpr, WIDTH: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """The sum of log2 decays since the chunk's start, (C, channels or 1)."""
    if KIND == "vector":
        G = tl.cumsum(log2(rows_of(g, position, rows, channels, stride, valid, WIDTH), SUM), 0)
    elif KIND == "scalar":
        each = tl.load(g + position.to(tl.int64) * stride + rows * stride, mask=valid, other=0.0)
        G = tl.cumsum(log2(each, SUM), 0)[:, None]
    else:
        G = tl.minimum(rows + 1, steps).to(SUM)[:, None]
        G *= log2(tl.load(g), SUM) if KIND == "fixed" else 0.0
    return G


@triton.jit
def crossing_of(x, axis: tl.constexpr, REVERSE: tl.constexpr):
    """What crosses each step: from it on for readers, before it for writers (REVERSE)."""
    if REVERSE:
        return tl.cumsum(x, axis) - x
    return tl.cumsum(x, axis, reverse=True)
