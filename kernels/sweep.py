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

Decay per channel within a chunk: by halving, as in scan_chunked. At the border between two halves
of 2h steps, a reader decays from the border and a writer until the border, so no exponent is
positive; the products are batches of blocks of 16 steps or more.

The gradient of the decay of step t is the sum of all that crosses t, and nothing else: in the chunk
from writers to readers, from the state before the chunk to readers, from writers to the state after
it, and from state to state. dq's sweep knows the readers and leaves the states before each chunk;
dk's knows the writers and the gradients of the states. (The usual difference q . dq - k . dk, summed
backwards, would lose all digits of bfloat16 where decays are strong.)

Tiles that are computed stand on the right of a product, or in one of fewer than 64 rows, or in a
batch: a left operand that wgmma reads from registers is miscompiled by ptxas before 13.3.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
FORGET = tl.constexpr(-128.0)  # exp of it is 0 in float32: so -inf is this, and stays finite


@triton.jit
def _dot(x, y, PRECISION: tl.constexpr):
    return tl.dot(x, y, input_precision=PRECISION)  # which has a say for float32 only


@triton.jit
def _blocks(x, y, PRECISION: tl.constexpr):
    """The product of each block, (n, B, K) and (n, K, B')."""
    if x.dtype == tl.float32:  # Triton splits float32 into parts in two dimensions only
        tl.static_assert(x.shape[0] == 1)
        x = x.reshape([x.shape[1], x.shape[2]])
        z = _dot(x, y.reshape([y.shape[1], y.shape[2]]), PRECISION)[None, :, :]
    else:
        z = tl.dot(x, y)
    return z


@triton.jit
def _rows(pointer, position, rows, channels, stride, valid, WIDTH: tl.constexpr):
    """The tile (C, channels) from step `position` on; what lies outside is zero."""
    # 64 bits for the tile's place, 32 within it.
    tile = pointer + position.to(tl.int64) * stride
    mask = valid[:, None] & (channels < WIDTH)[None, :]
    return tl.load(tile + (rows[:, None] * stride + channels[None, :]), mask=mask, other=0.0)


@triton.jit
def _log2(g, SUM: tl.constexpr):
    return tl.maximum(g.to(tl.float32), FORGET).to(SUM) * LOG2E


@triton.jit
def _power(x):
    return tl.exp2(x.to(tl.float32))


