"""How good searchers are where every training is known: what they choose, and what it is worth.

A searcher sees the losses of one seed. What it has chosen, the one of the lowest loss, stands
somewhere among all by what it is worth: the rank quantile, 0 for the best. Trainings are counted in
shares of a whole one, as rungs cost less. The proposer, its ledger and Optuna are those of a study;
only the training is looked up.
"""

import math
import multiprocessing
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from archsearch import evolution, load_space, ranking
from archsearch.budgets import Budgets
from archsearch.ledger import Entry
from archsearch.proposing import Proposer
from archsearch.space import Space

MINIMIZE = StudyDirection.MINIMIZE
JUDGED = 40
SEEDS = 30


@dataclass(frozen=True)
class Row:
    """An architecture: its losses as a searcher sees them, rung by rung, and what it is worth."""

    seen: list[float]
    worth: float
    seconds: float


@dataclass(frozen=True)
class Bench:
    """Where searchers are judged.

    Attributes:
        space: its file.
        steps: where losses are seen; the last is a whole training.
        row: of a candidate; None of one that is over budget.
        worths: what all, or many, architectures are worth, in order.
        seconds: of a mean training.
    """

    space: Path
    steps: list[int]
    row: Callable[[Entry], Row | None]
    worths: list[float]
    seconds: float

    def quantile(self, worth: float) -> float:
        """The share of the others that are worth more."""
        return bisect_left(self.worths, worth) / (len(self.worths) - 1)


@dataclass(frozen=True)
class Searcher:
    """One way to search, by what it changes in the space, and around it.

    Attributes:
        search: the section `search` of the space.
        screened: whether what is over budget is known before it is trained.
        reused: whether a duplicate costs nothing.
        without: a constant of evolution that is set to 0.
        first: the rung at which it looks first.
        objectives: what is to be small.
    """

    name: str
    search: Mapping[str, Any] = field(default_factory=dict)
    screened: bool = True
    reused: bool = True
    without: str | None = None
    first: int = 0
    objectives: tuple[str, ...] = ("loss",)


WHOLE = {"eta": None}  # nobody is left behind at a rung
SEARCHERS = [
    Searcher("evolution"),
    Searcher("evolution, eta 2", {"eta": 2}),
    Searcher("evolution, later rungs", first=1),
    Searcher("tpe", {"sampler": "tpe"} | WHOLE),
    Searcher("nsga2", {"sampler": "nsga2"} | WHOLE),
    Searcher("random", {"sampler": "random"} | WHOLE),
    Searcher("random, eta 3", {"sampler": "random"}),
    Searcher("random, eta 3, later rungs", {"sampler": "random"}, first=1),
    Searcher("evolution without rungs", WHOLE),
    Searcher("evolution without the screen", screened=False),
    Searcher("evolution without reuse of duplicates", reused=False),
    Searcher("evolution without crossover", without="CROSSOVER"),
    Searcher("evolution without rungs and the screen", WHOLE, screened=False),
    Searcher("evolution without rungs and reuse", WHOLE, reused=False),
    Searcher("evolution without rungs and crossover", WHOLE, without="CROSSOVER"),
    Searcher("random without screen and reuse", {"sampler": "random"} | WHOLE, False, False),
]


@dataclass(frozen=True)
class Point:
    """What a searcher had chosen when so much was spent."""

    trainings: float
    seconds: float
    chosen: str
    worth: float


def search(bench: Bench, searcher: Searcher, seed: int) -> tuple[list[Point], dict[str, float]]:
    """What it chose as it went on, and what it took."""
    path: list[Point] = []
    proposer, best = started(bench, searcher, seed), math.inf
    for spent, entry in spending(bench, searcher, proposer):
        if entry.state == "trained" and not entry.excess and (entry.loss or math.inf) < best:
            best, row = entry.loss or math.inf, bench.row(entry)
            assert row is not None
            path.append(Point(*spent, entry.hash or "", row.worth))
    counts = proposer.ledger.counts()
    return path, {
        "proposed": counts["proposed"],
        "over budget": counts["over_budget"],
        "duplicate": counts["duplicate"],
    }


