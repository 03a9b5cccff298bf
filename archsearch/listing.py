"""What blocks there are: each with what it costs in T tokens, its options, and YAML that uses it.

Costs are traced with default options, no second list to keep: FLOPs of a whole sequence and of one
more token, and bytes of the state, at T, 2T and 4T tokens. What they grow like is read off the
differences, in which constants cancel:

    (f(4T) - f(2T)) / (f(2T) - f(T))  =  2 for T,  2 (log T + 3) / (log T + 2) for T log T,
                                         4 for T^2
"""

import inspect
import math
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from archsearch import reading
from archsearch.blocks import Block, ChannelMixer, Family, Merge, Mixer, Norm
from archsearch.case import tensors
from archsearch.catalogue import FAMILIES, argument_docs, family_of, options_of, schema
from archsearch.errors import UserError
from archsearch.reading import nearest

DIM = 64
TOKENS = (1024, 2048, 4096)
COLUMNS = 100


def console() -> Console:
    """As wide as the terminal, at most 100 columns; 100 where there is none."""
    found = Console(highlight=False)
    return Console(
        highlight=False, width=min(found.width, COLUMNS) if found.is_terminal else COLUMNS
    )


def growth(values: list[int]) -> str:
    """What f grows like, of f(T), f(2T) and f(4T): constant, T, T log T, T², or a power between."""
    first, second = values[1] - values[0], values[2] - values[1]
    if second <= 0:  # also a window that fills up on the way
        return "constant"
    power = math.log2(second / max(first, 1))
    if power < 1.02:
        return "T"
    if power < 1.25:
        return "T log T"
    return "T²" if power > 1.9 else f"T^{power:.1f}"


