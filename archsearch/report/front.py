"""The section of several objectives: the architectures that none beats in all of them."""

from archsearch.ranking import fronts
from archsearch.report.findings import Findings, Trial
from archsearch.report.page import escape, section, table
from archsearch.units import COSTS, MORE


def front(findings: Findings) -> str:
    """The section; empty of a study with one objective, or before anything is trained."""
    objectives = findings.objectives
    if len(objectives) < 2 or not findings.trained:
        return ""
    among = [trial for trial in findings.trained if not trial.excess]
    points = [tuple(_value(trial, name) for name in objectives) for trial in among]
    first = fronts(points)[0] if points else []
    chosen = sorted((among[i] for i in first), key=lambda trial: (trial.loss, trial.number))
    titles = {cost.name: cost.title for cost in (*COSTS, *MORE)}
    head = ["", "architecture", *(titles.get(name, name) for name in objectives), "test loss"]
    note = (
        f"Small is to be: {', '.join(titles.get(name, name) for name in objectives)}. No "
        "architecture of the study, baselines included, is better than one of these in one and as "
        "good in all others. The loss is that of the search, on val; costs are known before."
    )
    return section(
        "What nobody beats", table(head, [_row(trial, objectives) for trial in chosen]), note
    )


def _row(trial: Trial, objectives: list[str]) -> list[str]:
    tell = {cost.name: cost.tell for cost in (*COSTS, *MORE)} | {"loss": "{:.3f}".format}
    values = [tell[name](_value(trial, name)) for name in objectives]
    final = "–" if trial.final is None else f"{trial.final:.3f}"
    return [escape(trial.name), escape(trial.summary), *map(escape, values), final]


def _value(trial: Trial, objective: str) -> float:
    value = trial.loss if objective == "loss" else trial.cost.get(objective)
    assert value is not None
    return value
