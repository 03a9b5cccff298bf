"""Two objectives: how much of the front of loss and state do searchers find? Over the surrogate.

    python studies/table/fronts.py [--seeds N]

Of the candidates that a searcher has trained for the work of 40 trainings, those that none of them
beats by what it saw are judged by what they are worth. Their hypervolume is the area, of loss and
the logarithm of state, between them and a corner as bad as the worst of random architectures in
both, as a share of that of all that anybody found.
"""

import argparse
import math
import multiprocessing
import statistics
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import optuna
import surrogate
from comparing import AGAINST, against, spread, table
from judging import SEEDS, WHOLE, Searcher, spending, started

from archsearch import ranking
from archsearch.durable import write_atomic

HERE = Path(__file__).parent
BOTH = ("loss", "state")
SEARCHERS = [
    Searcher(name, search, objectives=BOTH)
    for name, search in {
        "evolution": {},
        "evolution without rungs": WHOLE,
        "tpe": {"sampler": "tpe"} | WHOLE,
        "nsga2": {"sampler": "nsga2"} | WHOLE,
        "random": {"sampler": "random"} | WHOLE,
        "random, eta 3": {"sampler": "random"},
    }.items()
]
Place = tuple[float, float]
"""What an architecture is worth, and the logarithm of its state."""


def run(job: tuple[Searcher, int]) -> tuple[str, list[Place]]:
    """The front of one search."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searcher, seed = job
    bench = surrogate.bench(seed)
    proposer = started(bench, searcher, seed)
    for _ in spending(bench, searcher, proposer):
        pass
    trained = proposer.ledger.having("trained")
    first = ranking.fronts([ranking.point(entry, BOTH) for entry in trained])[0]
    rows = [(bench.row(trained[i]), trained[i].cost["state"]) for i in first]
    return searcher.name, [(row.worth, math.log2(state)) for row, state in rows if row]


def volume(places: Iterable[Place], corner: Place) -> float:
    """The area between places and a corner that is worse than them."""
    total, lowest = 0.0, corner[0]
    for worth, state in sorted(places, key=lambda place: place[1]):
        if worth < lowest and state < corner[1]:
            total += (corner[1] - state) * (lowest - worth)
            lowest = worth
    return total


def corner() -> Place:
    """The worst of random architectures in both."""
    costs = [screened["state"] for _, screened in surrogate.others().values()]
    return surrogate.bench(0).worths[-1], math.log2(max(costs))


ABOUT = """# Two objectives

{about} Medians over {seeds} seeds of the searcher, with
a bootstrap interval of 95 %; "p" against random as in [the table](README.md). All runs know the
surrogate of [surrogate.md](surrogate.md). `python studies/table/fronts.py` made this page.

{table}
"""


def page(fronts: dict[str, list[list[Place]]]) -> str:
    """fronts.md."""
    worst = corner()
    most = volume((place for runs in fronts.values() for f in runs for place in f), worst)
    shares = {name: [volume(f, worst) / most for f in runs] for name, runs in fronts.items()}
    tests = against(shares)
    lines = []
    for name, found in shares.items():
        middle = f"{100 * statistics.median(found):.1f}"
        lines.append([name, middle, *spread(found, 1), *tests[name]])
    head = ["searcher", "hypervolume, %", "95 %", "mean", *AGAINST]
    about = (__doc__ or "").split("\n\n")[2].strip()
    return ABOUT.format(about=about, seeds=len(shares["random"]), table=table(head, lines))


def main() -> None:
    """All of them, two processes at a time."""
    parser = argparse.ArgumentParser(description="compare searchers by the fronts they find")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    seeds = range(parser.parse_args().seeds)
    found: dict[str, list[list[Place]]] = {}
    surrogate.known()  # both know it then
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        for name, front in pool.map(run, [(each, seed) for each in SEARCHERS for seed in seeds]):
            found.setdefault(name, []).append(front)
    write_atomic(HERE / "fronts.md", page(found))


if __name__ == "__main__":
    main()
