"""The two Triton kernels of selective_scan: forwards and backwards in time over one part.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t,      y_t = C_t h_t + D x_t
    g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}          the gradient of h_t

A program owns a tile of channels, which lie across the lanes, and takes STEPS steps at a time:
their rows are in registers, and the N states pass one after another. So sums over N need no
exchange between lanes, nothing grows with N, and a state visits memory once in STEPS steps. B_t[n]
and C_t[n] are scalars to a program. The strides of time are compiled in: no addresses of rows are
held in registers. Every lane has channels of its own (a tile is no smaller than its lanes), so of
the states left in memory it reads what it wrote itself; barriers stand between, should the compiler
lay out a load otherwise than the store.

If there are few programs, time is cut into parts: a first launch (without outputs) leaves what each
adds to the state, and the sum of its deltas, of which its decay is exp(A sum); every part of the
second folds up the others. Forwards the state is left every INTERVAL steps. Backwards an interval
is first done again from there, leaving the state every STEPS steps, and then taken from its end.
"""

# Triton compiles what follows: its static_range has no iterator, its tuples no unpacking (RUF005).
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from .parts import part_of
from .rows import floats, load, rows, store_rows, zeros

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _weights(x, stride, count, STEPS: tl.constexpr):
    """One state's weight in STEPS steps, scalars."""
    weights = ()
    for i in tl.static_range(STEPS):
        weight = tl.load(x + i * stride, mask=i < count, other=0.0).to(tl.float32)
        weights = weights + (weight,)  # noqa: RUF005
    return weights


@triton.jit
def _products(x, y):
    products = ()
    for i in tl.static_range(len(x)):
        products = products + (x[i] * y[i],)  # noqa: RUF005
    return products


@triton.jit
def _fold(state, kept, added, part, n, rate, d, known, D: tl.constexpr, N: tl.constexpr):
    """The state after (or, of gradients, before) another part."""
    row = part.to(tl.int64)
    decay = tl.exp2(rate * load(kept + row * D + d, known))
    return decay * state + load(added + (row * N + n) * D + d, known)


