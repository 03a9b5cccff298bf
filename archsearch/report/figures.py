"""The figures of a report: final runs, loss against cost, learning curves.

Best, baselines and other candidates keep their colours over the page. Axes and text carry no colour
of their own: the page's style gives them one that follows its light or dark scheme.
"""

import itertools
import textwrap
from html import escape
from typing import Any, Literal

import plotly.graph_objects as go

from archsearch.report.findings import Findings, Trial, number, pareto_front
from archsearch.units import COSTS, COUNT, MORE, Cost

BEST = "#d55e00"
CANDIDATE = "#8f959e"
BASELINES = ("#2f86c6", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
SYMBOLS = ("diamond", "square", "triangle-up", "pentagon", "hexagon")
LINE, INK = "#8a909a", "#1c2127"
AXIS = {"gridcolor": "rgba(128, 134, 145, 0.22)", "zeroline": False, "automargin": True}
LOOK = go.layout.Template(
    layout={
        "xaxis": AXIS,
        "yaxis": AXIS,
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 60, "r": 16, "t": 16, "b": 48},
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "bgcolor": INK, "font": {"color": "#ffffff", "size": 12}},
        "modebar": {"bgcolor": "rgba(0, 0, 0, 0)", "color": LINE, "activecolor": LINE},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }
)
"""A template in place of plotly's own: the data, a quiet grid, a legend above."""
Line = tuple[list[float | None], list[float | None]]
"""x and y of a trace."""
LOG_FROM = 20
"""Costs that spread over a larger factor are drawn on a logarithmic axis."""


def costs_of(findings: Findings) -> list[Cost]:
    """The costs that a study shows."""
    counted = {name for trial in findings.trials for name in trial.cost}
    return [*COSTS, *(cost for cost in MORE if cost.name in counted)]


def colours(findings: Findings) -> dict[int, str]:
    """The colour of the best candidate and of every baseline, by trial number."""
    numbers = [t.number for t in findings.baselines]
    paint = dict(zip(numbers, itertools.cycle(BASELINES), strict=False))
    return paint if findings.best is None else {**paint, findings.best.number: BEST}


def faint(colour: str) -> str:
    """A colour for an area."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.16)"


def styled(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """The figure in the common look."""
    return figure.update_layout({"template": LOOK, "height": height, **layout})


def loss(name: str, unit: str) -> str:
    """A loss with its unit, if all tasks have one."""
    return f"{name}, {unit}" if unit else name


def finals(findings: Findings) -> go.Figure | None:
    """Every final loss as a dot, a row for each architecture; None without final runs."""
    paint = colours(findings)
    rows = [t for t in [*findings.candidates, *findings.baselines] if t.finals]
    if not rows:
        return None
    figure = go.Figure()
    for trial in rows:
        name, colour = escape(trial.name), paint.get(trial.number, CANDIDATE)
        figure.add_scatter(
            x=trial.finals,
            y=[name] * len(trial.finals),
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"color": colour, "size": 11},
            hovertext=[f"{name}<br>test loss {loss:.4f}" for loss in trial.finals],
            hoverinfo="text",
            showlegend=False,
        )
    figure = styled(figure, 64 + 32 * len(rows))
    figure.update_xaxes(
        title_text=f"{loss('test loss', findings.unit())}, a dot for each fresh seed"
    )
    return figure.update_yaxes(autorange="reversed", type="category", showgrid=False)


def pareto(findings: Findings) -> go.Figure:
    """Validation loss against a cost that buttons choose, with the front and the budget."""
    groups = _groups(findings)
    costs = costs_of(findings)
    views = [_view(findings, cost, [trials for trials, _ in groups]) for cost in costs]
    dashed = {"name": "budget", "line": {"color": LINE, "dash": "dash"}}
    styles: list[dict[str, Any]] = [
        {"name": "Pareto front", "line": {"color": LINE, "shape": "hv"}, "mode": "lines"},
        {**dashed, "mode": "lines+markers", "marker": {"opacity": 0}},  # off the end of the axis
    ]
    styles += [
        {**style, "mode": "markers", "hovertext": [_tell(trial, costs) for trial in trials]}
        for trials, style in groups
    ]
    traces, axis = views[0]
    figure = go.Figure()
    for x, y, style in zip(traces["x"], traces["y"], styles, strict=True):
        figure.add_scatter(x=x, y=y, hoverinfo="text", **style)
    buttons = [
        {"label": cost.title, "method": "update", "args": [*view]}
        for cost, view in zip(costs, views, strict=True)
    ]
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "pad": {"b": 40}}
    menu |= {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"}
    menu |= {"bgcolor": "#f4f6f8", "bordercolor": LINE, "font": {"color": INK}}
    figure = styled(figure, 470, margin={"l": 60, "r": 16, "t": 90, "b": 52}, updatemenus=[menu])
    figure.update_yaxes(title_text=loss("validation loss", findings.unit()))
    return figure.update_layout(axis)


def _groups(findings: Findings) -> list[tuple[list[Trial], dict[str, Any]]]:
    """Who shares a marker in the Pareto figure, and how it looks."""
    paint, best = colours(findings), findings.candidates[:1]
    grey = {"size": 9, "color": CANDIDATE}
    groups: list[tuple[list[Trial], dict[str, Any]]] = [
        (findings.candidates[1:], {"name": "other candidates", "marker": grey})
    ]
    for trial, symbol in zip(findings.baselines, itertools.cycle(SYMBOLS), strict=False):
        marker = {"size": 12, "color": paint[trial.number], "symbol": symbol}
        groups.append(([trial], {"name": escape(trial.name), "marker": marker}))
    for trial in best:
        marker = {"size": 13, "color": BEST}
        groups.append(([trial], {"name": f"best, {escape(trial.name)}", "marker": marker}))
    return groups


def _tell(trial: Trial, costs: list[Cost]) -> str:
    """The hover text of a trial: name, architecture, loss and all costs."""
    lines = [f"<b>{escape(trial.name)}</b>", *map(escape, textwrap.wrap(trial.summary, 60))]
    lines += [f"validation loss {trial.loss:.4f}"] if trial.loss is not None else []
    lines += [f"{cost.title} {cost.tell(trial.cost.get(cost.name))}" for cost in costs]
    return "<br>".join(lines)


def _view(
    findings: Findings, cost: Cost, groups: list[list[Trial]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The Pareto figure over one cost: x and y of every trace, and what the axis needs."""
    settings = (findings.space.get("budgets") or {}).get(cost.name) or {}
    known = [t.cost[cost.name] for t in findings.trained if cost.name in t.cost]
    unit, axis = _axis(cost, known, settings)

    def place(trials: list[Trial]) -> Line:
        costs = [t.cost.get(cost.name) for t in trials]
        return [None if c is None else c / unit for c in costs], [t.loss for t in trials]

    points = [
        (x, y)
        for x, y in zip(*place(findings.trained), strict=True)
        if x is not None and y is not None
    ]
    front = [points[i] for i in pareto_front(points)]
    losses, limit = [y for _, y in points], number(settings.get("max"))
    ends = [min(losses), max(losses)] if losses and limit is not None else []
    lines = [
        ([x for x, _ in front], [y for _, y in front]),
        ([(limit or 0) / unit for _ in ends], ends),
        *(place(group) for group in groups),
    ]
    return {"x": [x for x, _ in lines], "y": [y for _, y in lines]}, axis


