"""How good are the searchers? Every one of them over the table: README.md and figure.svg.

    pip install matplotlib; python studies/table/searchers.py [--seeds N]

A searcher sees the losses of seed 0 on val. What it has chosen, the one of the lowest loss, is
worth its mean loss over the other seeds on test, and where that stands among all of the table: the
rank quantile, 0 for the best. Trainings are counted in shares of a whole one, as rungs cost less.
The proposer, its ledger and Optuna are those of a study; only the training is looked up.
"""

import argparse
import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import optuna
from optuna.trial import TrialState
from scipy.stats import spearmanr, wilcoxon

from archsearch import evolution, load_space
from archsearch.budgets import Budgets
from archsearch.durable import write_atomic
from archsearch.ledger import Entry
from archsearch.proposing import Proposer
from archsearch.space import Space

HERE = Path(__file__).parent
SHOWN = (10, 20, 40)
JUDGED = 40
SEEDS = 30


@dataclass(frozen=True)
class Searcher:
    """One way to search, by what it changes in the space, and around it.

    Attributes:
        search: the section `search` of the space.
        screened: whether what is over budget is known before it is trained.
        reused: whether a duplicate costs nothing.
        without: a constant of evolution that is set to 0.
    """

    name: str
    search: Mapping[str, Any] = field(default_factory=dict)
    screened: bool = True
    reused: bool = True
    without: str | None = None


SEARCHERS = [
    Searcher("evolution"),
    Searcher("evolution, eta 2", {"eta": 2}),
    Searcher("evolution, eta 3", {"eta": 3}),
    Searcher("tpe", {"sampler": "tpe"}),
    Searcher("nsga2", {"sampler": "nsga2"}),
    Searcher("random", {"sampler": "random"}),
    Searcher("random, eta 2", {"sampler": "random", "eta": 2}),
    Searcher("evolution without the screen", screened=False),
    Searcher("evolution without reuse of duplicates", reused=False),
    Searcher("evolution without crossover", without="CROSSOVER"),
    Searcher("evolution, eta 3, without the screen", {"eta": 3}, screened=False),
    Searcher("evolution, eta 3, without reuse of duplicates", {"eta": 3}, reused=False),
    Searcher("evolution, eta 3, without crossover", {"eta": 3}, without="CROSSOVER"),
    Searcher("random without screen and reuse", {"sampler": "random"}, False, False),
]


@dataclass(frozen=True)
class Row:
    """An architecture: its losses as a searcher sees them, rung by rung, and what it is worth."""

    seen: list[float]
    worth: float
    seconds: float


@cache
def table() -> dict[str, Row]:
    """The table by hash."""
    found: dict[str, dict[int, list[float]]] = defaultdict(dict)
    seconds: dict[str, list[float]] = defaultdict(list)
    for row in csv.DictReader((HERE / "table.csv").read_text().splitlines()):
        losses = [float(value) for key, value in row.items() if key.startswith("loss@")]
        found[row["architecture"]][int(row["seed"])] = losses
        seconds[row["architecture"]].append(float(row["seconds"]))
    return {
        digest: Row(
            by[0],
            statistics.fmean(by[seed][-1] for seed in by if seed),
            statistics.median(seconds[digest]),
        )
        for digest, by in found.items()
    }


@cache
def quantiles() -> dict[str, float]:
    """Of each architecture the share of the others that are worth more."""
    order = sorted(table(), key=lambda digest: table()[digest].worth)
    return {digest: place / (len(order) - 1) for place, digest in enumerate(order)}


def took(digest: str | None) -> float:
    """Seconds of a training; of what is over budget, and not in the table, those of the mean."""
    row = table().get(digest or "")
    return row.seconds if row else statistics.fmean(each.seconds for each in table().values())


@cache
def steps() -> list[int]:
    """Where losses were taken; the last is a whole training."""
    head = next(csv.reader((HERE / "table.csv").read_text().splitlines()))
    return [int(name.removeprefix("loss@")) for name in head if name.startswith("loss@")]


@dataclass(frozen=True)
class Point:
    """What a searcher had chosen when so much was spent."""

    trainings: float
    seconds: float
    chosen: str


