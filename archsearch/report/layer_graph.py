"""Layers that read one another, as a figure: a box each, a row for each distance from the input."""

import textwrap
from html import escape
from typing import Any

import networkx as nx
import plotly.graph_objects as go

from archsearch.graph import tell
from archsearch.layers import Planned
from archsearch.report.figures import LINE, styled

COLUMN, ROW = 230, 90  # pixels
WIDTH, HEIGHT = 0.9, 0.6  # of a box
TEXT_WIDTH = 30  # characters that fit a box


def layer_graph(plan: list[Planned]) -> go.Figure:
    """The figure of a plan."""
    graph = nx.DiGraph((j, i) for i, planned in enumerate(plan) for j in planned.reads)
    at = {
        node: (lane - (len(row) - 1) / 2, float(y))
        for y, row in enumerate(nx.topological_generations(graph))
        for lane, node in enumerate(sorted(row))
    }
    right, bottom = max(x for x, _ in at.values()), max(y for _, y in at.values())
    far = [(a, b) for a, b in graph.edges if at[b][1] - at[a][1] > 1]
    aside = {ends: right + WIDTH / 2 + 0.06 * (i + 1) for i, ends in enumerate(far)}
    edges = [_edge(at[a], at[b], aside.get((a, b))) for a, b in graph.edges]
    figure = styled(
        go.Figure([*edges, _labels(at, plan)]),
        round(ROW * (bottom + 1)),
        width=round(COLUMN * (2 * right + 2)),
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        showlegend=False,
        shapes=[_box(x, y) for x, y in at.values()],
    )
    figure.update_xaxes(visible=False, range=[-right - 1, right + 1], fixedrange=True)
    return figure.update_yaxes(visible=False, range=[bottom + 0.5, -0.5], fixedrange=True)


def _edge(a: tuple[float, float], b: tuple[float, float], aside: float | None) -> go.Scatter:
    """An arrow to the next row, or one that passes the rows between at x = aside."""
    (ax, ay), (bx, by) = (a[0], a[1] + HEIGHT / 2), (b[0], b[1] - HEIGHT / 2)
    points = [(ax, ay), (bx, by)]
    if aside is not None:
        points = [(ax, ay), (aside, ay + 0.2), (aside, by - 0.2), (bx, by)]
    at_end = [0] * (len(points) - 1) + [1]
    head = {"symbol": "triangle-up", "angleref": "previous", "color": LINE}
    head |= {"size": [8 * i for i in at_end], "standoff": [4 * i for i in at_end]}
    x, y = zip(*points, strict=True)
    line = {"color": LINE, "width": 1.5}
    return go.Scatter(x=x, y=y, mode="lines+markers", line=line, marker=head, hoverinfo="skip")


def _box(x: float, y: float) -> dict[str, Any]:
    ends = {"x0": x - WIDTH / 2, "x1": x + WIDTH / 2, "y0": y - HEIGHT / 2, "y1": y + HEIGHT / 2}
    return {"type": "rect", **ends, "line": {"color": LINE, "width": 1.5}}


def _labels(at: dict[int, tuple[float, float]], plan: list[Planned]) -> go.Scatter:
    x, y = zip(*at.values(), strict=True)
    text = ["<b>input</b>" if i < 0 else f"<b>layer {i}</b><br>{_wrapped(plan[i])}" for i in at]
    return go.Scatter(x=x, y=y, mode="text", text=text, textfont={"size": 11}, hoverinfo="skip")


def _wrapped(planned: Planned) -> str:
    join = f"{planned.join.type} of {len(planned.reads)}: " if planned.join else ""
    join = join if len(planned.reads) > 1 else ""
    lines = textwrap.wrap(join + tell(planned), TEXT_WIDTH, max_lines=2, placeholder=" …")
    return "<br>".join(map(escape, lines))