def _axis(cost: Cost, known: list[float], settings: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """The unit in which a cost is drawn, and its axis."""
    power, unit, title = cost.power(max(known, default=0)), 1.0, cost.title
    if cost.units is not COUNT:  # plotly writes k and M by itself, KiB and ms it does not know
        unit, title = cost.one * cost.base**power, f"{title}, {cost.units[power]}"
    context = [key for key in settings if key in ("context", "batch", "length", "dtype")]
    measured = ", ".join(f"{key} {escape(str(settings[key]))}" for key in context)
    spread_out = bool(known) and 0 < min(known) * LOG_FROM <= max(known)
    return unit, {
        "xaxis.title.text": f"{title} ({measured})" if measured else title,
        "xaxis.type": "log" if spread_out else "linear",
        "xaxis.tickformat": "~s" if cost.units is COUNT else "~g",
        "xaxis.autorange": True,
    }


def curves(findings: Findings, task: str) -> go.Figure:
    """Training loss on a task as lines, validation rungs as dots; a dotted line is the floor."""
    figure, paint = go.Figure(), colours(findings)
    others = [t for t in findings.trained if t.number not in paint]
    for i, trial in enumerate(others):
        style = {"line": {"color": CANDIDATE, "width": 1}, "opacity": 0.7, "showlegend": i == 0}
        style |= {"name": "other candidates", "legendgroup": "others"}
        _curve(figure, trial, task, "curve", style | {"mode": "lines"})
    for trial in [*findings.baselines, *findings.candidates[:1]]:
        name = f"best, {trial.name}" if trial is findings.best else trial.name
        style = {"name": escape(name), "legendgroup": escape(name)}
        line = {"color": paint[trial.number], "width": 2}
        dots = {"color": paint[trial.number], "size": 8}
        _curve(figure, trial, task, "curve", style | {"mode": "lines", "line": line})
        style |= {"mode": "markers", "marker": dots, "showlegend": False}
        _curve(figure, trial, task, "rungs", style)
    if (floor := findings.floor(task, "loss")) is not None:
        figure.add_hline(floor, line={"color": LINE, "dash": "dot"})
    figure = styled(figure, 380)
    figure.update_xaxes(title_text="step")
    return figure.update_yaxes(title_text=loss("loss", findings.unit(task)))


def _curve(
    figure: go.Figure,
    trial: Trial,
    task: str,
    series: Literal["curve", "rungs"],
    style: dict[str, Any],
) -> None:
    """Adds a trial's losses over the steps, without those that are not numbers."""
    pairs = (trial.tasks.get(task) or {}).get(series) or []
    known = [(step, loss) for step, loss in pairs if number(loss) is not None]
    what = {"curve": "training", "rungs": "validation"}[series]
    figure.add_scatter(
        x=[step for step, _ in known],
        y=[loss for _, loss in known],
        hovertext=[f"{escape(trial.name)}, step {x}<br>{what} loss {y:.4f}" for x, y in known],
        hoverinfo="text",
        **style,
    )
