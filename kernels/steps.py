"""The Triton kernel of scan and delta_scan for a few steps: one after another, no matmul.

    S_t = Diag(exp(g_t)) S_{t-1},  S_t += k_t v_t^T,  o_t = scale S_t^T q_t

and with beta, for v_t, beta_t (v_t - S_t^T k_t).

A program owns one head of one sequence and a tile of V, and keeps the state in registers.
"""

# Triton compiles what follows; its values are not what the type checker takes them for.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

import triton
import triton.language as tl
from torch import Tensor

from .chunk_triton import log2, power
from .launch import Tile, cdiv, launch, power_of_2, strides
from .parts import sequence, start_of

KINDS = {0: "none", 1: "fixed", 3: "scalar", 4: "vector"}  # of decay, by its dimensions


@triton.jit(do_not_specialize=["T"])
def steps(
    q, k, v, g, beta, out, start, finish, cu_seqlens, T, scale, H, share,
    q_batch, q_time, q_head, k_batch, k_time, k_head, v_batch, v_time, v_head,
    g_batch, g_time, g_head, beta_batch, beta_time, beta_head,
    K: tl.constexpr, V: tl.constexpr, KIND: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """All steps of one sequence and head, for BLOCK_V of the values' channels."""
    TILES: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    nh = (tl.program_id(0) // TILES).to(tl.int64)
    n = nh // H
    h = nh % H
    first, length, _ = sequence(n, cu_seqlens, T, 1)
    d = tl.arange(0, BLOCK_K)
    e = (tl.program_id(0) % TILES) * BLOCK_V + tl.arange(0, BLOCK_V)
    q = start_of(q, cu_seqlens, n, first, q_batch, q_time) + (h // share) * q_head + d
    k = start_of(k, cu_seqlens, n, first, k_batch, k_time) + (h // share) * k_head + d
    v = start_of(v, cu_seqlens, n, first, v_batch, v_time) + h * v_head + e
    out += (first * H + h) * V + e
    if KIND != "none":
        g = start_of(g, cu_seqlens, n, first, g_batch, g_time) + h * g_head
    if beta is not None:
        beta = start_of(beta, cu_seqlens, n, first, beta_batch, beta_time) + h * beta_head

    cell = d[:, None] * V + e[None, :]
    cells = (d < K)[:, None] & (e < V)[None, :]
    S = tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    if start is not None:
        S = tl.load(start + nh * (K * V) + cell, mask=cells, other=0.0).to(tl.float32)
    for _ in range(0, length):
        if KIND == "vector":
            S *= power(log2(tl.load(g + d, mask=d < K, other=0.0), tl.float32))[:, None]
            g += g_time
        elif KIND != "none":
            S *= power(log2(tl.load(g), tl.float32))
            if KIND == "scalar":
                g += g_time
        k_t = tl.load(k, mask=d < K, other=0.0).to(tl.float32)
        v_t = tl.load(v, mask=e < V, other=0.0).to(tl.float32)
        q_t = tl.load(q, mask=d < K, other=0.0).to(tl.float32) * scale
        if beta is not None:
            v_t = tl.load(beta).to(tl.float32) * (v_t - tl.sum(k_t[:, None] * S, 0))
            beta += beta_time
        S += k_t[:, None] * v_t[None, :]
        o_t = tl.sum(q_t[:, None] * S, 0)
        tl.store(out, o_t.to(out.dtype.element_ty), mask=e < V)
        q += q_time
        k += k_time
        v += v_time
        out += H * V
    tl.store(finish + nh * (K * V) + cell, S, mask=cells)


def step_by_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor | None,
    scale: float,
    out: Tensor,
    start: Tensor | None,
    finish: Tensor,
    cu_seqlens: Tensor | None,
) -> None:
    """A whole call into `out` and `finish`; the last axis of each tensor is contiguous."""
    (T, G, K), (H, V) = q.shape[1:], v.shape[2:]
    dimensions = 0 if log_decay is None else log_decay.dim()
    width = max(16, power_of_2(K))
    tile = Tile(min(max(1, 2048 // width), power_of_2(V)), 4, 1)
    launch(
        steps,
        len(finish) * H * cdiv(V, tile.block),
        tile,
        *(q, k, v, log_decay, beta, out, start, finish, cu_seqlens, T, scale, H, H // G),
        *(stride for x in (q, k, v, log_decay, beta) for stride in strides(x)),
        K=K,
        V=V,
        KIND=KINDS[dimensions],
        BLOCK_K=width,
        BLOCK_V=tile.block,
    )
