"""The Triton kernel of scan: one formula, swept over time in four roles.

The output and the three gradients are one formula. With P_ij the decay between steps j and i,

    out_i = sum_j P_ij (a_i . b_j) c_j + a_i . (decay since the start) S

    role   a    b    c    time      state            decay per channel is on
    o      q    k    v    forward   S                the contraction
    dq     do   v    k    forward   S^T              the output
    dk     v    do   q    backward  gradient of S^T  the output
    dv     k    q    do   backward  gradient of S    the contraction

so one kernel, with the role and the kind of decay as compile-time cases, is all there is. A program
owns one head of one sequence and a tile of the output's channels, and carries the state in
registers from chunk to chunk.

When there are fewer programs than the processors could run, time is cut into segments: a pass
without output (or, backward, the sweep for dq itself) leaves what each segment adds to the state,
and every segment of the next launch folds up those before it. The state before each segment is
kept for dq. So there are one or two launches forward and three backward, and kept for the backward
pass are the inputs and at most that one state a segment.

Decays per channel within a chunk are those of halving_triton.py.

The gradient of the decay of step t is the sum of all that crosses t, and nothing else: in the chunk
from writers to readers, from the state before the chunk to readers, from writers to the state after
it, and from state to state. dq's sweep knows the readers and leaves the states before each chunk;
dk's knows the writers and the gradients of the states. (The usual difference q . dq - k . dk,
summed backwards, would lose all digits of bfloat16 where decays are strong.)

A tile that is computed stands on the right of a product, or in one of fewer than 64 rows: a left
operand that wgmma reads from registers is miscompiled by ptxas before 13.3.
"""

# Triton compiles what follows; its values are not what the type checker takes them for.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

import triton
import triton.language as tl

from .chunk_triton import crossing_of, cumulative, dot, power, rows_of
from .halving_triton import within_contracted, within_output
from .parts import sequence, start_of


