"""An architecture as a figure: the residual stream runs down on the left, layers branch off it.

    embed
      |-----> norm --> branches --> merge --.
      +  <----------------------------------'
      |-----> norm --> mlp --.
      +  <-------------------'
    norm, head

Equal neighbouring layers are drawn once; layers that do not simply follow each other are drawn by
layer_graph. x counts columns, y rows; both have a fixed size in pixels, so that no text outgrows
its box.
"""

import itertools
import textwrap
from dataclasses import dataclass
from html import escape
from typing import Any

import networkx as nx
import plotly.graph_objects as go

from archsearch.catalogue import PartSpec
from archsearch.layers import is_chain
from archsearch.report.figures import LINE, faint, styled
from archsearch.report.layer_graph import layer_graph
from archsearch.spec import ModelSpec
from archsearch.viewing import words
from archsearch.viewing.runs import Run, folded, within

COLUMN, ROW = 200, 66  # pixels
WIDTH, HEIGHT = 0.84, 0.76  # of a box
PALETTE = ("#2f86c6", "#009e73", "#d55e00", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1")
BYPASS = -0.46  # where what a stretch at a lower rate leaves alone passes it
TRUNK = ("embed", "add", "head", "pool", "unpool")
TEXT_WIDTH = 26  # characters that fit a box


@dataclass(frozen=True)
class Box:
    """Where a node stands: its centre, and half its width and height."""

    x: float
    y: float
    half_width: float = WIDTH / 2
    half_height: float = HEIGHT / 2


def architecture(spec: ModelSpec) -> go.Figure:
    """The figure of a spec."""
    plan = spec.plan()
    if not is_chain(plan):
        return layer_graph(plan)
    graph, runs = folded(spec)
    boxes = layout(graph)
    right, bottom = max(b.x for b in boxes.values()) + 0.46, max(b.y for b in boxes.values()) + 0.6
    bands, titles = _layers(boxes, graph, runs, right)
    figure = styled(
        go.Figure([*_edges(boxes, graph), _labels(boxes, graph)]),
        round(ROW * (bottom + 0.6)),
        width=round(COLUMN * (right + 1)),
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        showlegend=False,
        shapes=[*bands, *_outlines(boxes, graph)],
        annotations=titles,
    )
    figure.update_xaxes(visible=False, range=[-0.5, right + 0.5], fixedrange=True)
    return figure.update_yaxes(visible=False, range=[bottom, -0.6], fixedrange=True)


def layout(graph: nx.DiGraph) -> dict[str, Box]:
    """A box for every node.

    The residual stream (embed, adds, the last norm, head) stands in column 0. What lies between two
    of its nodes is a row of its own: a topological generation is a column, its nodes are lanes.
    """
    end = next(node for node in graph if graph.nodes[node]["op"] == "head")
    trunk = {n for n in graph if graph.nodes[n]["op"] in TRUNK} | {*graph.predecessors(end)}
    boxes: dict[str, Box] = {}
    place = list(graph)  # branches in the order of the spec
    y, row = 0.0, list[list[str]]()
    for generation in nx.topological_generations(graph):
        if generation[0] not in trunk:
            row.append(sorted(generation, key=place.index))
            continue
        (node,) = generation
        if row:
            offsets = [lanes(len(nodes)) for nodes in row]
            y += 0.85 - min(lane[0] for lane in offsets)
            for column, (nodes, lane) in enumerate(zip(row, offsets, strict=True), start=1):
                boxes |= {n: Box(column, y + d) for n, d in zip(nodes, lane, strict=True)}
            y += 0.65 + max(lane[-1] for lane in offsets)
            boxes[node] = Box(0, y, 0.055, 0.17) if graph.nodes[node]["op"] == "add" else Box(0, y)
        else:
            y += 1.1 if boxes else 0
            boxes[node] = Box(0, y)
        row = []
    return boxes


def lanes(n: int) -> list[float]:
    """Offsets of n parallel nodes from the middle of a row.

    The middle itself is left to the input that a merge reads beside its branches.
    """
    return [0.0] if n == 1 else [i - (n + 1) // 2 + 0.5 for i in range(n)]


def _layers(
    boxes: dict[str, Box], graph: nx.DiGraph, runs: list[Run], right: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A band behind every layer drawn, and beside it which layers it stands for."""
    bands, titles = [], []
    for run in runs:
        inside = [boxes[name] for name in within(graph, run)]
        top = min(box.y - box.half_height for box in inside) - 0.06
        bottom = max(box.y for box in inside) + 0.24
        band = {"type": "rect", "x0": -0.48, "x1": right, "y0": top, "y1": bottom}
        bands.append(
            {**band, "fillcolor": LINE, "opacity": 0.1, "line": {"width": 0}, "layer": "below"}
        )
        text = run.title.replace(", ", ",<br>")
        where = {"x": right, "y": (top + bottom) / 2, "xanchor": "left", "xshift": 8}
        titles.append({**where, "text": text, "align": "left", "showarrow": False})
    return bands, titles


def _edges(boxes: dict[str, Box], graph: nx.DiGraph) -> list[go.Scatter]:
    """All but the second of a stretch's two inputs, which its output takes off again."""
    return [_edge(boxes, graph, a, b) for a, b, role in graph.edges(data="role") if role != "u"]


def _edge(boxes: dict[str, Box], graph: nx.DiGraph, source: str, target: str) -> go.Scatter:
    """An arrow: straight in a row or down the stream, with a corner where it leaves or rejoins."""
    a, b = boxes[source], boxes[target]
    aside = graph.nodes[target]["op"] == "merge" and graph.edges[source, target]["role"] == "x"
    line: dict[str, Any] = {"color": LINE, "width": 1.5, "dash": "dot" if aside else "solid"}
    if graph.nodes[target]["op"] == "unpool" and graph.edges[source, target]["role"] != "h":
        below, left = a.y + a.half_height, b.x - b.half_width
        points = [(0, below), (0, below + 0.1), (BYPASS, below + 0.1), (BYPASS, b.y), (left, b.y)]
    elif a.x == b.x:
        points = [(a.x, a.y + a.half_height), (b.x, b.y - b.half_height)]
        line["width"] = 3
    elif a.x == 0:
        points = [(0, a.y + a.half_height), (0, b.y), (b.x - b.half_width, b.y)]
    elif b.x == 0:
        points = [(a.x, a.y + a.half_height), (a.x, b.y), (b.half_width, b.y)]
    else:
        points = [(a.x + a.half_width, a.y), (b.x - b.half_width, b.y)]
    at_end = [0] * (len(points) - 1) + [1]
    head = {"symbol": "triangle-up", "angleref": "previous", "color": LINE}
    head |= {"size": [8 * i for i in at_end], "standoff": [4 * i for i in at_end]}
    x, y = zip(*points, strict=True)
    return go.Scatter(x=x, y=y, mode="lines+markers", line=line, marker=head, hoverinfo="skip")


def _outlines(boxes: dict[str, Box], graph: nx.DiGraph) -> list[dict[str, Any]]:
    """The outlines of all nodes, coloured where the search decides: mixers and merges, by type."""
    ops = graph.nodes(data="op")
    chosen = {n: graph.nodes[n]["part"].type for n in graph if ops[n] in ("mixer", "merge")}
    paint = dict(zip(sorted({*chosen.values()}), itertools.cycle(PALETTE), strict=False))
    shapes = []
    for node, box in boxes.items():
        colour = paint[chosen[node]] if node in chosen else LINE
        shapes.append(
            {
                "type": "circle" if ops[node] == "add" else "rect",
                "x0": box.x - box.half_width,
                "x1": box.x + box.half_width,
                "y0": box.y - box.half_height,
                "y1": box.y + box.half_height,
                "line": {"color": colour, "width": 1.5},
                "fillcolor": faint(colour),
            }
        )
    return shapes


def _labels(boxes: dict[str, Box], graph: nx.DiGraph) -> go.Scatter:
    """What stands in the boxes, and what the pointer shows of them."""
    return go.Scatter(
        x=[box.x for box in boxes.values()],
        y=[box.y for box in boxes.values()],
        mode="markers+text",
        text=[_label(graph, node) for node in boxes],
        textfont={"size": 11},
        marker={"size": 40, "opacity": 0},
        hovertext=[_details(node, graph.nodes[node]["part"]) for node in boxes],
        hoverinfo="text",
    )


def _label(graph: nx.DiGraph, node: str) -> str:
    """Its name, and in at most two lines its options: those changed, then others that are on."""
    op, part, name = graph.nodes[node]["op"], graph.nodes[node]["part"], words.node(graph, node)
    if op == "add":
        return name
    told: dict[str, str] = {}
    if part is not None and op != "norm":
        on = {k: _value(v) for k, v in part.options().items() if v not in (None, 0, "none")}
        told = {**words.changed(part), **on}
    text = ", ".join(f"{key}\u00a0{value}" for key, value in told.items())  # an option on one line
    lines = textwrap.wrap(text, TEXT_WIDTH, max_lines=2, placeholder=" …")
    return "<br>".join([f"<b>{escape(name)}</b>", *map(escape, lines)])


def _details(node: str, part: PartSpec | None) -> str:
    """The hover text: the module's name and every option, those of nested parts indented."""
    return "<br>".join([f"<b>{escape(node)}</b>", *([] if part is None else _options(part, ""))])


def _options(part: PartSpec, indent: str) -> list[str]:
    lines = []
    for name, value in part.options().items():
        lines.append(escape(f"{indent}{name}: {_value(value)}"))
        if isinstance(value, PartSpec):
            lines += _options(value, indent + "&nbsp;" * 4)
    return lines


def _value(value: Any) -> str:
    return value.type if isinstance(value, PartSpec) else words.scalar(value)
