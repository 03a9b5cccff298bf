"""causal_conv on a GPU: two kernels and the operator over them.

A program walks along a part of one sequence with the last W inputs of its channels in registers, so
every input is read once. Backwards it keeps the last W gradients before the activation as well:
with that of y_t the gradient of x_{t-W+1} is complete. The first W - 1 steps of the next part are
therefore walked twice; what they add to the gradients of weight and bias counts there.

The time of a step is that of its memory: ROWS steps are on their way while as many are worked on.

The initial state stands before the first step, and its gradients leave as those of steps before it.
Every part sums the gradients of weight and bias over its own steps, and a sum over the parts
follows: results repeat bit for bit.
"""

# Triton compiles what follows: its static_range has no iterator, its tuples no unpacking (RUF005).
# pyright: reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .causal_conv_chunked import _forward_flops
from .interface import NAMESPACE, register_flops
from .launch import Tile, cdiv, contiguous, device_of, launch, power_of_2, unit_stride
from .parts import Parts, part_of, parts_of
from .rows import load, rows, store_rows, zeros
from .tiles import tile_of
from .tuning import tuned

ROWS = 4
SHORTEST, LONGEST = 8, 64  # steps of a part; no shorter than W - 1, for only the first has a past
WARPS = 16  # to give each processor before parts are longer than the shortest


@triton.jit
def _push(window, x):
    """Forget the first, and put x last."""
    pushed = ()
    for i in tl.static_range(1, len(window)):
        pushed = pushed + (window[i],)  # noqa: RUF005
    return pushed + (x.to(tl.float32),)  # noqa: RUF005


@triton.jit
def _weights(weight, d, known, W: tl.constexpr):
    weights = ()
    for i in tl.static_range(W):
        weights = weights + (load(weight + d * W + i, known),)  # noqa: RUF005
    return weights


@triton.jit
def _window(x, stride, initial, begin, d, known, W: tl.constexpr):
    """The W inputs before step `begin`, to which x points; the first is not looked at."""
    window = (tl.zeros_like(d).to(tl.float32),)
    for i in tl.static_range(1, W):
        step = begin - W + i
        x_i = load(x + (i - W) * stride + d, tl.where(step >= 0, known, False))
        if initial is not None:
            x_i += load(initial + d * (W - 1) + (step + W - 1), tl.where(step < 0, known, False))
        window = window + (x_i,)  # noqa: RUF005
    return window


@triton.jit
def _filter(window, weights, bias):
    """The sum before the activation."""
    y = bias
    for i in tl.static_range(len(window)):
        y += window[i] * weights[i]
    return y