@triton.jit
def _cumulative(
    g, position, rows, channels, stride, valid, steps, KIND: tl.constexpr, WIDTH: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """The sum of log2 decays since the chunk's start, (C, channels or 1)."""
    if KIND == "vector":
        G = tl.cumsum(_log2(_rows(g, position, rows, channels, stride, valid, WIDTH), SUM), 0)
    elif KIND == "scalar":
        each = tl.load(g + position.to(tl.int64) * stride + rows * stride, mask=valid, other=0.0)
        G = tl.cumsum(_log2(each, SUM), 0)[:, None]
    else:
        G = tl.minimum(rows + 1, steps).to(SUM)[:, None]
        G *= _log2(tl.load(g), SUM) if KIND == "fixed" else 0.0
    return G


@triton.jit
def _crossing(x, axis: tl.constexpr, REVERSE: tl.constexpr):
    """What crosses each step: from it on for readers, before it for writers (REVERSE)."""
    if REVERSE:
        return tl.cumsum(x, axis) - x
    return tl.cumsum(x, axis, reverse=True)


@triton.jit
def _within(
    a, b, c, w, G, C: tl.constexpr, KIND: tl.constexpr, REVERSE: tl.constexpr,
    CROSS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_j P_ij (a_i . b_j) c_j in the chunk, one decay a head; and what crosses each step."""
    j = tl.arange(0, C)[:, None]
    i = tl.arange(0, C)[None, :]
    A = tl.where((j >= i) if REVERSE else (j <= i), _dot(b, tl.trans(a), PRECISION), 0.0)
    if KIND != "none":
        span = (G - tl.trans(G)) if REVERSE else (tl.trans(G) - G)
        A *= _power(tl.minimum(span, 0.0))
    out = tl.trans(_dot(tl.trans(c), A.to(c.dtype), PRECISION))
    crossing = tl.zeros([C], tl.float32)
    if CROSS:
        # The readers' and the writers' sums over one matrix of pairs differ by what crosses.
        pairs = tl.where(i == j, 0.0, A * _dot(c, tl.trans(w), PRECISION)).to(G.dtype)
        queries = tl.sum(pairs, 1 if REVERSE else 0)
        keys = tl.sum(pairs, 0 if REVERSE else 1)
        crossing = tl.cumsum(queries - keys, 0, reverse=True).to(tl.float32)
    return out, crossing[:, None]


@triton.jit
def _border(G, h: tl.constexpr):
    """Decay between each step and the middle of its 2h steps."""
    blocks = G.reshape([G.shape[0] // (2 * h), 2 * h, G.shape[1]])
    low = (tl.arange(0, 2 * h) == h - 1)[None, :, None]
    middle = tl.sum(tl.where(low, blocks, 0.0), 1)[:, None, :]
    return _power(-tl.abs(blocks - middle)).reshape([G.shape[0], G.shape[1]])


@triton.jit
def _reads_across(h: tl.constexpr, B: tl.constexpr, REVERSE: tl.constexpr):
    """[1, j, i] in a block of B steps: whether i reads j across the middle of their 2h steps."""
    j = tl.arange(0, B)[None, :, None]
    i = tl.arange(0, B)[None, None, :]
    same = (i // (2 * h)) == (j // (2 * h))
    if REVERSE:
        return same & (j % (2 * h) >= h) & (i % (2 * h) < h)
    return same & (i % (2 * h) >= h) & (j % (2 * h) < h)


@triton.jit
def _contracted_level(
    a, b, G, h: tl.constexpr, B: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr
):
    """a_i . P_ij b_j where i reads j across the middle of 2h steps, (blocks, j, i)."""
    upper = tl.arange(0, a.shape[0])[:, None] % (2 * h) >= h
    x = (tl.where(upper, b, a) if REVERSE else tl.where(upper, a, b)) * _border(G, h)
    x = x.to(a.dtype).reshape([a.shape[0] // B, B, a.shape[1]])
    pairs = _blocks(x, tl.permute(x, (0, 2, 1)), PRECISION)
    return tl.where(_reads_across(h, B, REVERSE), pairs, 0.0)


@triton.jit
def _read_blocks(A, c, PRECISION: tl.constexpr):
    """sum_j A_ji c_j, each block for itself."""
    B: tl.constexpr = A.shape[1]
    blocks = c.reshape([c.shape[0] // B, B, c.shape[1]])
    out = _blocks(tl.permute(A.to(c.dtype), (0, 2, 1)), blocks, PRECISION)
    return out.reshape([c.shape[0], c.shape[1]])


@triton.jit
def _within_contracted(a, b, c, G, REVERSE: tl.constexpr, PRECISION: tl.constexpr):
    """sum_j (a_i . P_ij b_j) c_j in the chunk, for a decay per channel of a and b."""
    out = tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)[:, None] * c
    A = _contracted_level(a, b, G, 1, 16, REVERSE, PRECISION)
    A += _contracted_level(a, b, G, 2, 16, REVERSE, PRECISION)
    A += _contracted_level(a, b, G, 4, 16, REVERSE, PRECISION)
    A += _contracted_level(a, b, G, 8, 16, REVERSE, PRECISION)
    out += _read_blocks(A, c, PRECISION)
    if a.shape[0] >= 32:
        out += _read_blocks(_contracted_level(a, b, G, 16, 32, REVERSE, PRECISION), c, PRECISION)
    if a.shape[0] >= 64:
        out += _read_blocks(_contracted_level(a, b, G, 32, 64, REVERSE, PRECISION), c, PRECISION)
    return out


@triton.jit
def _pairs(a, b, B: tl.constexpr, PRECISION: tl.constexpr):
    """a_i . b_j in every block of B steps, (blocks, j, i)."""
    n: tl.constexpr = a.shape[0] // B
    readers = tl.permute(a.reshape([n, B, a.shape[1]]), (0, 2, 1))
    return _blocks(b.reshape([n, B, a.shape[1]]), readers, PRECISION)


@triton.jit
def _output_level(
    A, c, w, G, h: tl.constexpr, REVERSE: tl.constexpr, CROSS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_j A_ji P_ij c_j where i reads j across the middle of 2h steps; and what crosses."""
    C: tl.constexpr = c.shape[0]
    E: tl.constexpr = c.shape[1]
    decay = _border(G, h)
    met = tl.where(_reads_across(h, A.shape[1], REVERSE), A, 0.0)
    out = _read_blocks(met, (c * decay).to(c.dtype), PRECISION) * decay
    crossing = tl.zeros([C, E], tl.float32)
    if CROSS:
        upper = tl.arange(0, C)[:, None] % (2 * h) >= h
        across = _crossing((out * w).reshape([C // (2 * h), 2 * h, E]), 1, REVERSE)
        crossing = tl.where(upper != REVERSE, across.reshape([C, E]), 0.0)
    return out, crossing


@triton.jit
def _within_output(
    a, b, c, w, G, REVERSE: tl.constexpr, CROSS: tl.constexpr, PRECISION: tl.constexpr
):
    """sum_j (a_i . b_j) P_ij c_j in the chunk, for a decay per channel of c; and what crosses."""
    A = _pairs(a, b, 16, PRECISION)
    out, crossing = _output_level(A, c, w, G, 1, REVERSE, CROSS, PRECISION)
    out2, crossing2 = _output_level(A, c, w, G, 2, REVERSE, CROSS, PRECISION)
    out4, crossing4 = _output_level(A, c, w, G, 4, REVERSE, CROSS, PRECISION)
    out8, crossing8 = _output_level(A, c, w, G, 8, REVERSE, CROSS, PRECISION)
    out += out2 + out4 + out8 + tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)[:, None] * c
    crossing += crossing2 + crossing4 + crossing8
    if a.shape[0] >= 32:
        A = _pairs(a, b, 32, PRECISION)
        out16, crossing16 = _output_level(A, c, w, G, 16, REVERSE, CROSS, PRECISION)
        out += out16
        crossing += crossing16
    if a.shape[0] >= 64:
        A = _pairs(a, b, 64, PRECISION)
        out32, crossing32 = _output_level(A, c, w, G, 32, REVERSE, CROSS, PRECISION)
        out += out32
        crossing += crossing32
    return out, crossing


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
    length = T
    first = n * T  # row of the sequence's first step in the outputs
    row = n * 0  # and in its batch
    batch = n
    part = n * tl.cdiv(T, C)
    if cu_seqlens is not None:  # packed sequences lie in a batch of one
        first = tl.load(cu_seqlens + n).to(tl.int64)
        length = (tl.load(cu_seqlens + n + 1) - first).to(tl.int32)
        row = first
        batch = n * 0
        part = first // C + n
    group = h // share
    a += batch * a_batch + row * a_time + (h if ON_OUTPUT else group) * a_head
    b += batch * b_batch + row * b_time + (h if ON_OUTPUT else group) * b_head
    c += batch * c_batch + row * c_time + (group if ON_OUTPUT else h) * c_head
    if w is not None:
        w += batch * w_batch + row * w_time + group * w_head
    if KIND != "none":
        g += batch * g_batch + row * g_time + h * g_head
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
    if DQ and checkpoints is not None:
        if s > 0:
            S = tl.load(checkpoints + at * (K * V) + cell, mask=cells, other=0.0)
    if added is not None and out is not None and not DQ:
        for m in range(0, (segments - 1 - s) if REVERSE else s):
            other = nh * segments + ((segments - 1 - m) if REVERSE else m)
            if KIND == "vector":
                keep = _power(tl.load(kept + other * K + channels, mask=channels < K, other=0.0))
                S *= keep[:, None] if (TURNED and ON_OUTPUT) else keep[None, :]
            elif KIND != "none":
                S *= _power(tl.load(kept + other))
            S += tl.load(added + other * (K * V) + cell, mask=cells, other=0.0)
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
        tile_b = _rows(b, position, rows, d, b_time, valid, D)
        tile_c = _rows(c, position, rows, e, c_time, valid, E)
        G = _cumulative(g, position, rows, channels, g_time, valid, steps, KIND, K, SUM)
        total = tl.min(G, 0)[None, :]
        kept_state = tl.trans(_power(total)) if (TURNED and ON_OUTPUT) else _power(total)
        since = _power(G)
        until = _power(total - G)
        read = until if REVERSE else since
        write = (since * scale) if REVERSE else until

        if out is not None:
            tile_a = _rows(a, position, rows, d, a_time, valid, D)
            tile_w = tile_c
            if w is not None:
                tile_w = _rows(w, position, rows, e, w_time, valid, E)
            met = tl.trans(S).to(DT) if TURNED else S.to(DT)
            if KIND == "vector" and not ON_OUTPUT:
                near = _within_contracted(tile_a, tile_b, tile_c, G, REVERSE, PRECISION)
                far = _dot((tile_a * read).to(DT), met, PRECISION)
            else:
                if KIND == "vector":
                    near, crossing = _within_output(
                        tile_a, tile_b, tile_c, tile_w, G, REVERSE, CROSS, PRECISION
                    )
                else:
                    near, crossing = _within(
                        tile_a,
                        tile_b,
                        tile_c,
                        tile_w,
                        G,
                        C,
                        KIND,
                        REVERSE,
                        CROSS and REVERSE,
                        PRECISION,
                    )
                far = _dot(tile_a, met, PRECISION) * read
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
                    gradient = dg + (tile * (tokens * 1).to(tl.int64) * H + line)
                far = _crossing(far, 0, REVERSE) + crossing * scale
                place = states + ((part + position // C) * H + h) * (K * V)
                if DQ:
                    tl.store(place + inner, S.to(DT), mask=cells)
                    tl.store(gradient + there, far, mask=mask)
                else:
                    before = tl.load(place + inner, mask=cells, other=0.0) * kept_state
                    through = before * S
                    through = tl.sum(through, 1)[None, :] if TURNED else tl.sum(through, 0)[None, :]
                    far += tl.load(gradient + there, mask=mask, other=0.0)
                    if KIND != "vector":
                        through = tl.sum(through, 1)[:, None]
                    tl.store(gradient + there, far + through, mask=mask)
            if DQ and added is not None:
                lead = _power(past + G) * scale
                led = (tile_w * lead).to(DT)
                if TURNED:
                    L += _dot(tl.trans(led), tile_a, PRECISION)
                else:
                    L += _dot(tl.trans(tile_a), led, PRECISION)
        past += total
        S *= kept_state
        if not TURNED:
            S += _dot(tl.trans(tile_b), (tile_c * write).to(DT), PRECISION)
        elif ON_OUTPUT:
            S += _dot(tl.trans((tile_c * write).to(DT)), tile_b, PRECISION)
        else:
            S += _dot(tl.trans(tile_c), (tile_b * write).to(DT), PRECISION)

    if finish is not None:
        if s == (0 if REVERSE else segments - 1):
            tl.store(finish + nh * (K * V) + cell, S, mask=cells)
    if added is not None and (DQ or out is None):
        tl.store(added + at * (K * V) + cell, L if DQ else S, mask=cells)
        if KIND == "vector":
            if DQ or tile == 0:
                known = (channels < K)[None, :]
                tl.store(kept + at * K + channels[None, :], past.to(tl.float32), mask=known)
        elif KIND != "none":
            if tile == 0:
                tl.store(kept + at + tl.zeros([1, 1], tl.int32), past.to(tl.float32))
