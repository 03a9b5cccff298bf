"""The Triton kernel of scan for decoding and short sequences: one step at a time, no matmul.

    S_t = Diag(exp(g_t)) S_{t-1} + k_t v_t^T,  o_t = scale S_t^T q_t

A program owns one head of one sequence and a tile of V, and keeps the state in registers.
"""

# Triton compiles what follows; its values are not what the type checker takes them for.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

import triton
import triton.language as tl

from .sweep import _log2, _power


@triton.jit(do_not_specialize=["T"])
def steps(
    q, k, v, g, out, start, finish, cu_seqlens, T, scale, H, share,
    q_batch, q_time, q_head, k_batch, k_time, k_head, v_batch, v_time, v_head,
    g_batch, g_time, g_head,
    K: tl.constexpr, V: tl.constexpr, KIND: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """All steps of one sequence and head, for BLOCK_V of the values' channels."""
    TILES: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    nh = (tl.program_id(0) // TILES).to(tl.int64)
    n = nh // H
    h = nh % H
    length = T
    first = n * T
    batch = n
    row = n * 0
    if cu_seqlens is not None:
        first = tl.load(cu_seqlens + n).to(tl.int64)
        length = (tl.load(cu_seqlens + n + 1) - first).to(tl.int32)
        batch = n * 0
        row = first
    d = tl.arange(0, BLOCK_K)
    e = (tl.program_id(0) % TILES) * BLOCK_V + tl.arange(0, BLOCK_V)
    q += batch * q_batch + row * q_time + (h // share) * q_head + d
    k += batch * k_batch + row * k_time + (h // share) * k_head + d
    v += batch * v_batch + row * v_time + h * v_head + e
    out += (first * H + h) * V + e
    if KIND != "none":
        g += batch * g_batch + row * g_time + h * g_head

    cell = d[:, None] * V + e[None, :]
    cells = (d < K)[:, None] & (e < V)[None, :]
    S = tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    if start is not None:
        S = tl.load(start + nh * (K * V) + cell, mask=cells, other=0.0).to(tl.float32)
    for _ in range(0, length):
        if KIND == "vector":
            S *= _power(_log2(tl.load(g + d, mask=d < K, other=0.0), tl.float32))[:, None]
            g += g_time
        elif KIND != "none":
            S *= _power(_log2(tl.load(g), tl.float32))
            if KIND == "scalar":
                g += g_time
        k_t = tl.load(k, mask=d < K, other=0.0).to(tl.float32)
        v_t = tl.load(v, mask=e < V, other=0.0).to(tl.float32)
        q_t = tl.load(q, mask=d < K, other=0.0).to(tl.float32) * scale
        S += k_t[:, None] * v_t[None, :]
        o_t = tl.sum(q_t[:, None] * S, 0)
        tl.store(out, o_t.to(out.dtype.element_ty), mask=e < V)
        q += q_time
        k += k_time
        v += v_time
        out += H * V
    tl.store(finish + nh * (K * V) + cell, S, mask=cells)