@triton.jit(do_not_specialize=["T", "sequences", "steps"])
def advance(
    x, delta, A, B, C, skip, initial, y, final, checkpoints, hold, kept, added,
    cu_seqlens, T, sequences, steps,
    x_batch, delta_batch, B_batch, C_batch, A_channel, A_state,
    x_time: tl.constexpr, delta_time: tl.constexpr, B_time: tl.constexpr, C_time: tl.constexpr,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
    INTERVAL: tl.constexpr,
):  # fmt: skip
    """One part forwards; without y, what it adds into `hold` and its sum of deltas into `kept`."""
    TILES: tl.constexpr = (D + BLOCK - 1) // BLOCK
    p = tl.program_id(0) // TILES
    d = (tl.program_id(0) % TILES) * BLOCK + tl.arange(0, BLOCK)
    known = d < D
    s, first, length, begin = part_of(p, cu_seqlens, T, sequences, steps)
    stop = tl.minimum(begin + steps, length)
    last = stop == length
    if y is None:
        stop = tl.where(last, begin, stop)  # no part comes after
    batch = s
    row = begin.to(tl.int64)
    if cu_seqlens is not None:  # packed sequences lie in a batch of one
        batch = s * 0
        row += first
    x += batch * x_batch + row * x_time
    delta += batch * delta_batch + row * delta_time
    B += batch * B_batch + row * B_time
    C += batch * C_batch + row * C_time
    hold += p.to(tl.int64) * (N * D) + d
    state = s * (D * N) + d * N
    if y is not None:
        y += (first + begin) * D
    if checkpoints is not None:
        slot = s * tl.cdiv(T, INTERVAL)
        if cu_seqlens is not None:
            slot = first // INTERVAL + s
        checkpoints += d
    D_d = tl.zeros([BLOCK], tl.float32)
    if skip is not None:
        D_d = load(skip + d, known)

    total = tl.zeros([BLOCK], tl.float32)
    blocks = tl.cdiv(stop - begin, STEPS)
    for b in range(0, blocks):
        count = stop - begin - b * STEPS
        x_b = floats(rows(x, x_time, d, known, count, STEPS))
        delta_b = floats(rows(delta, delta_time, d, known, count, STEPS))
        drive = _products(x_b, delta_b)
        y_b = ()
        for i in tl.static_range(STEPS):
            y_b = y_b + (D_d * x_b[i],)  # noqa: RUF005
            total += delta_b[i]
        for n in range(0, N):
            rate = load(A + d * A_channel + n * A_state, known) * LOG2E
            B_n = _weights(B + n, B_time, count, STEPS)
            if y is not None:
                C_n = _weights(C + n, C_time, count, STEPS)
            h = tl.zeros([BLOCK], tl.float32)
            if b > 0:
                h = load(hold + n * D, known)
            elif y is not None:
                if initial is not None:
                    h = load(initial + state + n, known)
                if added is not None:
                    before = begin // steps
                    for m in range(0, before):
                        h = _fold(h, kept, added, p - before + m, n, rate, d, known, D, N)
            if checkpoints is not None:
                step = begin + b * STEPS
                place = checkpoints + ((slot + step // INTERVAL) * N + n) * D
                tl.store(place, h, mask=tl.where(step % INTERVAL == 0, known, False))
            read = ()
            for i in tl.static_range(STEPS):
                h = tl.exp2(delta_b[i] * rate) * h + drive[i] * B_n[i]
                if y is not None:
                    read = read + (y_b[i] + h * C_n[i],)  # noqa: RUF005
            if y is not None:
                y_b = read
            if (b + 1 < blocks) or (y is None):
                tl.store(hold + n * D, h, mask=known)
            else:
                tl.store(final + state + n, h, mask=tl.where(last, known, False))
        if y is not None:
            store_rows(y, y_b, D, d, known, count)
            y += STEPS * D
        tl.debug_barrier()  # the states held may come back to other lanes
        x += STEPS * x_time
        delta += STEPS * delta_time
        B += STEPS * B_time
        C += STEPS * C_time
    if y is None:
        tl.store(kept + p.to(tl.int64) * D + d, total, mask=known)
    elif length == 0:
        for n in range(0, N):
            h = tl.zeros([BLOCK], tl.float32)
            if initial is not None:
                h = load(initial + state + n, known)
            tl.store(final + state + n, h, mask=tl.where(begin == 0, known, False))


@triton.jit
def _states_of_interval(
    x, delta, A, B, start, slots, count, A_channel, A_state, d, known,
    x_time: tl.constexpr, delta_time: tl.constexpr, B_time: tl.constexpr,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The state before every block of an interval, in `slots`; that before the first is `start`."""
    for n in range(0, N):
        tl.store(slots + n * D, load(start + n * D, known), mask=known)
    tl.debug_barrier()
    for b in range(0, tl.cdiv(count, STEPS) - 1):
        delta_b = floats(rows(delta, delta_time, d, known, STEPS, STEPS))
        drive = _products(floats(rows(x, x_time, d, known, STEPS, STEPS)), delta_b)
        for n in range(0, N):
            rate = load(A + d * A_channel + n * A_state, known) * LOG2E
            B_n = _weights(B + n, B_time, STEPS, STEPS)
            h = load(slots + (b * N + n) * D, known)
            for i in tl.static_range(STEPS):
                h = tl.exp2(delta_b[i] * rate) * h + drive[i] * B_n[i]
            tl.store(slots + ((b + 1) * N + n) * D, h, mask=known)
        tl.debug_barrier()
        x += STEPS * x_time
        delta += STEPS * delta_time
        B += STEPS * B_time


@triton.jit
def _there_and_back(
    h, g, dA, ddelta, d_drive, dy, delta, drive, A, B, C, dB, dC, count, N: tl.constexpr
):  # fmt: skip
    """One of the N states over a block: forwards from h, then backwards with its gradient g.

    Adds to dA and, row by row, to ddelta and d_drive (the gradient of delta x), and returns them
    behind g; the sums over channels are the tile's dB and dC.
    """
    decays = ()
    stays = ()  # what a step leaves of the state before it
    for i in tl.static_range(len(dy)):
        decay = tl.exp2(delta[i] * (A * LOG2E))
        stay = decay * h
        h = stay + drive[i] * B[i]
        decays = decays + (decay,)  # noqa: RUF005
        stays = stays + (stay,)  # noqa: RUF005
    new_ddelta = ()
    new_d_drive = ()
    for i in tl.static_range(len(dy) - 1, -1, -1):
        g += C[i] * dy[i]
        to_C = tl.sum(dy[i] * (stays[i] + drive[i] * B[i]), 0)
        to_B = tl.sum(g * drive[i], 0)
        tl.store(dC + i * N, to_C, mask=i < count)
        tl.store(dB + i * N, to_B, mask=i < count)
        slope = g * stays[i]  # to delta_t A
        dA += delta[i] * slope
        new_ddelta = (ddelta[i] + A * slope,) + new_ddelta  # noqa: RUF005
        new_d_drive = (d_drive[i] + g * B[i],) + new_d_drive  # noqa: RUF005
        g *= decays[i]
    return g, dA, new_ddelta, new_d_drive


@triton.jit(do_not_specialize=["T", "tokens", "sequences", "steps"])
def retreat(
    dy, dfinal, x, delta, A, B, C, skip, checkpoints, dx, ddelta, dinitial, dA, dB, dC,
    slots, hold, kept, added, cu_seqlens, T, tokens, sequences, steps,
    dy_batch, x_batch, delta_batch, B_batch, C_batch, A_channel, A_state,
    dy_time: tl.constexpr, x_time: tl.constexpr, delta_time: tl.constexpr, B_time: tl.constexpr,
    C_time: tl.constexpr,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
    INTERVAL: tl.constexpr,
):  # fmt: skip
    """One part backwards; without dx, what it adds to the gradient of the state, as above.

    Partial sums: dA is (parts, N + 1, D), D's gradient last; dB and dC are (tiles, tokens, N).
    """
    TILES: tl.constexpr = (D + BLOCK - 1) // BLOCK
    p = tl.program_id(0) // TILES
    tile = tl.program_id(0) % TILES
    d = tile * BLOCK + tl.arange(0, BLOCK)
    known = d < D
    s, first, length, begin = part_of(p, cu_seqlens, T, sequences, steps)
    stop = tl.minimum(begin + steps, length)
    if dx is None:
        stop = tl.where(begin == 0, begin, stop)  # no part comes before
    batch = s
    row = begin.to(tl.int64)
    slot = s * tl.cdiv(T, INTERVAL)
    if cu_seqlens is not None:
        batch = s * 0
        row += first
        slot = first // INTERVAL + s
    state = s * (D * N) + d * N
    hold += p.to(tl.int64) * (N * D) + d
    D_d = tl.zeros([BLOCK], tl.float32)
    if skip is not None:
        D_d = load(skip + d, known)
    if dx is not None:
        slots += p.to(tl.int64) * (tl.cdiv(tl.minimum(T, INTERVAL), STEPS) * (N * D)) + d
        dA += p.to(tl.int64) * ((N + 1) * D) + d

    # The gradient of the state that reaches the part from behind.
    for n in range(0, N):
        g = tl.zeros([BLOCK], tl.float32)
        if dx is not None:
            g = load(dfinal + state + n, known)
            if added is not None:
                rate = load(A + d * A_channel + n * A_state, known) * LOG2E
                after = tl.maximum(tl.cdiv(length, steps) - 1 - begin // steps, 0)
                for m in range(0, after):
                    g = _fold(g, kept, added, p + after - m, n, rate, d, known, D, N)
            tl.store(dA + n * D, tl.zeros([BLOCK], tl.float32), mask=known)
        tl.store(hold + n * D, g, mask=known)
    tl.debug_barrier()

    total = tl.zeros([BLOCK], tl.float32)
    dD = tl.zeros([BLOCK], tl.float32)
    intervals = tl.cdiv(stop - begin, INTERVAL)
    for turn in range(0, intervals):
        interval = intervals - 1 - turn
        size = tl.minimum(stop - begin - interval * INTERVAL, INTERVAL)
        at = row + interval * INTERVAL
        if dx is not None:
            _states_of_interval(
                x + batch * x_batch + at * x_time, delta + batch * delta_batch + at * delta_time,
                A, B + batch * B_batch + at * B_time,
                checkpoints + (slot + begin // INTERVAL + interval) * (N * D) + d, slots, size,
                A_channel, A_state, d, known, x_time, delta_time, B_time, D, N, BLOCK, STEPS,
            )  # fmt: skip
        blocks = tl.cdiv(size, STEPS)
        for back in range(0, blocks):
            b = blocks - 1 - back
            count = size - b * STEPS
            here = at + b * STEPS
            dy_b = floats(
                rows(dy + batch * dy_batch + here * dy_time, dy_time, d, known, count, STEPS)
            )
            delta_here = delta + batch * delta_batch + here * delta_time
            delta_b = floats(rows(delta_here, delta_time, d, known, count, STEPS))
            line = first + begin + interval * INTERVAL + b * STEPS
            if dx is not None:
                x_here = x + batch * x_batch + here * x_time
                drive = _products(floats(rows(x_here, x_time, d, known, count, STEPS)), delta_b)
                ddelta_b = zeros(BLOCK, STEPS)
                d_drive = zeros(BLOCK, STEPS)
                sums = (tile.to(tl.int64) * tokens + line) * N
            for i in tl.static_range(STEPS):
                total += delta_b[i]
            for n in range(0, N):
                A_n = load(A + d * A_channel + n * A_state, known)
                C_n = _weights(C + batch * C_batch + here * C_time + n, C_time, count, STEPS)
                g = load(hold + n * D, known)
                if dx is None:
                    for i in tl.static_range(STEPS - 1, -1, -1):
                        g = (g + C_n[i] * dy_b[i]) * tl.exp2(delta_b[i] * (A_n * LOG2E))
                else:
                    B_n = _weights(B + batch * B_batch + here * B_time + n, B_time, count, STEPS)
                    h = load(slots + (b * N + n) * D, known)
                    dA_n = load(dA + n * D, known)
                    g, dA_n, ddelta_b, d_drive = _there_and_back(
                        h, g, dA_n, ddelta_b, d_drive, dy_b, delta_b, drive, A_n, B_n, C_n,
                        dB + sums + n, dC + sums + n, count, N,
                    )  # fmt: skip
                    tl.store(dA + n * D, dA_n, mask=known)
                tl.store(hold + n * D, g, mask=known)
            if dx is not None:
                dx_b = ()
                new_ddelta = ()
                x_b = floats(
                    rows(x_here, x_time, d, known, count, STEPS)
                )  # not held in the meantime
                for i in tl.static_range(STEPS):
                    dD += dy_b[i] * x_b[i]
                    dx_b = dx_b + (d_drive[i] * delta_b[i] + D_d * dy_b[i],)  # noqa: RUF005
                    each = ddelta_b[i] + d_drive[i] * x_b[i]
                    new_ddelta = new_ddelta + (each,)  # noqa: RUF005
                store_rows(dx + line * D, dx_b, D, d, known, count)
                store_rows(ddelta + line * D, new_ddelta, D, d, known, count)
            tl.debug_barrier()

    if dx is None:
        tl.store(kept + p.to(tl.int64) * D + d, total, mask=known)
    else:
        tl.store(dA + N * D, dD, mask=known)
        for n in range(0, N):
            g = load(hold + n * D, known)
            tl.store(dinitial + state + n, g, mask=tl.where(begin == 0, known, False))
