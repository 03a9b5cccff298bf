"""What many searches of each searcher say: intervals, tests against random, table and figure."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from judging import JUDGED, Run
from scipy.stats import wilcoxon

SHOWN = (10, 20, 40)
BOLD = ("evolution", "random")
AGAINST = ["p", "Holm"]


def line(cells: Sequence[str]) -> str:
    """Of a table."""
    return f"| {' | '.join(cells)} |"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, lines)])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Of the median, 95 %, by bootstrap."""
    drawn = np.random.default_rng(0).choice(values, (10000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def spread(values: Sequence[float], digits: int) -> list[str]:
    """Shares in %: the interval of their median, and their mean."""
    low, high = (f"{100 * end:.{digits}f}" for end in interval(values))
    return [f"{low} to {high}", f"{100 * statistics.fmean(values):.{digits}f}"]


def against(values: Mapping[str, Sequence[float]]) -> dict[str, list[str]]:
    """By searcher, p of Wilcoxon's signed rank against `random`, and corrected for all of them."""
    others = [name for name in values if name != "random"]
    tests: list[Any] = [wilcoxon(values[name], values["random"]) for name in others]
    raw = [float(test.pvalue) for test in tests]
    found = zip(others, raw, holm(raw), strict=True)
    return {name: [f"{p:.2g}", f"{all_:.2g}"] for name, p, all_ in found} | {"random": ["", ""]}


def holm(values: Sequence[float]) -> list[float]:
    """p-values of one family of tests, corrected."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected, worst = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, values[i] * (len(values) - rank)))
        corrected[i] = worst
    return corrected


def compared(runs: Mapping[str, Sequence[Run]]) -> str:
    """A line for each searcher."""
    ends = {name: [run.after[-1] for run in found] for name, found in runs.items()}
    tests = against(ends)
    head = ["searcher", *(f"after {n}" for n in SHOWN), "95 %", "mean", "in equal seconds"]
    head += ["top 1 %", "regret", *AGAINST, "proposed", "over budget", "duplicates"]
    lines = []
    for name, found in runs.items():
        cells = [name]
        cells += [f"{100 * statistics.median(r.after[n - 1] for r in found):.2f}" for n in SHOWN]
        cells += spread(ends[name], 2)
        cells += [f"{100 * statistics.median(run.after_seconds for run in found):.2f}"]
        cells += [f"{sum(end <= 0.01 for end in ends[name]) / len(found):.0%}"]
        cells += [f"{statistics.median(run.regret for run in found):.4f}", *tests[name]]
        counts = [[run.counts[key] for run in found] for key in found[0].counts]
        lines.append([*cells, *(f"{statistics.fmean(count):.0f}" for count in counts)])
    return table(head, lines)


def draw(runs: dict[str, list[Run]], path: Path) -> None:
    """Medians, and for two of them the middle half of the seeds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    x = range(1, JUDGED + 1)
    for name, found in runs.items():
        low, middle, high = np.quantile([run.after for run in found], [0.25, 0.5, 0.75], axis=0)
        (curve,) = axes.plot(x, 100 * middle, label=name, lw=2 if name in BOLD else 1)
        if name in BOLD:
            axes.fill_between(x, 100 * low, 100 * high, color=curve.get_color(), alpha=0.15)
    axes.set(xlabel="trainings", ylabel="rank quantile of the chosen, %", ylim=(0, 15))
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
