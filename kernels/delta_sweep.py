"""The Triton kernels of delta_scan; formulas and letters are those of delta_scan_chunked.py.

    systems   each chunk by itself: X = (1 + beta G)^-1 and scale A X, for which no state is needed
    write     forwards in time, R = beta E:    E  = V - read K S
                                               O  = scale read Q S + (scale A X) R
                                               S' = read_C S + K^T (write X R)
    unwrite   backwards:                       dR = (scale A X)^T dO + X^T (write K dS')
                                               dS = read_C dS' + scale Q^T (read dO)
                                                    - K^T (read beta dR)
    gather    each chunk by itself: the gradients of q, k, beta and g from E, dR, S and dS'

A program of `write` and `unwrite` owns one head of one sequence and a tile of V, and carries the
state from chunk to chunk in registers; the others own one head of one chunk.

X is found by halving: the inverses of two neighbouring blocks of h steps are joined to one of 2h.
No power of G is formed, which for like keys would grow beyond all digits. States lie turned,
(V, K), and a chunk has 32 steps at most, so that no product has 64 rows: see sweep.py.
"""

# Triton compiles what follows; its values are not what the type checker takes them for.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

import triton
import triton.language as tl

from .chunk_triton import crossing_of, cumulative, dot, power, rows_of
from .parts import part_of, sequence, start_of


