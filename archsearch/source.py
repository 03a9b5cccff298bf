"""A graph as source: the model class written out, one line per node.

The class has the parameter names of archsearch.model.Model and runs the same operations in the same
order, so its logits are the same bit for bit.
"""

import ast
import functools
from pathlib import Path
from typing import Any

import networkx as nx
from torch import nn

import archsearch.blocks
import archsearch.kernels
from archsearch import graph as graphs
from archsearch.blocks.rate import Pool, Unpool
from archsearch.carrying import carried, imports_of_ours
from archsearch.catalogue import PartSpec, classes
from archsearch.ends import Ends
from archsearch.errors import UserError
from archsearch.plugins import source_of

LINE = 100
HOMES = {
    package.__name__.rpartition(".")[2]: Path(str(package.__file__)).parent
    for package in (archsearch.blocks, archsearch.kernels)
}
"""The folders of ours that a model is made of."""


def model_source(graph: nx.DiGraph, ends: Ends, summary: str) -> str:
    """model.py: imports, the class, nothing else."""
    nodes = [(name, graph.nodes[name]) for name in nx.topological_sort(graph)]
    carrying = graphs.STATEFUL if ends.tied else (*graphs.STATEFUL, "head")
    stateful = [name for name, data in nodes if data["op"] in carrying]
    streams = graph.graph["causal"] and ends.streams
    about, begin = STATE[streams]
    made = [_constructor(graph, ends, name) for name, _ in nodes]
    states = f"({', '.join(f'new{i}' for i in range(len(stateful)))},)" if streams else "None"
    read, given = ends.shapes
    y = given.split()[0]
    return "\n".join(
        [
            *_imports(graph, ends, summary),
            "",
            "",
            "class Model(nn.Module):",
            f'    """A sequence model: {y}, state = model({ends.reads.name}, state).',
            "",
            f"    {read}, any T >= 1; {given}; {about}",
            '    """',
            "",
            "    def __init__(self) -> None:",
            "        super().__init__()",
            *(line for line in made if line),
            "",
            "    def forward(",
            f"        self, {ends.reads.name}: Tensor, state: tuple | None = None",
            "    ) -> tuple[Tensor, tuple | None]:",
            begin.format(n=len(stateful)),
            *(_statement(graph, ends, name, stateful) for name, _ in nodes),
            f"        return head, {states}",
            "",
        ]
    )


def _imports(graph: nx.DiGraph, ends: Ends, summary: str) -> list[str]:
    """The head of the file: its docstring and what it imports."""
    parts = [data["part"] for data in graph.nodes.values() if data["part"] is not None]
    ours = sorted(
        f"from .blocks.{c.__module__.rpartition('.')[2]} import {c.__name__}"
        for c in used_classes(graph, ends)
    )
    return [
        f'"""A sequence model of width {graph.graph["dim"]}: {summary}."""',
        "",
        *(["from functools import partial", ""] if any(map(_has_parts, parts)) else []),
        *(["import torch"] if _uses_torch(graph) else []),
        *(["import torch.nn.functional as F"] if ends.tied else []),
        "from torch import Tensor, nn",
        "",
        *ours,
    ]


STATE = {  # by whether the model streams: its docstring, and how forward begins
    True: (
        "state None at the\n    start, then one entry per node that carries one. Pieces of a "
        "sequence give what the whole does.",
        "        old = state if state is not None else (None,) * {n}",
    ),
    False: (
        "whole sequences\n    only, as the model sees the future: the state is None.",
        "        if state is not None:\n"
        '            raise ValueError("this model sees the future: it goes on from no state")\n'
        "        old = (None,) * {n}",
    ),
}
RATES = {"pool": Pool, "unpool": Unpool}


def used_classes(graph: nx.DiGraph, ends: Ends | None = None) -> list[type]:
    """The classes of the blocks that a graph and its ends are made of, by name."""
    nodes = graph.nodes.values()
    parts = {c for n in nodes if n["part"] is not None for c in part_classes(n["part"])}
    rates = {RATES[n["op"]] for n in nodes if n["op"] in RATES}
    made = (ends.embed(1), ends.head(1)) if ends is not None else ()
    own = {type_of(call) for call in made if call is not None} - {nn.Embedding}
    return sorted(parts | rates | own, key=lambda c: c.__name__)


def type_of(made: "functools.partial[nn.Module]") -> type:
    """The class that a call makes one of."""
    assert isinstance(made.func, type)
    return made.func


def _uses_torch(graph: nx.DiGraph) -> bool:
    return any(data["op"] in ("concat", "join") for data in graph.nodes.values())


def _constructor(graph: nx.DiGraph, ends: Ends, name: str) -> str | None:
    """The line that makes a node's module, None for a node without."""
    data, sources = graph.nodes[name], graphs.inputs(graph, name)
    op, part, dim = data["op"], data["part"], data["dim"]
    head = f"        self.{name} = "
    if op in ("embed", "head"):
        return _end(head, ends.embed(dim) if op == "embed" else ends.head(dim))
    if part is not None:
        branches = {"merge": len(sources) - 1, "join": len(sources)}
        sizes = [str(dim), *([str(branches[op])] if op in branches else [])]
        return _call(f"{head}{classes()[type(part)].__name__}(", [*sizes, *_options(part)])
    if op == "project":
        return f"{head}nn.Linear({graph.nodes[sources[0]]['dim']}, {dim}, bias=False)"
    return f"{head}{RATES[op].__name__}({data['sizes'][0]})" if op in RATES else None


