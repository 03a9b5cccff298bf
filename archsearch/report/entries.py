"""The section of everything that was trained or failed: losses, what every task measured, costs."""

from functools import partial

from archsearch.report.columns import Column, grouped, lead
from archsearch.report.figures import costs_of
from archsearch.report.findings import Findings, Trial, number
from archsearch.report.page import escape, section, words
from archsearch.report.seeds import deviation


def entries(findings: Findings) -> str:
    """The section, lowest validation loss first."""
    columns = _columns(findings)
    rows = "".join(_row(findings, trial, columns) for trial in findings.trials)
    rules = dict.fromkeys(rule for task in findings.tasks for rule in findings.floors(task))
    floors = "".join(
        f'<tr><td colspan="2">{escape(rule)}</td>'
        f"{''.join(column.floor_cell(rule) for column in columns)}</tr>"
        for rule in rules
    )
    note = (
        "Sorted by the validation loss of the search; a task's columns are of its first seed. "
        "Test: mean ± standard deviation (number of fresh seeds), of those that were trained "
        "again. A score is 0 at a task's floor and 1 at its reference; rank is the mean over tasks "
        "of the place by score. The last rows are of rules that are no network. A click on a title "
        "sorts."
    )
    return section("Everything trained", grouped(columns, rows, floors), note)


def _columns(findings: Findings) -> list[Column]:
    columns = [
        Column("loss", "validation", lambda trial: trial.loss),
        Column("loss", "test", lambda trial: trial.final, more=_spread),
        Column("score", "mean", lambda trial: trial.score),
        Column("score", "rank", findings.rank, "{:.3g}".format),
    ]
    for task in findings.tasks:
        for metric in ("score", "loss", *findings.metrics(task)):
            get = partial(Trial.measured, task=task, metric=metric)
            told = {rule: of.get(metric) for rule, of in findings.floors(task).items()}
            floors = {rule: value for rule, n in told.items() if (value := number(n)) is not None}
            columns.append(Column(task, metric, get, floors=floors))
    for cost in costs_of(findings):
        columns.append(Column("cost", cost.title, partial(_cost, name=cost.name), cost.tell))
    return columns


def _cost(trial: Trial, name: str) -> float | None:
    return trial.cost.get(name)


def _spread(trial: Trial) -> str:
    """The standard deviation of the final losses, and over how many seeds."""
    spread, n = deviation(trial.finals), len(trial.finals)
    return f" ({n})" if spread is None else f" ± {spread:.3f} ({n})"


def _row(findings: Findings, trial: Trial, columns: list[Column]) -> str:
    kind, cause = findings.kind(trial), ""
    if trial.state == "failed":
        last = (trial.message or "").strip().splitlines()[-1:]
        told = f"{words(trial.cause or 'failed')}: {escape(' '.join(last))}"
        kind, cause = "failed", f'<br><span class="cause">{told}</span>'
    cells = "".join(column.cell(trial) for column in columns)
    return f'<tr class="{kind}">{lead(trial, findings.kind(trial), cause)}{cells}</tr>'