@triton.jit
def _column(x, position, rows, stride, valid):
    """A number per step, (C, 1)."""
    there = position.to(tl.int64) * stride + rows * stride
    return tl.load(x + there, mask=valid, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _pairs(G, STRICT: tl.constexpr):
    """P_ij, the decay from step j to i, and 0 where i is not after j (or, unless STRICT, at it)."""
    C: tl.constexpr = G.shape[0]
    i = tl.arange(0, C)[:, None]
    j = tl.arange(0, C)[None, :]
    P = power(tl.minimum(G - tl.trans(G), 0.0))
    return tl.where((i > j) if STRICT else (i >= j), P, 0.0)


@triton.jit
def _inverse(L, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """(1 + L)^-1 for an L that is strictly lower triangular, (2 ** LEVELS)^2."""
    C: tl.constexpr = L.shape[0]
    i = tl.arange(0, C)[:, None]
    j = tl.arange(0, C)[None, :]
    X = tl.where(i == j, 1.0, 0.0)
    for level in range(0, LEVELS):
        h = 1 << level
        joins = (i // (2 * h) == j // (2 * h)) & (i % (2 * h) >= h) & (j % (2 * h) < h)
        X -= dot(X, dot(tl.where(joins, L, 0.0), X, PRECISION), PRECISION)
    return X


@triton.jit(do_not_specialize=["T", "sequences"])
def systems(
    q, k, beta, g, X, AX, sequences, cu_seqlens, T, scale, H, share,
    q_batch, q_time, q_head, k_batch, k_time, k_head, beta_batch, beta_time, beta_head,
    g_batch, g_time, g_head,
    K: tl.constexpr, KIND: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """X and scale A X of one chunk and head, (chunks, H, C, C)."""
    p = tl.program_id(0) // H
    h = (tl.program_id(0) % H).to(tl.int64)
    n, first, length, begin = part_of(p, cu_seqlens, T, sequences, C)
    q = start_of(q, cu_seqlens, n, first, q_batch, q_time) + (h // share) * q_head
    k = start_of(k, cu_seqlens, n, first, k_batch, k_time) + (h // share) * k_head
    beta = start_of(beta, cu_seqlens, n, first, beta_batch, beta_time) + h * beta_head
    if KIND != "none":
        g = start_of(g, cu_seqlens, n, first, g_batch, g_time) + h * g_head

    rows = tl.arange(0, C)
    steps = length - begin
    valid = rows < steps
    A = tl.zeros([C, C], tl.float32)
    keys = tl.zeros([C, C], tl.float32)
    for tile in range(0, (K + BLOCK_K - 1) // BLOCK_K):
        d = tile * BLOCK_K + tl.arange(0, BLOCK_K)
        tile_q = rows_of(q, begin, rows, d, q_time, valid, K)
        tile_k = tl.trans(rows_of(k, begin, rows, d, k_time, valid, K))
        A += dot(tile_q, tile_k, PRECISION)
        keys += dot(tl.trans(tile_k), tile_k, PRECISION)
    b = _column(beta, begin, rows, beta_time, valid)
    G = cumulative(g, begin, rows, rows, g_time, valid, steps, KIND, K, SUM)
    A *= _pairs(G, False)
    inverse = _inverse(b * keys * _pairs(G, True), LEVELS, EXACT)
    cell = (p.to(tl.int64) * H + h) * (C * C) + rows[:, None] * C + rows[None, :]
    tl.store(X + cell, inverse.to(X.dtype.element_ty))
    tl.store(AX + cell, (scale * dot(A, inverse, EXACT)).to(AX.dtype.element_ty))


@triton.jit(do_not_specialize=["T"])
def write(
    q, k, v, beta, g, X, AX, out, E, states, start, finish, cu_seqlens, T, scale, H, share,
    q_batch, q_time, q_head, k_batch, k_time, k_head, v_batch, v_time, v_head,
    beta_batch, beta_time, beta_head, g_batch, g_time, g_head,
    K: tl.constexpr, V: tl.constexpr, KIND: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr, PRECISION: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """One head of one sequence: the output; or E and the states before each chunk."""
    TILES: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    DT: tl.constexpr = k.dtype.element_ty
    nh = (tl.program_id(0) // TILES).to(tl.int64)
    n = nh // H
    h = nh % H
    first, length, slot = sequence(n, cu_seqlens, T, C)
    q = start_of(q, cu_seqlens, n, first, q_batch, q_time) + (h // share) * q_head
    k = start_of(k, cu_seqlens, n, first, k_batch, k_time) + (h // share) * k_head
    v = start_of(v, cu_seqlens, n, first, v_batch, v_time) + h * v_head
    beta = start_of(beta, cu_seqlens, n, first, beta_batch, beta_time) + h * beta_head
    if KIND != "none":
        g = start_of(g, cu_seqlens, n, first, g_batch, g_time) + h * g_head

    rows = tl.arange(0, C)
    d = tl.arange(0, BLOCK_K)
    e = (tl.program_id(0) % TILES) * BLOCK_V + tl.arange(0, BLOCK_V)
    cells = (e < V)[:, None] & (d < K)[None, :]
    given = nh * (K * V) + d[None, :] * V + e[:, None]  # in a state (K, V)
    S = tl.zeros([BLOCK_V, BLOCK_K], tl.float32)
    if start is not None:
        S = tl.load(start + given, mask=cells, other=0.0).to(tl.float32)
    for c in range(0, tl.cdiv(length, C)):
        begin = c * C
        valid = rows < length - begin
        tile_k = rows_of(k, begin, rows, d, k_time, valid, K)
        tile_v = rows_of(v, begin, rows, e, v_time, valid, V)
        b = _column(beta, begin, rows, beta_time, valid)
        G = cumulative(g, begin, rows, d, g_time, valid, length - begin, KIND, K, SUM)
        total = tl.min(G, 0)[None, :]
        read = power(G)
        place = (slot + c) * H + h
        square = place * (C * C) + rows[:, None] * C + rows[None, :]
        S_now = tl.trans(S.to(DT))
        error = tile_v - read * dot(tile_k, S_now, PRECISION)
        R = (b * error).to(DT)
        U = dot(tl.load(X + square), R, PRECISION)
        there = ((first + begin) * H + h) * V + rows[:, None] * (H * V) + e[None, :]
        mask = valid[:, None] & (e < V)[None, :]
        if out is not None:
            tile_q = rows_of(q, begin, rows, d, q_time, valid, K)
            result = dot(tl.load(AX + square), R, PRECISION)
            result += scale * read * dot(tile_q, S_now, PRECISION)
            tl.store(out + there, result.to(out.dtype.element_ty), mask=mask)
        else:
            tl.store(E + there, error.to(DT), mask=mask)
            tl.store(states + place * (K * V) + e[:, None] * K + d[None, :], S.to(DT), mask=cells)
        U *= power(total - G)
        S = S * power(total) + dot(tl.trans(U.to(DT)), tile_k, PRECISION)
    if finish is not None:
        tl.store(finish + given, S, mask=cells)


@triton.jit(do_not_specialize=["T"])
def unwrite(
    do, q, k, beta, g, X, AX, dv, dR, states, start, finish, cu_seqlens, T, scale, H, share,
    do_batch, do_time, do_head, q_batch, q_time, q_head, k_batch, k_time, k_head,
    beta_batch, beta_time, beta_head, g_batch, g_time, g_head,
    K: tl.constexpr, V: tl.constexpr, KIND: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr, PRECISION: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """One head of one sequence: dv, dR, and the gradients of the states after each chunk."""
    TILES: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    DT: tl.constexpr = k.dtype.element_ty
    nh = (tl.program_id(0) // TILES).to(tl.int64)
    n = nh // H
    h = nh % H
    first, length, slot = sequence(n, cu_seqlens, T, C)
    do = start_of(do, cu_seqlens, n, first, do_batch, do_time) + h * do_head
    q = start_of(q, cu_seqlens, n, first, q_batch, q_time) + (h // share) * q_head
    k = start_of(k, cu_seqlens, n, first, k_batch, k_time) + (h // share) * k_head
    beta = start_of(beta, cu_seqlens, n, first, beta_batch, beta_time) + h * beta_head
    if KIND != "none":
        g = start_of(g, cu_seqlens, n, first, g_batch, g_time) + h * g_head

    rows = tl.arange(0, C)
    d = tl.arange(0, BLOCK_K)
    e = (tl.program_id(0) % TILES) * BLOCK_V + tl.arange(0, BLOCK_V)
    cells = (e < V)[:, None] & (d < K)[None, :]
    given = nh * (K * V) + d[None, :] * V + e[:, None]
    dS = tl.load(start + given, mask=cells, other=0.0).to(tl.float32)
    chunks = tl.cdiv(length, C)
    for turn in range(0, chunks):
        c = chunks - 1 - turn
        begin = c * C
        valid = rows < length - begin
        tile_do = rows_of(do, begin, rows, e, do_time, valid, V)
        tile_q = rows_of(q, begin, rows, d, q_time, valid, K)
        tile_k = rows_of(k, begin, rows, d, k_time, valid, K)
        b = _column(beta, begin, rows, beta_time, valid)
        G = cumulative(g, begin, rows, d, g_time, valid, length - begin, KIND, K, SUM)
        total = tl.min(G, 0)[None, :]
        read = power(G)
        place = (slot + c) * H + h
        square = place * (C * C) + rows[:, None] * C + rows[None, :]
        tl.store(states + place * (K * V) + e[:, None] * K + d[None, :], dS.to(DT), mask=cells)
        dU = power(total - G) * dot(tile_k, tl.trans(dS.to(DT)), PRECISION)
        error = dot(tl.trans(tl.load(AX + square)), tile_do, PRECISION)
        error += dot(tl.trans(tl.load(X + square)), dU.to(DT), PRECISION)
        there = ((first + begin) * H + h) * V + rows[:, None] * (H * V) + e[None, :]
        mask = valid[:, None] & (e < V)[None, :]
        tl.store(dR + there, error.to(DT), mask=mask)
        error *= b
        tl.store(dv + there, error.to(dv.dtype.element_ty), mask=mask)
        dS *= power(total)
        dS += scale * dot(tl.trans((read * tile_do).to(DT)), tile_q, PRECISION)
        dS -= dot(tl.trans((read * error).to(DT)), tile_k, PRECISION)
    tl.store(finish + given, dS, mask=cells)


@triton.jit(do_not_specialize=["T", "sequences"])
def gather(
    do, q, k, beta, g, X, E, dR, states, dstates, dq, dk, dbeta, dg, sequences,
    cu_seqlens, T, scale, H, share,
    do_batch, do_time, do_head, q_batch, q_time, q_head, k_batch, k_time, k_head,
    beta_batch, beta_time, beta_head, g_batch, g_time, g_head,
    K: tl.constexpr, V: tl.constexpr, KIND: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr, PRECISION: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """One chunk and head: the gradients of q, k, beta and, if asked for, of the decay."""
    DT: tl.constexpr = k.dtype.element_ty
    p = tl.program_id(0) // H
    h = (tl.program_id(0) % H).to(tl.int64)
    n, first, length, begin = part_of(p, cu_seqlens, T, sequences, C)
    do = start_of(do, cu_seqlens, n, first, do_batch, do_time) + h * do_head
    q = start_of(q, cu_seqlens, n, first, q_batch, q_time) + (h // share) * q_head
    k = start_of(k, cu_seqlens, n, first, k_batch, k_time) + (h // share) * k_head
    beta = start_of(beta, cu_seqlens, n, first, beta_batch, beta_time) + h * beta_head
    if KIND != "none":
        g = start_of(g, cu_seqlens, n, first, g_batch, g_time) + h * g_head

    rows = tl.arange(0, C)
    d = tl.arange(0, BLOCK_K)
    steps = length - begin
    valid = rows < steps
    known = valid[:, None] & (d < K)[None, :]
    b = _column(beta, begin, rows, beta_time, valid)
    place = p.to(tl.int64) * H + h
    tile_X = tl.load(X + place * (C * C) + rows[:, None] * C + rows[None, :])
    line = (first + begin) * H + h

    dA = tl.zeros([C, C], tl.float32)
    dR_U = tl.zeros([C, C], tl.float32)
    dq_read = tl.zeros([C, BLOCK_K], tl.float32)
    dk_read = tl.zeros([C, BLOCK_K], tl.float32)
    dk_write = tl.zeros([C, BLOCK_K], tl.float32)
    met = tl.zeros([C], tl.float32)
    through = tl.zeros([BLOCK_K], tl.float32)
    for tile in range(0, (V + BLOCK_V - 1) // BLOCK_V):
        e = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        mask = valid[:, None] & (e < V)[None, :]
        there = line * V + rows[:, None] * (H * V) + e[None, :]
        cells = (e < V)[:, None] & (d < K)[None, :]
        cell = place * (K * V) + e[:, None] * K + d[None, :]
        tile_do = rows_of(do, begin, rows, e, do_time, valid, V)
        tile_E = tl.load(E + there, mask=mask, other=0.0)
        tile_dR = tl.load(dR + there, mask=mask, other=0.0)
        S = tl.load(states + cell, mask=cells, other=0.0)
        dS = tl.load(dstates + cell, mask=cells, other=0.0)
        U = dot(tile_X, (b * tile_E).to(DT), PRECISION).to(DT)
        dA += dot(tile_do, tl.trans(U), PRECISION)
        dR_U += dot(tile_dR, tl.trans(U), PRECISION)
        dq_read += dot(tile_do, S, PRECISION)
        dk_read -= dot((b * tile_dR).to(DT), S, PRECISION)
        dk_write += dot(U, dS, PRECISION)
        met += tl.sum(tile_dR.to(tl.float32) * tile_E.to(tl.float32), 1)
        through += tl.sum(S.to(tl.float32) * dS.to(tl.float32), 0)

    tile_q = rows_of(q, begin, rows, d, q_time, valid, K)
    tile_k = rows_of(k, begin, rows, d, k_time, valid, K)
    G = cumulative(g, begin, rows, d, g_time, valid, steps, KIND, K, SUM)
    total = tl.min(G, 0)[None, :]
    read = power(G)
    dq_read *= scale * read
    dk_read *= read
    dk_write *= power(total - G)
    P = _pairs(G, True)
    keys = dot(tile_k, tl.trans(tile_k), PRECISION) * P
    met -= tl.sum(dR_U * keys, 1)
    tl.store(dbeta + line + rows * H, met.to(dbeta.dtype.element_ty), mask=valid)
    dA *= scale
    dG = -b * dR_U
    if dg is not None:
        pairs = dA * dot(tile_q, tl.trans(tile_k), PRECISION) * P + dG * keys
        before = rows[None, :] < rows[:, None]
        crossing = tl.sum(tl.where(before, tl.cumsum(pairs, 0, reverse=True), 0.0), 1)
        readers = tl.sum(dq_read * tile_q + dk_read * tile_k, 1)
        crossing += crossing_of(readers, 0, False)
        crossing += crossing_of(tl.sum(dk_write * tile_k, 1), 0, True)
        crossing += tl.sum(through, 0) * tl.sum(power(total), 1)
        tl.store(dg + line + rows * H, crossing, mask=valid)
    dG *= P
    dA *= _pairs(G, False)
    dq_read += dot(dA.to(DT), tile_k, PRECISION)
    dk_read += dk_write + dot(tl.trans(dA).to(DT), tile_q, PRECISION)
    dk_read += dot((dG + tl.trans(dG)).to(DT), tile_k, PRECISION)
    there = line * K + rows[:, None] * (H * K) + d[None, :]
    tl.store(dq + there, dq_read.to(dq.dtype.element_ty), mask=known)
    tl.store(dk + there, dk_read.to(dk.dtype.element_ty), mask=known)
