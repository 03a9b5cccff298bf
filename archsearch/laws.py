"""The laws that every block obeys, each a function of one case that raises where it is broken.

    y, state = block(x, state)          x, y (B, T, D), any T >= 1; state None at the start

A Case says how a block is built and what it is given; everything random in it comes from its seed.
The docstring of a law is what it demands. The catalogue is tested with them, and `archsearch check`
runs them on a block of yours.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import FlopCounterMode

from archsearch.blocks import Block
from archsearch.case import Broken, Case, Refused, largest, tensors
from archsearch.kernels.interface import Arguments

NEAR = 0.1
"""How far half of the tokens may be from float32 in bfloat16, as a part of the outputs' rms."""
PIECE, PIECES = 64, 16
"""Tokens fed at once, and how often at most, to see whether a state goes on growing."""


class LawBroken(AssertionError):
    """A law that a block breaks: its name, the case, and the figure."""

    def __init__(self, law: str, case: Case, figure: str) -> None:
        self.law, self.case, self.figure = law, case, figure
        super().__init__(f"{law}: {figure}\n  law   {statement(law)}\n  case  {case}")


def hold(law: str, case: Case) -> None:
    """Runs one law on one case.

    Raises:
        LawBroken: the law does not hold, or the block raised an error of its own.
        Refused: the constructor refuses the sizes of the case.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(case.seed)  # laws run on the CPU; saves 1 ms a call
        try:
            LAWS[law](case)
        except Refused:
            raise
        except Broken as broken:
            raise LawBroken(law, case, str(broken)) from None
        except Exception as error:  # whatever a block raises is its own way to break the law
            told = str(error).strip().partition("\n")[0]
            raise LawBroken(law, case, f"{type(error).__name__}: {told}") from error


def statement(law: str) -> str:
    """What a law demands, in one line."""
    return (LAWS[law].__doc__ or "").partition("\n")[0]


def shape(case: Case) -> None:
    """`y, state = block(x)`: y has the shape and dtype of x."""
    x = case.noise()
    y, _ = case.block()(x)
    if y.shape != x.shape or y.dtype != x.dtype:
        raise Broken(f"x is {tuple(x.shape)} {x.dtype}, y is {tuple(y.shape)} {y.dtype}")


def determinism(case: Case) -> None:
    """In evaluation, the same input gives the same bits."""
    block, x = case.block(), case.noise()
    first, second = block(x)[0], block(x)[0]
    if not torch.equal(first, second):
        raise Broken(f"two runs differ by {largest((first - second).abs())}")


def batch_rows(case: Case) -> None:
    """The rows of a batch do not see each other, nor do their states."""
    block, x = case.block(), case.noise()
    y, state = block(x)
    row = case.batch - 1
    alone, alone_state = block(x[row:])
    rows = tree_map(lambda s: s[row:] if isinstance(s, Tensor) and s.dim() else s, state)
    case.close(f"outputs of row {row} among {case.batch} and alone", y[row:], alone)
    case.close(f"states of row {row} among {case.batch} and alone", rows, alone_state)


def causality(case: Case) -> None:
    """y[:, :t] does not change when x[:, t:] does.

    In a block that says it is not causal it does.
    """
    block, x = case.block(), case.noise()
    y, _ = block(x)
    if not block.causal:
        _sees_the_future(case, block, x, y)
        return
    for t in case.cuts:
        changed = torch.cat((x[:, :t], case.noise(length=case.length - t)), dim=1)
        what = f"outputs before token {t}, of inputs that differ from there on,"
        case.close(what, block(changed)[0][:, :t], y[:, :t])


def _sees_the_future(case: Case, block: Block, x: Tensor, y: Tensor) -> None:
    if case.length == 1:
        return
    changed = torch.cat((x[:, :-1], case.noise(length=1)), dim=1)
    if torch.equal(block(changed)[0][:, -2], y[:, -2]):
        raise Broken("causal is False, and the last output but one is the same for two last inputs")


def response(case: Case) -> None:
    """The last output changes when the last input does."""
    block, x = case.block(), case.noise(batch=8)
    changed = torch.cat((x[:, :-1], case.noise(batch=8, length=1)), dim=1)
    if torch.equal(block(x)[0][:, -1:], block(changed)[0][:, -1:]):
        raise Broken(f"output {case.length - 1} is the same for two inputs there")


def streaming(case: Case) -> None:
    """A sequence in pieces, the state handed on, gives the outputs and the state of the whole.

    A block that sees the future has no state and refuses one.
    """
    block, x = case.block(), case.noise()
    whole, last = block(x)
    if not block.causal:
        _takes_no_state(block, x, last)
        return
    state, pieces = None, []
    for start, end in pairwise([0, *case.cuts, case.length]):
        y, state = block(x[:, start:end], state)
        pieces.append(y)
    case.close(
        f"outputs of the whole and of pieces cut at {case.cuts}", torch.cat(pieces, 1), whole
    )
    case.close(f"states after the whole and after pieces cut at {case.cuts}", state, last)


def _takes_no_state(block: Block, x: Tensor, state: Any) -> None:
    if state is not None:
        raise Broken(f"causal is False, and the state is {type(state).__name__}, not None")
    try:
        block(x, ())
    except ValueError:
        return
    raise Broken("causal is False, and a state is taken without a ValueError")


def state_gradients(case: Case) -> None:
    """Gradients flow through the state: those of two pieces are those of the whole."""
    if case.dtype == torch.bfloat16:  # whose gradients are off by as much as a lost term
        case = replace(case, dtype=torch.float32)
    block, x, weights = case.block(), case.noise().requires_grad_(), case.noise()
    leaves = [x, *(p for p in block.parameters() if p.requires_grad)]

    def gradients(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((y * weights).sum(), leaves, materialize_grads=True)

    whole = gradients(block(x)[0])
    cut = case.cuts and block.causal
    t = case.cuts[len(case.cuts) // 2] if cut else case.length
    first, state = block(x[:, :t])
    pieces = first if t == case.length else torch.cat((first, block(x[:, t:], state)[0]), 1)
    case.close(f"gradients of the whole and of two pieces cut at {t}", gradients(pieces), whole)


def state_size(case: Case) -> None:
    """The state stops growing with the tokens seen, unless the block says `grows`."""
    block, state, sizes = case.block(), None, []
    with torch.no_grad():
        for i in range(PIECES):
            _, state = block(case.noise(1, PIECE), state)
            if i + 1 in (1, 2, 4, 8, 16):
                sizes.append(sum(leaf.nbytes for leaf in tensors(state)))
                if sizes[-2:-1] == sizes[-1:]:
                    break
    grows = sizes[-2] != sizes[-1]
    if grows != block.grows:
        told = ", ".join(f"{size} bytes after {PIECE << i}" for i, size in enumerate(sizes))
        raise Broken(f"grows is {block.grows}, and the state has {told} tokens")


def finiteness(case: Case) -> None:
    """Zero, constant, huge and long inputs give finite outputs and gradients (float32)."""
    block, row = replace(case, dtype=torch.float32).block(), (case.length, case.dim)
    huge = 1e3 * torch.randn(row)  # drives selective decays to both ends: g far below -50, and 0
    short = torch.stack((torch.zeros(row), torch.ones(row), huge))
    long = torch.randn(1, min(10 * case.length, block.longest or 10 * case.length), case.dim)
    for kinds, x in ((["zero", "constant", "huge"], short), (["long"], long)):
        leaves = [x.requires_grad_(), *(p for p in block.parameters() if p.requires_grad)]
        y, _ = block(x)
        gradients = torch.autograd.grad(y.sum(), leaves, materialize_grads=True)
        for what, values in (("outputs", [y]), ("gradients", gradients)):
            if not all(value.isfinite().all() for value in values):
                rows = values[0].isfinite().flatten(1).all(1)
                seen = [kind for kind, fine in zip(kinds, rows, strict=True) if not fine]
                raise Broken(f"{what} of {' or '.join(seen or kinds)} input are not finite")


def backends(case: Case) -> None:
    """Every backend of our operators gives the reference's values, states and gradients."""
    block, x = case.block(), case.noise().requires_grad_()
    leaves = [x, *(p for p in block.parameters() if p.requires_grad)]

    def run() -> tuple[Any, ...]:
        y, state = block(x)
        floating = [leaf for leaf in tensors(state) if leaf.is_floating_point()]
        total = y.square().sum() + sum(leaf.sum() for leaf in floating)
        return y, state, torch.autograd.grad(total, leaves, materialize_grads=True)

    fast = run()
    with reference_operators():
        slow = run()
    for what, a, b in zip(("outputs", "states", "gradients"), fast, slow, strict=True):
        case.close(f"{what} of the fast operators and of the reference", a, b)


