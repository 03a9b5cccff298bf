"""The section on what may be trusted: do rungs, tasks and seeds rank the architectures alike?

rank correlation    r, Spearman's, over the architectures that have both
interval            tanh(atanh r -+ 1.96 sqrt((1 + r^2 / 2) / (n - 3)))    Bonett and Wright 2000
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torchmetrics.functional import spearman_corrcoef

from archsearch.report.findings import Findings, Trial, number
from archsearch.report.page import escape, section, table, words

FEWEST = 5
"""Architectures, below which a rank correlation says nothing."""
LOW = 0.6
"""A correlation below which the one is no guide to the other."""

Get = Callable[[Trial], float | None]


@dataclass(frozen=True)
class Agreement:
    """How alike two measurements rank architectures.

    Attributes:
        first, second: what is compared.
        n: architectures that have both.
        r: Spearman's rank correlation; None of fewer than FEWEST, or where all are equal.
    """

    first: str
    second: str
    n: int
    r: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of 95%; None where there is no correlation."""
        if self.r is None:
            return None
        if abs(self.r) == 1:
            return self.r, self.r
        z, wide = math.atanh(self.r), 1.96 * math.sqrt((1 + self.r**2 / 2) / (self.n - 3))
        return math.tanh(z - wide), math.tanh(z + wide)

    @property
    def low(self) -> bool:
        return self.r is not None and self.r < LOW

    @property
    def warning(self) -> str:
        """What a low correlation means; nothing of one that is not."""
        if not self.low or self.interval is None:
            return ""
        return "no guide" if self.interval[1] < LOW else "too few to tell"


def agreements(findings: Findings) -> list[Agreement]:
    """All that a study allows to compare."""
    return [
        _agreement(findings.trained, *first, *second) for first, second in _pairs(findings)
    ]  # fmt: skip


def agreement(findings: Findings) -> str:
    """The section; empty where nothing can be compared."""
    found = [each for each in agreements(findings) if each.n]
    if not found:
        return ""
    head = ["", "and", "architectures", "rank correlation", "95% interval", ""]
    note = (
        "Spearman's rank correlation over the architectures of this study that have both: 1 if "
        "both rank them alike, 0 if the one tells nothing of the other. Only the chosen have an "
        "end behind a rung where others were pruned, or final runs, and among the chosen a "
        f"correlation is lower than among all. Fewer than {FEWEST} architectures tell nothing."
    )
    return section("What ranks alike", table(head, [_row(each) for each in found]), note)


def _row(each: Agreement) -> list[str]:
    interval = each.interval
    told = "–" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
    warning = f'<span class="cause">below {LOW}: {each.warning}</span>' if each.low else ""
    r = "–" if each.r is None else f"{each.r:.2f}"
    return [escape(each.first), escape(each.second), str(each.n), r, told, warning]


def _pairs(findings: Findings) -> Iterator[tuple[tuple[str, Get], tuple[str, Get]]]:
    """Each rung and the end, each two tasks, the search and the final runs, two seeds of either."""
    rungs = max((len(_rungs(trial)) for trial in findings.trained), default=1) - 1
    for k in range(rungs):
        yield (f"loss at rung {k + 1}", partial(_at, k)), ("loss at the end", partial(_at, -1))
    for one, two in itertools.combinations(findings.tasks, 2):
        yield (f"score of {words(one)}", partial(_score, one)), (words(two), partial(_score, two))
    for one, two in itertools.combinations(range(len(findings.seeds)), 2):
        first, second = findings.seeds[one], findings.seeds[two]
        yield (
            (f"search on seed {first}", partial(_run, one)),
            (f"seed {second}", partial(_run, two)),
        )
    yield ("loss of the search", _search), ("loss of the final runs", _final)
    seeds = sorted({run["seed"] for trial in findings.finalists for run in trial.tests})
    for one, two in itertools.combinations(seeds, 2):
        yield (
            (f"final run of seed {one}", partial(_seed, one)),
            (f"seed {two}", partial(_seed, two)),
        )


def _agreement(trials: list[Trial], first: str, get: Get, second: str, other: Get) -> Agreement:
    both = [(get(trial), other(trial)) for trial in trials]
    pairs = [(x, y) for x, y in both if x is not None and y is not None]
    return Agreement(first, second, len(pairs), spearman(pairs))


def spearman(pairs: list[tuple[float, float]]) -> float | None:
    """The rank correlation of pairs; None of fewer than FEWEST, or where one side is all equal."""
    if len(pairs) < FEWEST or any(len({*side}) == 1 for side in zip(*pairs, strict=True)):
        return None
    x, y = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return max(-1.0, min(1.0, spearman_corrcoef(x, y).item()))


def _rungs(trial: Trial) -> list[float]:
    """The validation losses on the way and at the end, each the mean over tasks."""
    columns = zip(*(about.get("rungs") or [] for about in trial.tasks.values()), strict=False)
    return [statistics.fmean(loss for _, loss in column) for column in columns]


def _at(k: int, trial: Trial) -> float | None:
    rungs = _rungs(trial)
    return number(rungs[k]) if -len(rungs) <= k < len(rungs) else None


def _score(task: str, trial: Trial) -> float | None:
    return trial.measured(task, "score")


def _run(i: int, trial: Trial) -> float | None:
    return trial.losses[i] if i < len(trial.losses) else None


def _search(trial: Trial) -> float | None:
    return trial.loss


def _final(trial: Trial) -> float | None:
    return trial.final


def _seed(seed: int, trial: Trial) -> float | None:
    return next((number(run["loss"]) for run in trial.tests if run["seed"] == seed), None)