def search(searcher: Searcher, seed: int) -> tuple[list[Point], dict[str, float]]:
    """What it chose as it went on, and what it took."""
    space = altered(searcher)
    stored = optuna.create_study(direction="minimize")
    trials = 4 * JUDGED if space.file.search.eta else JUDGED
    proposer = Proposer(space, stored, seed=1000 * seed, trials=trials)
    path: list[Point] = []
    trainings, seconds, best = 0.0, 0.0, math.inf
    with limited(searcher):
        for entry in iter(proposer.next, None):
            share, digest = one(proposer, entry), entry.hash or ""
            repeats = [] if searcher.reused else proposer.ledger.having("duplicate")
            trainings += share
            seconds += share * took(digest)
            if entry.state == "trained" and not entry.excess and (entry.loss or math.inf) < best:
                best = entry.loss or math.inf
                wasted = sum(took(repeat.hash) for repeat in repeats)
                path.append(Point(trainings + len(repeats), seconds + wasted, digest))
            if trainings + len(repeats) >= JUDGED:
                break
    counts = proposer.ledger.counts()
    return path, {
        "proposed": counts["proposed"],
        "over budget": counts["over_budget"],
        "duplicate": counts["duplicate"],
    }


def one(proposer: Proposer, entry: Entry) -> float:
    """Trains an entry up to its next rung, or to its end; the share of a training that it took."""
    row = table().get(entry.hash or "")
    seen = row.seen if row else [math.inf]  # over budget: its place is behind all by its excess
    at, last = len(entry.rungs), len(seen) - 1
    before = steps()[at - 1] if at else 0
    if proposer.space.file.search.eta and at < last:
        entry.loss, entry.state, entry.rungs = seen[at], "paused", [*entry.rungs, seen[at]]
        proposer.keep(entry)
        return (steps()[at] - before) / steps()[-1]
    entry.loss, entry.state = seen[-1], "trained"
    proposer.settle(entry, TrialState.COMPLETE, (min(entry.loss, 1e9),))
    return 1 - before / steps()[-1]


def altered(searcher: Searcher) -> Space:
    """The space with what the searcher changes."""
    space = load_space(HERE / "space.yaml")
    settings = space.file.search.model_copy(update=dict(searcher.search))
    changes: dict[str, Any] = {"search": settings}
    if not searcher.screened:
        data = space.file.budgets.model_dump(exclude_unset=True)
        soft = {key: {**value, "soft": True} for key, value in data.items()}
        changes["budgets"] = Budgets.model_validate(soft)
    space.file = space.file.model_copy(update=changes)
    return space


def limited(searcher: Searcher) -> Any:
    """The searcher without a part of evolution."""
    name = searcher.without or "CROSSOVER"
    return mock.patch.object(evolution, name, 0.0 if searcher.without else evolution.CROSSOVER)


@dataclass(frozen=True)
class Run:
    """Rank quantiles of one searcher with one seed.

    Attributes:
        after: when 1, 2, ... trainings were spent.
        after_seconds: when as many seconds were spent as JUDGED mean trainings take.
    """

    name: str
    seed: int
    after: list[float]
    after_seconds: float
    regret: float
    counts: dict[str, float]


def run(job: tuple[Searcher, int]) -> Run:
    """One search, judged."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searcher, seed = job
    path, counts = search(searcher, seed)
    mean = statistics.fmean(row.seconds for row in table().values())

    def quantile(within: Callable[[Point], bool]) -> float:
        chosen = [point.chosen for point in path if within(point)]
        return quantiles()[chosen[-1]] if chosen else 1.0

    after = [quantile(lambda p, n=n: p.trainings <= n + 1e-9) for n in range(1, JUDGED + 1)]
    long = quantile(lambda p: p.seconds <= JUDGED * mean)
    at = [p.chosen for p in path if p.trainings <= JUDGED + 1e-9]
    best = min(row.worth for row in table().values())
    regret = table()[at[-1]].worth - best if at else math.inf
    return Run(searcher.name, seed, after, long, regret, counts)


def interval(values: list[float]) -> tuple[float, float]:
    """Of the median, 95 %, by bootstrap."""
    drawn = np.random.default_rng(0).choice(values, (10000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def holm(values: list[float]) -> list[float]:
    """p-values of one family of tests, corrected."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected, worst = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, values[i] * (len(values) - rank)))
        corrected[i] = worst
    return corrected