@triton.jit(do_not_specialize=["T", "sequences", "steps"])
def convolve(
    x, weight, bias, initial, y, final, cu_seqlens, T, sequences, steps, x_batch, x_time,
    D: tl.constexpr, W: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The output over one part of a sequence, for BLOCK channels; the last leaves the state."""
    TILES: tl.constexpr = (D + BLOCK - 1) // BLOCK
    n, first, length, begin = part_of(tl.program_id(0) // TILES, cu_seqlens, T, sequences, steps)
    count = tl.minimum(steps, length - begin)
    d = (tl.program_id(0) % TILES) * BLOCK + tl.arange(0, BLOCK)
    known = d < D
    if cu_seqlens is None:
        x += n * x_batch + begin.to(tl.int64) * x_time
    else:
        x += (first + begin) * x_time
    y += (first + begin) * D
    if initial is not None:
        initial += n * (D * (W - 1))

    weights = _weights(weight, d, known, W)
    offset = tl.zeros([BLOCK], tl.float32)
    if bias is not None:
        offset = load(bias + d, known)
    window = _window(x, x_time, initial, begin, d, tl.where(count >= 0, known, False), W)
    coming = rows(x, x_time, d, known, count, ROWS)
    for i in range(0, count, ROWS):
        here = coming
        x += ROWS * x_time
        coming = rows(x, x_time, d, known, count - i - ROWS, ROWS)
        y_i = ()
        for j in tl.static_range(ROWS):
            window = _push(window, here[j])
            y_j = _filter(window, weights, offset)
            if SILU:
                y_j *= tl.sigmoid(y_j)
            y_i = y_i + (y_j,)  # noqa: RUF005
        store_rows(y, y_i, D, d, known, count - i)
        y += ROWS * D
    if (begin + count == length) & ((count > 0) | (begin == 0)):
        x += (count - tl.cdiv(tl.maximum(count, 0), ROWS) * ROWS) * x_time  # back to the end
        window = _window(x, x_time, initial, length, d, known, W)
        for w in tl.static_range(1, W):
            place = final + n * (D * (W - 1)) + d * (W - 1) + (w - 1)
            tl.store(place, window[w].to(final.dtype.element_ty), mask=known)


@triton.jit(do_not_specialize=["T", "sequences", "steps"])
def gradients(
    dy, dfinal, x, weight, bias, initial, dx, dinitial, dweight, cu_seqlens, T, sequences, steps,
    dy_batch, dy_time, x_batch, x_time,
    D: tl.constexpr, W: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """All gradients over one part of a sequence, for BLOCK channels; dweight (parts, W + 1, D)."""
    TILES: tl.constexpr = (D + BLOCK - 1) // BLOCK
    p = tl.program_id(0) // TILES
    n, first, length, begin = part_of(p, cu_seqlens, T, sequences, steps)
    count = tl.minimum(steps, length - begin)
    d = (tl.program_id(0) % TILES) * BLOCK + tl.arange(0, BLOCK)
    known = d < D
    if cu_seqlens is None:
        dy += n * dy_batch + begin.to(tl.int64) * dy_time
        x += n * x_batch + begin.to(tl.int64) * x_time
    else:
        dy += (first + begin) * dy_time
        x += (first + begin) * x_time
    dx += (first + begin - (W - 1)) * D + d
    state = n * (D * (W - 1)) + d * (W - 1)
    if initial is not None:
        initial += n * (D * (W - 1))

    weights = _weights(weight, d, known, W)
    offset = tl.zeros([BLOCK], tl.float32)
    if bias is not None:
        offset = load(bias + d, known)
    window = _window(x, x_time, initial, begin, d, tl.where(count >= 0, known, False), W)
    reached = zeros(BLOCK, W)  # gradients before the activation, of the last W steps
    sums = zeros(BLOCK, W + 1)  # the gradients of weight, and of bias

    coming = rows(x, x_time, d, known, length - begin, ROWS)
    above = rows(dy, dy_time, d, known, length - begin, ROWS)
    for i in range(0, count + W - 1, ROWS):
        x_i, dy_i = coming, above
        x += ROWS * x_time
        dy += ROWS * dy_time
        coming = rows(x, x_time, d, known, length - begin - i - ROWS, ROWS)
        above = rows(dy, dy_time, d, known, length - begin - i - ROWS, ROWS)
        for j in tl.static_range(ROWS):
            window = _push(window, x_i[j])
            slope = dy_i[j].to(tl.float32)
            if SILU:
                y = _filter(window, weights, offset)
                gate = tl.sigmoid(y)
                slope *= gate * (1 + y * (1 - gate))
            reached = _push(reached, slope)
            own = tl.where(i + j < count, slope, 0.0)
            updated = ()
            for w in tl.static_range(W):
                updated = updated + (sums[w] + own * window[w],)  # noqa: RUF005
            sums = updated + (sums[W] + own,)  # noqa: RUF005

            dx_j = reached[W - 1] * weights[0]
            for w in tl.static_range(1, W):
                dx_j += reached[W - 1 - w] * weights[w]
            past = begin + i + j  # the step's place, counted from the first of the initial state
            if W > 1:
                if past >= length:  # it is in the final state too
                    there = tl.where(past - length < W - 1, known, False)
                    dx_j += load(dfinal + state + (past - length), there)
                if past < W - 1:
                    tl.store(dinitial + state + past, dx_j, mask=known)
            inside = (i + j >= W - 1) & (i + j - (W - 1) < count)
            tl.store(dx + j * D, dx_j.to(dx.dtype.element_ty), mask=tl.where(inside, known, False))
        dx += ROWS * D
    dweight += p.to(tl.int64) * ((W + 1) * D) + d
    for w in tl.static_range(W + 1):
        tl.store(dweight + w * D, sums[w], mask=known)


def _tile(direction: str, x: Tensor) -> Tile:
    D = x.shape[2]
    tile = tile_of(device_of(x), f"conv {direction}", D, x.dtype)
    return tile._replace(block=min(tile.block, power_of_2(D)))


def _parts(x: Tensor, cu_seqlens: Tensor | None, tile: Tile) -> Parts:
    """The longest parts, up to LONGEST, that give every processor WARPS programs."""
    B, T, D = x.shape
    programs = WARPS * device_of(x).processors
    steps = B * T * cdiv(D, tile.block) // programs
    steps = max(SHORTEST, min(LONGEST, 1 << steps.bit_length() >> 1))
    return parts_of(B, T, cu_seqlens, steps)


@tuned
def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Y and the last W - 1 inputs of every sequence."""
    x, weight = unit_stride(x), weight.contiguous()
    (D, W), tile = weight.shape, _tile("forward", x)
    parts = _parts(x, cu_seqlens, tile)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    state = x.new_empty(parts.sequences, D, W - 1)
    initial = contiguous(initial_state) if W > 1 else None
    launch(
        convolve,
        parts.number * cdiv(D, tile.block),
        tile,
        *(x, weight, contiguous(bias), initial, y, state if W > 1 else None, cu_seqlens),
        *(x.shape[1], parts.sequences, parts.steps, *x.stride()[:2]),
        D=D,
        W=W,
        SILU=activation == "silu",
        BLOCK=tile.block,
        ROWS=ROWS,
    )
    return y, state


@tuned
def backward(
    dy: Tensor,
    dstate: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, weight, bias (empty without one) and the initial state."""
    dy, x, weight = unit_stride(dy), unit_stride(x), weight.contiguous()
    (D, W), tile = weight.shape, _tile("backward", x)
    parts = _parts(x, cu_seqlens, tile)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    d_initial = x.new_empty(parts.sequences, D, W - 1, dtype=torch.float32)
    partial = x.new_empty(parts.number, W + 1, D, dtype=torch.float32)
    initial = contiguous(initial_state) if W > 1 else None
    launch(
        gradients,
        parts.number * cdiv(D, tile.block),
        tile,
        *(dy, dstate.contiguous(), x, weight, contiguous(bias)),
        *(initial, dx, d_initial if W > 1 else None),
        *(partial, cu_seqlens, x.shape[1], parts.sequences, parts.steps),
        *(*dy.stride()[:2], *x.stride()[:2]),
        D=D,
        W=W,
        SILU=activation == "silu",
        BLOCK=tile.block,
        ROWS=ROWS,
    )
    sums = partial.sum(0)
    d_weight = sums[:W].mT.to(weight.dtype, memory_format=torch.contiguous_format, copy=True)
    d_bias = x.new_empty(0) if bias is None else sums[W].to(bias.dtype, copy=True)
    return dx, d_weight, d_bias, d_initial


causal_conv_triton = torch.library.custom_op(
    f"{NAMESPACE}::causal_conv_triton", forward, mutates_args=()
)
_causal_conv_backward = torch.library.custom_op(
    f"{NAMESPACE}::causal_conv_triton_backward", backward, mutates_args=()
)


@causal_conv_triton.register_fake
def _(x, weight, bias, activation, initial_state, cu_seqlens):
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return x.new_empty(x.shape), x.new_empty(sequences, x.shape[2], weight.shape[1] - 1)


@_causal_conv_backward.register_fake
def _(dy, dstate, x, weight, bias, activation, initial_state, cu_seqlens):
    d_bias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    d_initial = dstate.new_empty(dstate.shape, dtype=torch.float32)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), d_bias, d_initial


def _save(ctx, inputs, output) -> None:
    x, weight, bias, ctx.activation, initial_state, cu_seqlens = inputs
    ctx.save_for_backward(x, weight, bias, initial_state, cu_seqlens)


def _differentiate(ctx, dy: Tensor, dstate: Tensor):
    x, weight, bias, initial_state, cu_seqlens = ctx.saved_tensors
    dx, d_weight, d_bias, d_initial = _causal_conv_backward(
        dy, dstate, x, weight, bias, ctx.activation, initial_state, cu_seqlens
    )
    d_bias = None if bias is None else d_bias
    d_initial = None if initial_state is None else d_initial.to(initial_state.dtype)
    return dx, d_weight, d_bias, None, d_initial, None


causal_conv_triton.register_autograd(_differentiate, setup_context=_save)


def _backward_flops(dy, dstate, x, weight, *_, **__) -> int:
    """4 B T D W, a pass for x and one for weight; SiLU's sums, taken again, are left out."""
    return 2 * _forward_flops(x, weight)


register_flops("causal_conv_triton", _forward_flops)
register_flops("causal_conv_triton_backward", _backward_flops)
