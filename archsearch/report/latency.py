"""The figure of times against context: of reading a prompt, and of one more token after it."""

import math
from html import escape
from typing import Any, Literal

import plotly.graph_objects as go

from archsearch.report.figures import CANDIDATE, colours, faint, styled
from archsearch.report.findings import Findings, Trial, number
from archsearch.units import SECONDS

What = Literal["prefill", "token"]
TITLES: dict[What, str] = {"prefill": "prefill of one sequence", "token": "one more token"}
Point = tuple[int, float, float, float]
"""Context; seconds: lower quartile, median, upper quartile."""


def points(trial: Trial, what: What) -> list[Point]:
    """What was measured of a trial, by context."""
    found = []
    for entry in trial.speed.get("contexts") or []:
        time = entry.get(what) or {}
        ends = [number(time.get(name)) for name in ("lower", "median", "upper")]
        if all(end is not None and end > 0 for end in ends):  # a logarithm will be taken
            found.append((entry["context"], *ends))
    return sorted(found)


def latency(findings: Findings, what: What) -> go.Figure | None:
    """Medians as lines, both axes logarithmic, quartiles as bands; None where nothing was timed."""
    figure, paint = go.Figure(), colours(findings)
    drawn = [(trial, known) for trial in findings.finalists if (known := points(trial, what))]
    for trial, known in drawn:
        colour = paint.get(trial.number, CANDIDATE)
        name = f"best, {trial.name}" if trial is findings.best else trial.name
        style = {"name": escape(name), "legendgroup": escape(name)}
        _add(figure, known, colour, style)
    if not drawn:
        return None
    contexts = sorted({context for _, known in drawn for context, *_ in known})
    seconds = _ticks([time for _, known in drawn for _, *times in known for time in times])
    told = [f"{context:,}" for context in contexts]
    figure = styled(figure, 380)
    figure.update_xaxes(type="log", title_text="context, tokens", tickvals=contexts, ticktext=told)
    told = [SECONDS.tell(time) for time in seconds]
    ends = [math.log10(seconds[0]), math.log10(seconds[-1])]  # else no tick may be in sight
    return figure.update_yaxes(
        type="log", title_text=TITLES[what], tickvals=seconds, ticktext=told, range=ends
    )


def _ticks(times: list[float]) -> list[float]:
    """1, 2, 5, 10 ... around all of them: plotly's own crowd a short logarithmic axis."""
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    powers = range(low - 1, high + 2)  # logarithms are rounded: one more on either side
    steps = [first * 10.0**power for power in powers for first in (1, 2, 5)]
    first = max(i for i, step in enumerate(steps) if step <= min(times))
    last = min(i for i, step in enumerate(steps) if step >= max(times))
    return steps[first : max(last, first + 1) + 1]


def _add(figure: go.Figure, known: list[Point], colour: str, style: dict[str, Any]) -> None:
    """The band and the line of one architecture."""
    x, lower, median, upper = (list(values) for values in zip(*known, strict=True))
    figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*upper, *reversed(lower)],
        fill="toself",
        fillcolor=faint(colour),
        mode="lines",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=style["legendgroup"],
    )
    figure.add_scatter(
        x=x,
        y=median,
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"color": colour, "size": 8},
        hovertext=[
            f"{style['name']}, {context:,} tokens<br>{SECONDS.tell(middle)}<br>"
            f"half of all from {SECONDS.tell(low)} to {SECONDS.tell(high)}"
            for context, low, middle, high in known
        ],
        hoverinfo="text",
        **style,
    )
