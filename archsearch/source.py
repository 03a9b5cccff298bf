"""A graph as source: the model class written out, one line per node.

The class has the parameter names of archsearch.model.Model and runs the same operations in the same
order, so its logits are the same bit for bit.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx

import archsearch.blocks
import archsearch.kernels
from archsearch import graph as graphs
from archsearch.blocks.rate import Pool, Unpool
from archsearch.carrying import carried, imports_of_ours
from archsearch.catalogue import PartSpec, classes
from archsearch.errors import UserError
from archsearch.plugins import source_of

LINE = 100
HOMES = {
    package.__name__.rpartition(".")[2]: Path(str(package.__file__)).parent
    for package in (archsearch.blocks, archsearch.kernels)
}
"""The folders of ours that a model is made of."""


def model_source(graph: nx.DiGraph, vocab: int, summary: str) -> str:
    """model.py: imports, the class, nothing else."""
    nodes = [(name, graph.nodes[name]) for name in nx.topological_sort(graph)]
    parts = [data["part"] for _, data in nodes if data["part"] is not None]
    imports = sorted(
        f"from .blocks.{c.__module__.rpartition('.')[2]} import {c.__name__}"
        for c in used_classes(graph)
    )
    partial = ["from functools import partial", ""] if any(map(_has_parts, parts)) else []
    stateful = [name for name, data in nodes if data["op"] in graphs.STATEFUL]
    causal = graph.graph["causal"]
    about, begin = STATE[causal]
    made = [_constructor(graph, name) for name, _ in nodes]
    states = f"({', '.join(f'new{i}' for i in range(len(stateful)))},)" if causal else "None"
    return "\n".join(
        [
            f'"""A sequence model of width {graph.graph["dim"]}: {summary}."""',
            "",
            *partial,
            *(["import torch"] if _uses_torch(graph) else []),
            "import torch.nn.functional as F",
            "from torch import Tensor, nn",
            "",
            *imports,
            "",
            "",
            "class Model(nn.Module):",
            '    """A sequence model: logits, state = model(tokens, state).',
            "",
            f"    tokens (B, T) int64, any T >= 1; logits (B, T, {vocab}); {about}",
            '    """',
            "",
            "    def __init__(self) -> None:",
            "        super().__init__()",
            f"        self.embed = nn.Embedding({vocab}, {graph.graph['dim']})",
            *(line for line in made if line),
            "",
            "    def forward(",
            "        self, tokens: Tensor, state: tuple | None = None",
            "    ) -> tuple[Tensor, tuple | None]:",
            begin.format(n=len(stateful)),
            *(_statement(graph, name, stateful) for name, _ in nodes),
            f"        return head, {states}",
            "",
        ]
    )


STATE = {  # by whether the model is causal: its docstring, and how forward begins
    True: (
        "state None at the\n    start, then one entry per mixer. Pieces of a sequence give the "
        "whole's logits.",
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


def used_classes(graph: nx.DiGraph) -> list[type]:
    """The classes of the blocks and kernels that a graph is made of, by name."""
    nodes = graph.nodes.values()
    parts = {c for n in nodes if n["part"] is not None for c in part_classes(n["part"])}
    rates = {RATES[n["op"]] for n in nodes if n["op"] in RATES}
    return sorted(parts | rates, key=lambda c: c.__name__)


def _uses_torch(graph: nx.DiGraph) -> bool:
    return any(data["op"] in ("concat", "join") for data in graph.nodes.values())


def _constructor(graph: nx.DiGraph, name: str) -> str | None:
    """The line that makes a node's module, None for a node without."""
    data, sources = graph.nodes[name], graphs.inputs(graph, name)
    op, part, dim = data["op"], data["part"], data["dim"]
    head = f"        self.{name} = "
    if part is not None:
        branches = {"merge": len(sources) - 1, "join": len(sources)}
        sizes = [str(dim), *([str(branches[op])] if op in branches else [])]
        return _call(f"{head}{classes()[type(part)].__name__}(", [*sizes, *_options(part)])
    if op == "project":
        return f"{head}nn.Linear({graph.nodes[sources[0]]['dim']}, {dim}, bias=False)"
    return f"{head}{RATES[op].__name__}({data['sizes'][0]})" if op in RATES else None


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


def _statement(graph: nx.DiGraph, name: str, stateful: list[str]) -> str:
    """The line of forward that computes a node."""
    data, sources = graph.nodes[name], graphs.inputs(graph, name)
    op, x, all_of = data["op"], sources[0] if sources else "", ", ".join(sources)
    if op in graphs.STATEFUL:
        i = stateful.index(name)
        # At a lower rate a short piece may hold no whole group: nothing happens there.
        empty = f" if {x}.shape[1] else ({x}, old[{i}])" if name in _slowed(graph) else ""
        line = f"        {name}, new{i} = self.{name}({all_of}, old[{i}]){empty}"
        if len(line) > LINE:
            line = line.replace("= self", "= (\n            self") + "\n        )"
        return line
    start = data["sizes"][0] if op == "slice" else 0
    return f"        {name} = " + {
        "embed": "self.embed(tokens)",
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


def needed_files(graph: nx.DiGraph) -> dict[str, str]:
    """The block and kernel files that a graph uses, and what they import: package path -> text."""
    files: dict[str, str] = {}
    waiting: list[tuple[str, str]] = []
    for cls in used_classes(graph):
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


def _relative_imports(home: str, text: str) -> Iterator[tuple[str, str]]:
    """The sibling modules that a file imports: `.x` in its own folder, `..kernels.x` next door."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            steps = node.module.split(".")
            yield (home, steps[0]) if node.level == 1 else (steps[0], steps[1])