@contextmanager
def reference_operators() -> Iterator[None]:
    """Runs every operator by its reference: they all ask this one method what will run."""
    with mock.patch.object(Arguments, "backend", return_value="reference"):
        yield


def saving(case: Case) -> None:
    """A state dict, saved and loaded into a new block, gives the same bits."""
    block, x = case.block(), case.noise()
    file = io.BytesIO()
    torch.save(block.state_dict(), file)
    file.seek(0)
    twin = case.construct().to(case.dtype).eval()  # what is drawn in it is drawn anew
    twin.load_state_dict(torch.load(file))
    before, after = block(x)[0], twin(x)[0]
    if not torch.equal(before, after):
        raise Broken(f"outputs differ by {largest((before - after).abs())} after loading")


def parameters(case: Case) -> None:
    """Every parameter has a gradient: one without costs budget for nothing."""
    case = replace(case, dtype=torch.float64, batch=2, length=max(20, case.length))
    block = case.block()
    (block(case.noise())[0] * case.noise()).sum().backward()
    gradients = {name: p.grad for name, p in block.named_parameters() if p.requires_grad}
    dead = [name for name, g in gradients.items() if g is None or not g.any()]
    if dead:
        raise Broken(f"no gradient reaches {', '.join(dead)}")


def low_precision(case: Case) -> None:
    """In bfloat16 a block runs, and its outputs stay near those of float32."""
    # Many tokens, and the one in the middle: of a few a norm makes the rounding as large as the
    # output, or a router with a tie takes another expert.
    case = replace(case, dtype=torch.bfloat16, batch=8, length=max(20, case.length))
    short, x = case.block(), case.noise()
    exact = case.construct().eval()
    exact.load_state_dict(short.state_dict())  # the same rounded weights: arithmetic alone differs
    y, near = exact(x.float())[0], short(x)[0]
    if near.dtype != torch.bfloat16:
        raise Broken(f"x is bfloat16, y is {near.dtype}")
    away = (near.float() - y).square().mean(-1).sqrt().flatten().quantile(0.5)
    scale = y.square().mean().sqrt()
    if not away <= NEAR * scale:
        raise Broken(f"off by {away / scale:.1%} of the output's size, {NEAR:.0%} is allowed")


def tracing(case: Case) -> None:
    """Built and run without memory (meta), it has the shapes and FLOPs of the real run."""
    real, x = case.construct().eval(), replace(case, dtype=torch.float32).noise()
    with torch.device("meta"):
        traced = case.construct().eval()
    seen = []
    for block, values in ((real, x), (traced, x.to("meta"))):
        # Plain attention: torch counts no FLOPs of the fused one on a CPU.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
            y, state = block(values)
            step, _ = block(values[:, :1], state)
        leaves, tree = tree_flatten((y, step, state))
        kinds = [(tuple(z.shape), z.dtype) for z in leaves if isinstance(z, Tensor)]
        seen.append((tree, kinds, flops.get_total_flops()))
    for what, a, b in zip(("tree", "shapes", "FLOPs"), *seen, strict=True):
        if a != b:
            raise Broken(f"{what} of the real run: {a}, of the traced one: {b}")


LAWS: dict[str, Callable[[Case], None]] = {
    law.__name__: law
    for law in (
        shape, determinism, batch_rows, causality, response, streaming, state_gradients,
        state_size, finiteness, backends, saving, parameters, low_precision, tracing,
    )
}  # fmt: skip
