"""A graph as source: the model class written out, one line per node.

The class has the parameter names of archsearch.model.Model and runs the same operations in the same
order, so its logits are the same bit for bit.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx

import archsearch.blocks
import archsearch.kernels
from archsearch import graph as graphs
from archsearch.carrying import carried
from archsearch.catalogue import PartSpec, classes
from archsearch.errors import UserError

LINE = 100


def model_source(graph: nx.DiGraph, vocab: int, summary: str) -> str:
    """model.py: imports, the class, nothing else."""
    nodes = [(name, graph.nodes[name]) for name in nx.topological_sort(graph)]
    parts = [data["part"] for _, data in nodes if data["part"] is not None]
    used = sorted({cls for spec in parts for cls in part_classes(spec)}, key=lambda c: c.__name__)
    imports = sorted(
        f"from .blocks.{c.__module__.rpartition('.')[2]} import {c.__name__}" for c in used
    )
    partial = ["from functools import partial", ""] if any(map(_has_parts, parts)) else []
    mixers = [name for name, data in nodes if data["op"] == "mixer"]
    return "\n".join(
        [
            f'"""A sequence model of width {graph.graph["dim"]}: {summary}."""',
            "",
            *partial,
            "import torch.nn.functional as F",
            "from torch import Tensor, nn",
            "",
            *imports,
            "",
            "",
            "class Model(nn.Module):",
            '    """A sequence model: logits, state = model(tokens, state).',
            "",
            f"    tokens (B, T) int64, any T >= 1; logits (B, T, {vocab}); state None at the",
            "    start, then one entry per mixer. Pieces of a sequence give the whole's logits.",
            '    """',
            "",
            "    def __init__(self) -> None:",
            "        super().__init__()",
            f"        self.embed = nn.Embedding({vocab}, {graph.graph['dim']})",
            *(_constructor(graph, name) for name, data in nodes if data["part"] is not None),
            "",
            "    def forward(",
            "        self, tokens: Tensor, state: tuple | None = None",
            "    ) -> tuple[Tensor, tuple]:",
            f"        old = state if state is not None else (None,) * {len(mixers)}",
            *(_statement(graph, name, mixers) for name, _ in nodes),
            f"        return head, ({', '.join(f'new{i}' for i in range(len(mixers)))},)",
            "",
        ]
    )


def _constructor(graph: nx.DiGraph, name: str) -> str:
    data = graph.nodes[name]
    sizes = [str(graph.graph["dim"])]
    if data["op"] == "merge":
        sizes.append(str(len(graphs.inputs(graph, name)) - 1))
    cls = classes()[type(data["part"])].__name__
    return _call(f"        self.{name} = {cls}(", [*sizes, *_options(data["part"])])


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


def _statement(graph: nx.DiGraph, name: str, mixers: list[str]) -> str:
    op, sources = graph.nodes[name]["op"], graphs.inputs(graph, name)
    if op == "embed":
        return "        embed = self.embed(tokens)"
    if op == "add":
        return f"        {name} = {sources[0]} + {sources[1]}"
    if op == "head":
        return f"        head = F.linear({sources[0]}, self.embed.weight)  # tied to the embedding"
    if op == "mixer":
        i = mixers.index(name)
        return f"        {name}, new{i} = self.{name}({sources[0]}, old[{i}])"
    if op == "mlp":
        return f"        {name}, _ = self.{name}({sources[0]})"
    return f"        {name} = self.{name}({', '.join(sources)})"


def part_classes(spec: PartSpec) -> list[type]:
    """The classes that a part needs, its nested parts included."""
    nested = [v for v in spec.options().values() if isinstance(v, PartSpec)]
    return [classes()[type(spec)], *(cls for part in nested for cls in part_classes(part))]


def _has_parts(spec: PartSpec) -> bool:
    return any(isinstance(value, PartSpec) for value in spec.options().values())


def needed_files(graph: nx.DiGraph) -> dict[str, str]:
    """The block and kernel files that a graph uses, and what they import: package path -> text."""
    homes = {"blocks": archsearch.blocks, "kernels": archsearch.kernels}
    roots = {home: Path(str(package.__file__)).parent for home, package in homes.items()}
    parts = [data["part"] for _, data in graph.nodes(data=True) if data["part"] is not None]
    files: dict[str, str] = {}
    waiting: list[tuple[str, str]] = []
    for cls in sorted({c for spec in parts for c in part_classes(spec)}, key=lambda c: c.__name__):
        package, _, module = cls.__module__.rpartition(".")
        if package == archsearch.blocks.__name__:
            waiting.append(("blocks", module))
            continue
        text = carried(cls)
        if (roots["blocks"] / f"{module}.py").exists() or files.get(
            f"blocks/{module}.py", text
        ) != text:
            raise UserError(
                f"{cls.__module__}: a file {module}.py is among the exported blocks already; "
                "rename yours"
            )
        files[f"blocks/{module}.py"] = text
        waiting += _relative_imports("blocks", text)
    while waiting:
        home, module = waiting.pop()
        key = f"{home}/{module}.py"
        if key not in files:
            files[key] = (roots[home] / f"{module}.py").read_text(encoding="utf-8")
            waiting += _relative_imports(home, files[key])
    return dict(sorted(files.items()))


def _relative_imports(home: str, text: str) -> Iterator[tuple[str, str]]:
    """The sibling modules that a file imports: `.x` in its own folder, `..kernels.x` next door."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            steps = node.module.split(".")
            yield (home, steps[0]) if node.level == 1 else (steps[0], steps[1])
