"""A spec's graph in the languages that other tools draw: Mermaid and DOT.

    archsearch show SPEC.yaml --as mermaid        in Markdown on GitHub, or mermaid.live
    archsearch show SPEC.yaml --as dot            dot -Tsvg

Both have a box for every layer and a node for everything in it, equal neighbouring layers once;
dotted are the inputs that a merge weighs by and that a stretch at a lower rate takes off again.
"""

from collections.abc import Iterator

import networkx as nx

from archsearch.spec import ModelSpec
from archsearch.viewing import words
from archsearch.viewing.runs import Run, folded, layer_of, within

ASIDE = {("merge", "x"), ("unpool", "u")}
"""The inputs, by op and role, that are not data passing through."""


def mermaid(spec: ModelSpec) -> str:
    """The flowchart of a spec."""
    graph, runs = folded(spec)
    lines = ["flowchart TD"]
    for title, nodes in _grouped(graph, runs):
        drawn = [f"{_id(node)}{_shape(graph, node)}" for node in nodes]
        if title:
            box = f'subgraph box_{_id(layer_of(nodes[0]))}["{_entities(title)}"]'
            drawn = [box, *(f"  {line}" for line in drawn), "end"]
        lines += [f"  {line}" for line in drawn]
    for source, target, aside in _edges(graph):
        lines.append(f"  {_id(source)} {'-.->' if aside else '-->'} {_id(target)}")
    return "\n".join([*lines, ""])


def dot(spec: ModelSpec) -> str:
    """The DOT text of a spec."""
    graph, runs = folded(spec)
    lines = ["digraph architecture {", '  node [shape=box, style=rounded, fontname="sans-serif"];']
    lines += ['  fontname="sans-serif";']
    for title, nodes in _grouped(graph, runs):
        drawn = [f"{_quoted(node)} [{_attributes(graph, node)}];" for node in nodes]
        if title:
            head = f"subgraph {_quoted('cluster_' + layer_of(nodes[0]))} {{"
            label = f"label={_quoted(title)}; color=gray; labeljust=l;"
            drawn = [head, *(f"  {line}" for line in [label, *drawn]), "}"]
        lines += [f"  {line}" for line in drawn]
    for source, target, aside in _edges(graph):
        style = " [style=dotted]" if aside else ""
        lines.append(f"  {_quoted(source)} -> {_quoted(target)}{style};")
    return "\n".join([*lines, "}", ""])


def _grouped(graph: nx.DiGraph, runs: list[Run]) -> Iterator[tuple[str, list[str]]]:
    """The nodes of every run under its title; first those of none, under no title."""
    layers = [(run.title, within(graph, run)) for run in runs]
    inside = {node for _, nodes in layers for node in nodes}
    yield "", [node for node in graph if node not in inside]
    yield from layers


def _edges(graph: nx.DiGraph) -> Iterator[tuple[str, str, bool]]:
    for source, target, role in graph.edges(data="role"):
        yield source, target, (graph.nodes[target]["op"], role) in ASIDE


def _label(graph: nx.DiGraph, node: str) -> list[str]:
    """What a node is called, then its options that are not at their defaults, a line each."""
    part = graph.nodes[node]["part"]
    options = {} if part is None else words.changed(part)
    return [words.node(graph, node), *(f"{name} {value}" for name, value in options.items())]


def _shape(graph: nx.DiGraph, node: str) -> str:
    """A Mermaid node without its id."""
    first, *rest = map(_entities, _label(graph, node))
    op = graph.nodes[node]["op"]
    if op == "add":
        return f'(("{first}"))'
    text = "<br/>".join([first, *rest])
    return f'(["{text}"])' if op in ("embed", "head") else f'["{text}"]'


def _attributes(graph: nx.DiGraph, node: str) -> str:
    """The attributes of a DOT node."""
    shape = ", shape=circle, margin=0, width=0.3" if graph.nodes[node]["op"] == "add" else ""
    return f"label={_quoted(chr(10).join(_label(graph, node)))}{shape}"


def _id(node: str) -> str:
    """A Mermaid id: letters, digits and underscores, and none of its words, such as `end`."""
    return "node_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in node)


def _entities(text: str) -> str:
    """Text that means nothing to Mermaid or HTML: all but plain characters by their code."""
    plain = " .,+-()|:=/_"
    return "".join(c if c.isalnum() or c in plain else f"#{ord(c)};" for c in text)


def _quoted(text: str) -> str:
    """A string of DOT."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