@triton.jit
def _within(
    a, b, c, w, G, KIND: tl.constexpr, REVERSE: tl.constexpr, CROSS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_j P_ij (a_i . b_j) c_j in the chunk, one decay a head; and what crosses each step."""
    C: tl.constexpr = a.shape[0]
    j = tl.arange(0, C)[:, None]
    i = tl.arange(0, C)[None, :]
    A = tl.where((j >= i) if REVERSE else (j <= i), dot(b, tl.trans(a), PRECISION), 0.0)
    if KIND != "none":
        span = (G - tl.trans(G)) if REVERSE else (tl.trans(G) - G)
        A *= power(tl.minimum(span, 0.0))
    out = tl.trans(dot(tl.trans(c), A.to(c.dtype), PRECISION))
    crossing = tl.zeros([C], tl.float32)
    if CROSS:
        # The readers' and the writers' sums over one matrix of pairs differ by what crosses.
        pairs = tl.where(i == j, 0.0, A * dot(c, tl.trans(w), PRECISION)).to(G.dtype)
        queries = tl.sum(pairs, 1 if REVERSE else 0)
        keys = tl.sum(pairs, 0 if REVERSE else 1)
        crossing = tl.cumsum(queries - keys, 0, reverse=True).to(tl.float32)
    return out, crossing[:, None]


@triton.jit
def _fold(
    S, added, kept, nh, s, segments, channels, cell, cells, K: tl.constexpr, V: tl.constexpr,
    KIND: tl.constexpr, REVERSE: tl.constexpr, ON_ROWS: tl.constexpr,
):  # fmt: skip
    """The state at the start of segment s: what the segments met before it add, one by one."""
    for m in range(0, (segments - 1 - s) if REVERSE else s):
        other = nh * segments + ((segments - 1 - m) if REVERSE else m)
        if KIND == "vector":
            keep = power(tl.load(kept + other * K + channels, mask=channels < K, other=0.0))
            S *= keep[:, None] if ON_ROWS else keep[None, :]
        elif KIND != "none":
            S *= power(tl.load(kept + other))
        S += tl.load(added + other * (K * V) + cell, mask=cells, other=0.0)
    return S


@triton.jit
def _near(
    a, b, c, w, G, KIND: tl.constexpr, REVERSE: tl.constexpr, ON_OUTPUT: tl.constexpr,
    CROSS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the chunk reads of itself, before scaling; and what crosses each step of it."""
    if KIND != "vector":
        near, crossing = _within(a, b, c, w, G, KIND, REVERSE, CROSS and REVERSE, PRECISION)
    elif ON_OUTPUT:
        near, crossing = within_output(a, b, c, w, G, REVERSE, CROSS, PRECISION)
    else:
        near = within_contracted(a, b, c, G, REVERSE, PRECISION)
        crossing = near
    return near, crossing


@triton.jit
def _through(before, S, KIND: tl.constexpr, TURNED: tl.constexpr):
    """What goes through a whole chunk, from state to state, for each decay: (1, E or 1)."""
    each = tl.sum(before * S, 1 if TURNED else 0)[None, :]
    return each if KIND == "vector" else tl.sum(each, 1)[:, None]


@triton.jit
def _write(b, c, write, TURNED: tl.constexpr, ON_OUTPUT: tl.constexpr, PRECISION: tl.constexpr):
    """What the chunk adds to the state, decayed until its end: sum_j b_j (write_j c_j)^T."""
    if not TURNED:
        new = dot(tl.trans(b), (c * write).to(c.dtype), PRECISION)
    elif ON_OUTPUT:
        new = dot(tl.trans((c * write).to(c.dtype)), b, PRECISION)
    else:
        new = dot(tl.trans(c), (b * write).to(c.dtype), PRECISION)
    return new


@triton.jit(do_not_specialize=["T", "tokens", "segment", "segments"])
def sweep(
    a, b, c, g, w, out, dg, start, finish, checkpoints, states, added, kept, cu_seqlens,
    T, tokens, segment, segments, scale, H, share,
    a_batch, a_time, a_head, b_batch, b_time, b_head, c_batch, c_time, c_head,
    w_batch, w_time, w_head, g_batch, g_time, g_head,
    K: tl.constexpr, V: tl.constexpr, KIND: tl.constexpr, REVERSE: tl.constexpr,
    ON_OUTPUT: tl.constexpr, C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """One role over one segment of one sequence and head, for BLOCK_E of the output's channels.

    D channels are contracted, E are put out: (K, V), or (V, K) when ON_OUTPUT. Pointers that a role
    has no use for are None, which compiles their part away.
    """
    D: tl.constexpr = V if ON_OUTPUT else K
    E: tl.constexpr = K if ON_OUTPUT else V
    # The state is held as (D, E), or turned, (E, D): so that decays are on its columns, and for
    # float32 so that no product has 64 rows.
    EXACT: tl.constexpr = c.dtype.element_ty == tl.float32
    TURNED: tl.constexpr = EXACT or (KIND == "vector" and not ON_OUTPUT)
    TILES: tl.constexpr = (E + BLOCK_E - 1) // BLOCK_E
    DQ: tl.constexpr = ON_OUTPUT and not REVERSE
    CROSS: tl.constexpr = dg is not None
    DT: tl.constexpr = c.dtype.element_ty

    program = tl.program_id(0)
    tile = program % TILES
    s = (program // TILES) % segments
    nh = (program // (TILES * segments)).to(tl.int64)
    n = nh // H
    h = nh % H
    first, length, part = sequence(n, cu_seqlens, T, C)
    group = h // share
    a = start_of(a, cu_seqlens, n, first, a_batch, a_time) + (h if ON_OUTPUT else group) * a_head
    b = start_of(b, cu_seqlens, n, first, b_batch, b_time) + (h if ON_OUTPUT else group) * b_head
    c = start_of(c, cu_seqlens, n, first, c_batch, c_time) + (group if ON_OUTPUT else h) * c_head
    if w is not None:
        w = start_of(w, cu_seqlens, n, first, w_batch, w_time) + group * w_head
    if KIND != "none":
        g = start_of(g, cu_seqlens, n, first, g_batch, g_time) + h * g_head
    begin = s * segment
    stop = tl.minimum(begin + segment, length)

    d = tl.arange(0, BLOCK_D)
    e = tile * BLOCK_E + tl.arange(0, BLOCK_E)
    dd = d[None, :] if TURNED else d[:, None]
    ee = e[:, None] if TURNED else e[None, :]
    cell = (ee * V + dd) if ON_OUTPUT else (dd * V + ee)  # in a state (K, V)
    cells = (dd < D) & (ee < E)
    inner = (ee * D + dd) if TURNED else (dd * E + ee)  # as it lies in registers
    channels = e if ON_OUTPUT else d  # of a decay per channel

    # The state that the segment starts from.
    S = tl.zeros([BLOCK_E, BLOCK_D] if TURNED else [BLOCK_D, BLOCK_E], tl.float32)
    at = nh * segments + s
    if start is not None:
        S = tl.load(start + nh * (K * V) + cell, mask=cells, other=0.0).to(tl.float32)
    if DQ and checkpoints is not None:  # noqa: SIM102 - the first is for the compiler
        if s > 0:
            S = tl.load(checkpoints + at * (K * V) + cell, mask=cells, other=0.0)
    if added is not None and out is not None and not DQ:
        ON_ROWS: tl.constexpr = TURNED and ON_OUTPUT
        S = _fold(
            S, added, kept, nh, s, segments, channels, cell, cells, K, V, KIND, REVERSE, ON_ROWS
        )
    if checkpoints is not None and not ON_OUTPUT:
        tl.store(checkpoints + at * (K * V) + cell, S, mask=cells)
    if DQ and added is not None:
        L = tl.zeros_like(S)  # what the segment adds to the gradient of the state
    past = tl.zeros([1, BLOCK_E if ON_OUTPUT else BLOCK_D] if KIND == "vector" else [1, 1], SUM)

    rows = tl.arange(0, C)
    chunks = tl.cdiv(stop - begin, C)
    for turn in range(0, chunks):
        position = begin + ((chunks - 1 - turn) if REVERSE else turn) * C
        steps = stop - position
        valid = rows < steps
        tile_b = rows_of(b, position, rows, d, b_time, valid, D)
        tile_c = rows_of(c, position, rows, e, c_time, valid, E)
        G = cumulative(g, position, rows, channels, g_time, valid, steps, KIND, K, SUM)
        total = tl.min(G, 0)[None, :]
        keep = tl.trans(power(total)) if (TURNED and ON_OUTPUT) else power(total)
        since = power(G)
        until = power(total - G)
        read = until if REVERSE else since
        write = (since * scale) if REVERSE else until

        if out is not None:
            tile_a = rows_of(a, position, rows, d, a_time, valid, D)
            tile_w = tile_c
            if w is not None:
                tile_w = rows_of(w, position, rows, e, w_time, valid, E)
            met = tl.trans(S).to(DT) if TURNED else S.to(DT)
            near, crossing = _near(
                tile_a, tile_b, tile_c, tile_w, G, KIND, REVERSE, ON_OUTPUT, CROSS, PRECISION
            )
            if KIND == "vector" and not ON_OUTPUT:
                far = dot((tile_a * read).to(DT), met, PRECISION)
            else:
                far = dot(tile_a, met, PRECISION) * read
            if not REVERSE:
                far *= scale  # backwards the state bears it
            line = (first + position) * H + h  # of the outputs, and H more for each step
            mask = valid[:, None] & (e < E)[None, :]
            there = rows[:, None] * (H * E) + e[None, :]
            result = (near * scale + far).to(out.dtype.element_ty)
            tl.store(out + line * E + there, result, mask=mask)

            if CROSS:
                far *= tile_w
                if REVERSE:  # the last write reaches the final state undecayed
                    far = tl.where((position + rows < length - 1)[:, None], far, 0.0)
                gradient = dg + line * E
                if KIND != "vector":
                    far = tl.sum(far, 1)[:, None]
                    mask = valid[:, None]
                    there = rows[:, None] * H
                    gradient = dg + (tile.to(tl.int64) * tokens * H + line)
                far = crossing_of(far, 0, REVERSE) + crossing * scale
                place = states + ((part + position // C) * H + h) * (K * V)
                if DQ:
                    tl.store(place + inner, S.to(DT), mask=cells)
                else:
                    before = tl.load(place + inner, mask=cells, other=0.0) * keep
                    far += _through(before, S, KIND, TURNED)
                    far += tl.load(gradient + there, mask=mask, other=0.0)
                tl.store(gradient + there, far, mask=mask)
            if DQ and added is not None:
                L += _write(tile_a, tile_w, power(past + G) * scale, TURNED, True, PRECISION)
        past += total
        S = S * keep + _write(tile_b, tile_c, write, TURNED, ON_OUTPUT, PRECISION)

    if finish is not None:  # noqa: SIM102
        if s == (0 if REVERSE else segments - 1):
            tl.store(finish + nh * (K * V) + cell, S, mask=cells)
    if added is not None and (DQ or out is None):
        tl.store(added + at * (K * V) + cell, L if DQ else S, mask=cells)
        if KIND == "vector":
            if DQ or tile == 0:
                known = (channels < K)[None, :]
                tl.store(kept + at * K + channels[None, :], past.to(tl.float32), mask=known)
        elif KIND != "none":  # noqa: SIM102
            if tile == 0:
                tl.store(kept + at + tl.zeros([1, 1], tl.int32), past.to(tl.float32))