def page(runs: dict[str, list[Run]]) -> str:
    """README.md."""
    random = [run.after[-1] for run in runs["random"]]
    others = [name for name in runs if name != "random"]
    tests: list[Any] = [wilcoxon([r.after[-1] for r in runs[name]], random) for name in others]
    raw = {name: float(test.pvalue) for name, test in zip(others, tests, strict=True)}
    p = dict(zip(others, holm([*raw.values()]), strict=True))
    head = [
        "searcher",
        *(f"after {n}" for n in SHOWN),
        "95 %",
        "mean",
        "in equal seconds",
        "top 1 %",
    ]
    head += ["regret", "p", "Holm", "proposed", "over budget", "duplicates"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, found in runs.items():
        ends = [run.after[-1] for run in found]
        counts = {key: statistics.fmean(r.counts[key] for r in found) for key in found[0].counts}
        low, high = interval(ends)
        cells = [name]
        cells += [f"{100 * statistics.median(r.after[n - 1] for r in found):.2f}" for n in SHOWN]
        cells += [f"{100 * low:.2f} to {100 * high:.2f}", f"{100 * statistics.fmean(ends):.2f}"]
        cells += [f"{100 * statistics.median(run.after_seconds for run in found):.2f}"]
        cells += [f"{sum(end <= 0.01 for end in ends) / len(ends):.0%}"]
        cells += [f"{statistics.median(run.regret for run in found):.4f}"]
        cells += [f"{raw[name]:.2g}", f"{p[name]:.2g}"] if name in p else ["", ""]
        lines.append(f"| {' | '.join(cells + [f'{value:.0f}' for value in counts.values()])} |")
    seeds = len(runs["random"])
    return ABOUT.format(floor=floor(), seeds=seeds, table="\n".join(lines))


ABOUT = """# How good are the searchers?

`table.csv` has every architecture of [space.yaml](space.yaml) within its budgets, trained with
three seeds, a row for each: its losses at three rungs and the end (`python studies/table/make.py`).
{floor}

A searcher sees seed 0 on val. What it has chosen after so many trainings, the one of the lowest
loss, is judged by the mean of the other seeds on test. Numbers are rank quantiles in %, 0 for the
best of the table: medians over {seeds} seeds of the searcher, after {judged} with a bootstrap
interval of 95 %. A training up to a rung counts as its share of a whole one, what is over budget or
a duplicate as nothing. "In equal seconds": when as much time was spent as {judged} mean trainings
take. "p" is Wilcoxon's signed rank against random, paired by seed, then corrected for all of them
(Holm). `python studies/table/searchers.py` made this page and the figure.

{table}

![The rank of the chosen one as the search goes](figure.svg)
""".replace("{judged}", str(JUDGED))


def floor() -> str:
    """How noisy a loss is, and what no searcher can be better than."""
    rows = table()
    seen = min(rows, key=lambda digest: rows[digest].seen[-1])
    ends: dict[str, list[float]] = defaultdict(list)
    for row in csv.DictReader((HERE / "table.csv").read_text().splitlines()):
        if row["seed"] != "0":
            ends[row["architecture"]].append(float(row[f"loss@{steps()[-1]}"]))
    noise = math.sqrt(statistics.fmean(statistics.variance(losses) for losses in ends.values()))
    between = statistics.stdev(row.worth for row in rows.values())
    order = sorted(rows)
    worth = [rows[digest].worth for digest in order]
    seen_at = [[rows[digest].seen[i] for digest in order] for i in range(len(steps()))]
    found: list[Any] = [spearmanr(losses, worth) for losses in seen_at]
    rungs = [f"{r.statistic:.2f} at {step}" for r, step in zip(found, steps(), strict=True)]
    return (
        f"{len(rows)} architectures. One loss has a standard deviation of {noise:.3f} over seeds, "
        f"{between:.3f} between\narchitectures. What is seen ranks them as what they are worth by "
        f"{', '.join(rungs)} steps\n(Spearman). The lowest loss seen of all stands at "
        f"{100 * quantiles()[seen]:.2f} %."
    )


def draw(runs: dict[str, list[Run]]) -> None:
    """figure.svg: medians, and for two of them the middle half of the seeds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    x = range(1, JUDGED + 1)
    for name, found in runs.items():
        low, middle, high = np.quantile([run.after for run in found], [0.25, 0.5, 0.75], axis=0)
        (line,) = axes.plot(x, 100 * middle, label=name, lw=2 if name in BOLD else 1)
        if name in BOLD:
            axes.fill_between(x, 100 * low, 100 * high, color=line.get_color(), alpha=0.15)
    axes.set(xlabel="trainings", ylabel="rank quantile of the chosen, %", ylim=(0, 15))
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(HERE / "figure.svg")


BOLD = ("evolution", "random")


def main() -> None:
    """Runs all of it, two processes at a time."""
    parser = argparse.ArgumentParser(description="compare searchers over the table")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    seeds = parser.parse_args().seeds
    jobs = [(searcher, seed) for searcher in SEARCHERS for seed in range(seeds)]
    found: dict[str, list[Run]] = {searcher.name: [] for searcher in SEARCHERS}
    with ProcessPoolExecutor(2) as pool:
        for result in pool.map(run, jobs):
            found[result.name].append(result)
    write_atomic(HERE / "README.md", page(found))
    draw(found)


if __name__ == "__main__":
    main()