def traced(make: Callable[[int], Block]) -> dict[str, str]:
    """Growth of training and of decoding, and the state: `train`, `step`, `state`."""
    with torch.device("meta"):
        block = make(DIM).eval()
    train, step, state = [], [], []
    lengths = [T * (block.longest or TOKENS[2]) // TOKENS[2] for T in TOKENS]
    for T in lengths:
        x = torch.zeros(1, T, DIM, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as flops:
            _, after = block(x)
            train.append(flops.get_total_flops())
            block(x[:, :1], after)
            step.append(flops.get_total_flops() - train[-1])
        state.append(sum(leaf.nbytes for leaf in tensors(after)))
    held = {"constant": size(state[2]), "T": f"{size((state[2] - state[1]) / lengths[1])} × T"}
    told = held.get(growth(state), f"{size(state[2])} at {lengths[2]}")
    decoding = growth(step) if block.causal else "none"
    return {"train": growth(train), "step": decoding, "state": told if state[2] else "none"}


def size(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 1024:,.1f} KiB" if count >= 1024 else f"{count:,.0f} B"


def table() -> list[Table]:
    """Every block of every family: what it is, what it costs, its options."""
    made = []
    for family in FAMILIES.values():
        costed = issubclass(family, Block)
        title = f"[bold]{family.__name__}[/bold]  {escape(_first_line(family))}"
        rows = Table(
            title=title, title_justify="left", title_style="", expand=True, box=SIMPLE_HEAD
        )
        rows.add_column("name", no_wrap=True, min_width=16)
        rows.add_column("what it is, and its options", ratio=1)
        for column in ("training", "a token", "state") if costed else ():
            rows.add_column(column, justify="right", no_wrap=True)
        for name, cls in family.members.items():
            options = "  ".join(f"{p.name}={default(p)}" for p in options_of(cls))
            text = escape(_first_line(cls)) + (f"\n[dim]{escape(options)}[/dim]" if options else "")
            costs = traced(partial(cls)).values() if costed else ()
            rows.add_row(f"[bold]{name}[/bold]", text, *costs)
        made.append(rows)
    return made


def print_all() -> None:
    """The list, with what its columns say."""
    out = console()
    for rows in table():
        out.print(rows)
    out.print(
        "training, a token: what the FLOPs of T tokens, and of one more after them, grow like with "
        "default options; what a mask hides is counted. state: bytes carried on, of a sequence, at "
        f"dim {DIM}. `archsearch blocks NAME` shows one whole.",
        style="dim",
    )


def print_one(name: str) -> None:
    """Equation, documentation, options and YAML of a block; of all that share the name."""
    found = [f.members[name] for f in FAMILIES.values() if name in f.members]
    if not found:
        known = [n for family in FAMILIES.values() for n in family.members]
        raise UserError(f"no block {name!r}; {nearest(name, known)}")
    out = console()
    for cls in found:
        describe(out, cls)


def describe(out: Console, cls: type[Family]) -> None:
    """One block, whole."""
    family = _family(cls)
    out.print(f"[bold]{cls.name}[/bold]  {family.__name__}, {cls.__module__}.{cls.__qualname__}\n")
    out.print(escape(inspect.getdoc(sys.modules[cls.__module__]) or ""), "\n")
    text, _, _ = (inspect.getdoc(cls) or "").partition("\nArgs:")
    out.print(escape(text.strip()), "\n")
    if issubclass(cls, Block):
        costs = traced(partial(cls))
        out.print(
            f"After T tokens, traced at dim {DIM}: FLOPs {costs['train']}, of one more token "
            f"{costs['step']}; state {costs['state']}.\n"
        )
    if options := options_of(cls):
        hints, docs = get_type_hints(cls.__init__), argument_docs(cls)
        rows = Table(expand=True, box=SIMPLE_HEAD)
        for column, ratio in (("option", None), ("type", 2), ("default", None), ("", 3)):
            rows.add_column(column, ratio=ratio, no_wrap=ratio is None)
        for p in options:
            kind = escape(kind_of(hints[p.name]))
            rows.add_row(f"[bold]{p.name}[/bold]", kind, default(p), escape(docs.get(p.name, "")))
        out.print(rows)
    out.print(Syntax(snippet(cls), "yaml", theme="ansi_dark", background_color="default"))


def kind_of(kind: Any) -> str:
    """A type as YAML sees it: `int`, `a | b`, `number or null`, the members of a family."""
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join(kind_of(arm) for arm in get_args(kind))
    if family := family_of(kind):
        return f"{family.__name__}: {' | '.join(family.members)}"
    names = {bool: "true | false", type(None): "null", int: "integer", float: "number"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def default(option: inspect.Parameter) -> str:
    """A default as YAML writes it."""
    value = option.default
    if value is option.empty:
        return "(required)"
    if isinstance(value, type) and issubclass(value, Family):
        return value.name
    return (
        str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    )


def snippet(cls: type[Family]) -> str:
    """A spec file that uses a block, its defaults written out."""
    family, part = _family(cls), schema(cls)().model_dump(mode="json")
    model: dict[str, Any] = {"dim": DIM, "layers": 2}
    topology: dict[str, Any] = {"type": "interleave", "major": "retention"}
    if family is Mixer:
        topology["major"] = part
    elif family is ChannelMixer:
        model["mlp"] = part
    elif family is Norm:
        model["norm"] = part
    elif family is Merge:
        topology = {"type": "parallel", "branches": ["retention", "mamba"], "merge": part}
    else:
        topology["major"] = _owner(family, part)
    if not getattr(cls, "causal", True):
        model["causal"] = False
    return reading.write({"archsearch": 1, "model": {**model, "topology": topology}})


def _owner(family: type[Family], part: dict[str, Any]) -> dict[str, Any]:
    """The first mixer that has a part of this family, with this one."""
    for name, cls in Mixer.members.items():
        hints = get_type_hints(cls.__init__)
        for option in options_of(cls):
            if family_of(hints[option.name]) is family:
                return {"type": name, option.name: part}
    raise LookupError(f"no mixer has a {family.__name__}")


def _family(cls: type[Family]) -> type[Family]:
    return next(family for family in FAMILIES.values() if issubclass(cls, family))


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]
