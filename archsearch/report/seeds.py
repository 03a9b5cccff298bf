"""The section of the final runs, seed by seed: how far an architecture's results lie apart.

deviation    sqrt(sum_i (x_i - mean)^2 / (n - 1))    over the n fresh seeds; none of one
worst        the highest loss, the lowest score, and whose seed it was
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from archsearch.report.columns import Column, grouped, lead
from archsearch.report.findings import Findings, Trial, number
from archsearch.report.page import section

Get = Callable[[dict[str, Any]], float | None]
"""A number of a final run."""


def seeds(findings: Findings) -> str:
    """The section; empty as long as nothing has final runs on several seeds."""
    finalists = [t for t in findings.finalists if t.tests]
    if all(len(trial.tests) == 1 for trial in finalists):
        return ""
    columns = [Column("final runs", "seeds", lambda trial: len(trial.tests), "{:.0f}".format)]
    columns += _spread("test loss", lambda run: run["loss"], max)
    for task in findings.tasks:
        columns += _spread(f"{task}: score", partial(_score, task=task), min)
    rows = "".join(
        f'<tr class="{findings.kind(trial)}">{lead(trial, findings.kind(trial))}'
        f"{''.join(column.cell(trial) for column in columns)}</tr>"
        for trial in finalists
    )
    note = (
        "The final runs: trained again on fresh seeds, measured on the test split. Deviation is "
        "the standard deviation over those seeds (n - 1), which two or three seeds give only "
        "roughly; worst is the seed with the highest loss or the lowest score."
    )
    return section("Robustness to seeds", grouped(columns, rows), note)


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample; None of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def _spread(group: str, get: Get, worst: Callable[..., Any]) -> list[Column]:
    """Mean, deviation and worst of a number over the seeds."""

    def known(trial: Trial) -> list[tuple[float, Any]]:
        pairs = ((get(run), run.get("seed")) for run in trial.tests)
        return [(value, seed) for value, seed in pairs if value is not None]

    def values(trial: Trial) -> list[float]:
        return [value for value, _ in known(trial)]

    def extreme(trial: Trial) -> tuple[float, Any] | tuple[None, None]:
        return worst(known(trial), key=lambda pair: pair[0], default=(None, None))

    return [
        Column(group, "mean", lambda t: statistics.fmean(values(t)) if values(t) else None),
        Column(group, "deviation", lambda t: deviation(values(t))),
        Column(group, "worst", lambda t: extreme(t)[0], more=lambda t: f" (seed {extreme(t)[1]})"),
    ]


def _score(run: dict[str, Any], task: str) -> float | None:
    return number(((run.get("tasks") or {}).get(task) or {}).get("score"))