def _end(head: str, made: "functools.partial[nn.Module] | None") -> str | None:
    if made is None:
        return None
    cls = type_of(made)
    home = "nn." if cls is nn.Embedding else ""
    named = [f"{name}={_literal(value)}" for name, value in made.keywords.items()]
    return _call(f"{head}{home}{cls.__name__}(", [*map(str, made.args), *named])


def _call(head: str, arguments: list[str]) -> str:
    line = f"{head}{', '.join(arguments)})"
    if len(line) <= LINE:
        return line
    return "\n".join([head, *(f"            {a}," for a in arguments), "        )"])


def _options(spec: PartSpec) -> list[str]:
    return [f"{name}={_literal(value)}" for name, value in spec.options().items()]


def _literal(value: Any) -> str:
    if not isinstance(value, PartSpec):
        return f'"{value}"' if isinstance(value, str) else repr(value)
    return f"partial({', '.join([classes()[type(value)].__name__, *_options(value)])})"


def _statement(graph: nx.DiGraph, ends: Ends, name: str, stateful: list[str]) -> str:
    """The line of forward that computes a node."""
    data, sources = graph.nodes[name], graphs.inputs(graph, name)
    op, x, all_of = data["op"], sources[0] if sources else "", ", ".join(sources)
    if name in stateful:
        if op == "head":
            all_of += f", {ends.reads.name}"
        i = stateful.index(name)
        # At a lower rate a short piece may hold no whole group: nothing happens there.
        empty = f" if {x}.shape[1] else ({x}, old[{i}])" if name in _slowed(graph) else ""
        line = f"        {name}, new{i} = self.{name}({all_of}, old[{i}]){empty}"
        if len(line) > LINE:
            line = line.replace("= self", "= (\n            self") + "\n        )"
        return line
    start = data["sizes"][0] if op == "slice" else 0
    return f"        {name} = " + {
        "embed": f"self.embed({ends.reads.name})",
        "head": f"F.linear({x}, self.embed.weight)  # tied to the embedding",
        "add": " + ".join(sources),
        "slice": f"{x}[..., {start} : {start + data['dim']}]",
        "concat": f"torch.cat(({all_of}), dim=-1)",
        "mlp": f"self.{name}({x})[0]",
        "join": f"self.{name}(torch.stack(({all_of})).mean(0), {all_of})",
    }.get(op, f"self.{name}({all_of})")


def _slowed(graph: nx.DiGraph) -> set[str]:
    """The nodes between a pool and its unpool."""
    ends = [(a, b) for a, b in graph.edges if graph.edges[a, b]["role"] == "u"]
    return {n for a, b in ends for n in nx.descendants(graph, a) & nx.ancestors(graph, b)}


def part_classes(spec: PartSpec) -> list[type]:
    """The classes that a part needs, its nested parts included."""
    nested = [v for v in spec.options().values() if isinstance(v, PartSpec)]
    return [classes()[type(spec)], *(cls for part in nested for cls in part_classes(part))]


def _has_parts(spec: PartSpec) -> bool:
    return any(isinstance(value, PartSpec) for value in spec.options().values())


def needed_files(graph: nx.DiGraph, ends: Ends) -> dict[str, str]:
    """The block and kernel files that a model uses, and what they import: package path -> text."""
    files: dict[str, str] = {}
    waiting: list[tuple[str, str]] = []
    for cls in used_classes(graph, ends):
        package, _, module = cls.__module__.rpartition(".")
        if package == archsearch.blocks.__name__:
            waiting.append(("blocks", module))
            continue
        text = carried(cls)
        key = f"blocks/{module}.py"
        if source_text(key) is not None or files.get(key, text) != text:
            raise UserError(
                f"{cls.__module__}: a file {module}.py is among the exported blocks already; "
                "rename yours"
            )
        files[key] = text
        waiting += _relative_imports("blocks", text)
    return _with_imports(files, waiting)


def used_sources(graph: nx.DiGraph) -> dict[str, str]:
    """The same files as they lie here, whether they can be exported or not.

    A file from elsewhere stands under its name alone, with what it imports of ours.
    """
    files: dict[str, str] = {}
    waiting: list[tuple[str, str]] = []
    for cls in used_classes(graph):
        package, _, module = cls.__module__.rpartition(".")
        if package == archsearch.blocks.__name__:
            waiting.append(("blocks", module))
        else:
            name, files[name] = source_of(cls)
            waiting += imports_of_ours(files[name])
    return _with_imports(files, waiting)


def _with_imports(files: dict[str, str], waiting: list[tuple[str, str]]) -> dict[str, str]:
    """The files, those of ours that wait, and what these import; by name."""
    while waiting:
        home, module = waiting.pop()
        key = f"{home}/{module}.py"
        if key not in files and (text := source_text(key)) is not None:
            files[key] = text
            waiting += _relative_imports(home, text)
    return dict(sorted(files.items()))


@functools.cache
def source_text(name: str) -> str | None:
    """The text of `blocks/x.py` or `kernels/x.py` as this process first read it; None if none."""
    home, _, file = name.partition("/")
    path = HOMES[home] / file
    return path.read_text(encoding="utf-8") if path.exists() else None


@functools.cache  # parsing all that a model needs takes a quarter of a second
def _relative_imports(home: str, text: str) -> list[tuple[str, str]]:
    """The sibling modules that a file imports: `.x` in its own folder, `..kernels.x` next door."""
    nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom))
    paths = [(n.level, n.module.split(".")) for n in nodes if n.level and n.module]
    return [(home, path[0]) if level == 1 else (path[0], path[1]) for level, path in paths]
