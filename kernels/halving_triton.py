"""Decays per channel within a chunk of 16 steps, in Triton: by halving, as in scan_chunked.

At the border between two halves of 2h steps a reader decays from the border and a writer until the
border, so no exponent is positive.
"""

# Triton compiles what follows; its values are not what the type checker takes them for.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

import triton
import triton.language as tl

from .chunk_triton import crossing_of, dot, power


@triton.jit
def _border(G, h: tl.constexpr):
    """Decay between each step and the middle of its 2h steps."""
    blocks = G.reshape([G.shape[0] // (2 * h), 2 * h, G.shape[1]])
    low = (tl.arange(0, 2 * h) == h - 1)[None, :, None]
    middle = tl.sum(tl.where(low, blocks, 0.0), 1)[:, None, :]
    return power(-tl.abs(blocks - middle)).reshape([G.shape[0], G.shape[1]])


@triton.jit
def _reads_across(h: tl.constexpr, C: tl.constexpr, REVERSE: tl.constexpr):
    """[j, i]: whether i reads j across the middle of their common 2h steps."""
    j = tl.arange(0, C)[:, None]
    i = tl.arange(0, C)[None, :]
    same = (i // (2 * h)) == (j // (2 * h))
    if REVERSE:
        across = same & (j % (2 * h) >= h) & (i % (2 * h) < h)
    else:
        across = same & (i % (2 * h) >= h) & (j % (2 * h) < h)
    return across


@triton.jit
def _contracted_level(a, b, G, h: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr):
    """[j, i]: a_i . P_ij b_j where i reads j across the middle of 2h steps, else 0."""
    C: tl.constexpr = a.shape[0]
    upper = tl.arange(0, C)[:, None] % (2 * h) >= h
    x = (tl.where(upper, b, a) if REVERSE else tl.where(upper, a, b)) * _border(G, h)
    x = x.to(a.dtype)
    return tl.where(_reads_across(h, C, REVERSE), dot(x, tl.trans(x), PRECISION), 0.0)


@triton.jit
def within_contracted(a, b, c, G, REVERSE: tl.constexpr, PRECISION: tl.constexpr):
    """sum_j (a_i . P_ij b_j) c_j in the chunk of 16, for a decay per channel of a and b."""
    A = _contracted_level(a, b, G, 1, REVERSE, PRECISION)
    A += _contracted_level(a, b, G, 2, REVERSE, PRECISION)
    A += _contracted_level(a, b, G, 4, REVERSE, PRECISION)
    A += _contracted_level(a, b, G, 8, REVERSE, PRECISION)
    out = dot(tl.trans(A.to(c.dtype)), c, PRECISION)
    return out + tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)[:, None] * c


@triton.jit
def _output_level(
    A, c, w, G, h: tl.constexpr, REVERSE: tl.constexpr, CROSS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_j A_ji P_ij c_j where i reads j across the middle of 2h steps; and what crosses."""
    C: tl.constexpr = c.shape[0]
    E: tl.constexpr = c.shape[1]
    decay = _border(G, h)
    met = tl.where(_reads_across(h, C, REVERSE), A, 0.0).to(c.dtype)
    out = dot(tl.trans(met), (c * decay).to(c.dtype), PRECISION) * decay
    crossing = tl.zeros([C, E], tl.float32)
    if CROSS:
        upper = tl.arange(0, C)[:, None] % (2 * h) >= h
        across = crossing_of((out * w).reshape([C // (2 * h), 2 * h, E]), 1, REVERSE)
        crossing = tl.where(upper != REVERSE, across.reshape([C, E]), 0.0)
    return out, crossing


@triton.jit
def within_output(
    a, b, c, w, G, REVERSE: tl.constexpr, CROSS: tl.constexpr, PRECISION: tl.constexpr
):
    """sum_j (a_i . b_j) P_ij c_j in the chunk of 16, decays per channel of c; and crossings."""
    A = dot(b, tl.trans(a), PRECISION)  # [j, i]
    out, crossing = _output_level(A, c, w, G, 1, REVERSE, CROSS, PRECISION)
    out2, crossing2 = _output_level(A, c, w, G, 2, REVERSE, CROSS, PRECISION)
    out4, crossing4 = _output_level(A, c, w, G, 4, REVERSE, CROSS, PRECISION)
    out8, crossing8 = _output_level(A, c, w, G, 8, REVERSE, CROSS, PRECISION)
    own = tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)[:, None] * c
    return out + out2 + out4 + out8 + own, crossing + crossing2 + crossing4 + crossing8