def started(bench: Bench, searcher: Searcher, seed: int) -> Proposer:
    """A search before its first proposal."""
    space = altered(bench.space, searcher)
    stored = optuna.create_study(directions=[MINIMIZE] * len(space.file.objectives))
    trials = 4 * JUDGED if space.file.search.eta else JUDGED
    return Proposer(space, stored, seed=1000 * seed, trials=trials)


def spending(
    bench: Bench, searcher: Searcher, proposer: Proposer
) -> Iterator[tuple[tuple[float, float], Entry]]:
    """Trains until JUDGED trainings are spent; after each what was, trainings and seconds."""
    trainings, seconds = 0.0, 0.0

    def took(entry: Entry) -> float:
        row = bench.row(entry)
        return row.seconds if row else bench.seconds

    with limited(searcher):
        for entry in iter(proposer.next, None):
            share = one(bench, proposer, entry, searcher.first)
            repeats = [] if searcher.reused else proposer.ledger.having("duplicate")
            trainings += share
            seconds += share * took(entry)
            spent = trainings + len(repeats), seconds + sum(took(repeat) for repeat in repeats)
            yield spent, entry
            if spent[0] >= JUDGED:
                return


def one(bench: Bench, proposer: Proposer, entry: Entry, first: int) -> float:
    """Trains an entry up to its next rung, or to its end; the share of a training that it took."""
    row, steps = bench.row(entry), bench.steps[first:]
    seen = row.seen[first:] if row else [math.inf]  # over budget: behind all by its excess
    at, last = len(entry.rungs), len(seen) - 1
    before = steps[at - 1] if at else 0
    if proposer.space.file.search.eta and at < last:
        entry.loss, entry.state, entry.rungs = seen[at], "paused", [*entry.rungs, seen[at]]
        proposer.keep(entry)
        return (steps[at] - before) / steps[-1]
    entry.loss, entry.state = seen[-1], "trained"
    _, *costs = ranking.point(entry, proposer.objectives)
    proposer.settle(entry, TrialState.COMPLETE, (min(entry.loss, 1e9), *costs))
    return 1 - before / steps[-1]


def altered(path: Path, searcher: Searcher) -> Space:
    """The space with what the searcher changes."""
    space = load_space(path)
    settings = space.file.search.model_copy(update=dict(searcher.search))
    changes: dict[str, Any] = {"search": settings, "objectives": [*searcher.objectives]}
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


def run(job: tuple[Callable[[int], Bench], Searcher, int]) -> Run:
    """One search, judged."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    make, searcher, seed = job
    bench = make(seed)
    path, counts = search(bench, searcher, seed)

    def quantile(within: Callable[[Point], bool]) -> float:
        worths = [point.worth for point in path if within(point)]
        return bench.quantile(worths[-1]) if worths else 1.0

    after = [quantile(lambda p, n=n: p.trainings <= n + 1e-9) for n in range(1, JUDGED + 1)]
    long = quantile(lambda p: p.seconds <= JUDGED * bench.seconds)
    at = [p.worth for p in path if p.trainings <= JUDGED + 1e-9]
    regret = at[-1] - bench.worths[0] if at else math.inf
    return Run(searcher.name, seed, after, long, regret, counts)


def judged(
    make: Callable[[int], Bench], searchers: Iterable[Searcher], seeds: int
) -> dict[str, list[Run]]:
    """All of them over as many seeds, two processes at a time.

    Args:
        make: a function of a module, called with the seed of each search.
        searchers: `random` among them.
        seeds: of each searcher.
    """
    jobs = [(make, searcher, seed) for searcher in searchers for seed in range(seeds)]
    found: dict[str, list[Run]] = {}
    make(0)  # what it keeps is then known to both
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        for result in pool.map(run, jobs):
            found.setdefault(result.name, []).append(result)
    return found
