"""How good are the searchers? Every one of them over the table: README.md and figure.svg.

    pip install matplotlib; python studies/table/searchers.py [--seeds N]

A searcher sees the losses of seed 0 on val. What it has chosen is worth its mean loss over the
other seeds on test.
"""

import argparse
import csv
import math
import statistics
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

from comparing import compared, draw
from judging import JUDGED, SEARCHERS, SEEDS, Bench, Row, judged
from scipy.stats import spearmanr

from archsearch.durable import write_atomic

HERE = Path(__file__).parent


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
def steps() -> list[int]:
    """Where losses were taken; the last is a whole training."""
    head = next(csv.reader((HERE / "table.csv").read_text().splitlines()))
    return [int(name.removeprefix("loss@")) for name in head if name.startswith("loss@")]


def bench(_: int = 0) -> Bench:
    """The table, to be searched, the same for every seed."""
    rows = table()
    return Bench(
        HERE / "space.yaml",
        steps(),
        lambda entry: rows.get(entry.hash or ""),
        sorted(row.worth for row in rows.values()),
        statistics.fmean(row.seconds for row in rows.values()),
    )


ABOUT = """# How good are the searchers?

`table.csv` has every architecture of [space.yaml](space.yaml) within its budgets, trained with
three seeds, a row for each: its losses at three rungs and the end (`python studies/table/make.py`).
{floor}

A searcher sees seed 0 on val. What it has chosen after so many trainings, the one of the lowest
loss, is judged by the mean of the other seeds on test. Numbers are rank quantiles in %, 0 for the
best of the table: medians over {seeds} seeds of the searcher, after {judged} with a bootstrap
interval of 95 %. A training up to a rung counts as its share of a whole one, what is over budget or
a duplicate as nothing. "In equal seconds": when as much time was spent as {judged} mean trainings
take. `evolution`, the default, leaves two of three behind at each rung (eta 3); `random` trains
whatever fits the budgets to its end, as tpe and nsga2 do. "p" is Wilcoxon's signed rank against
random, paired by seed, then corrected for all of them (Holm). "Later rungs" leave the first one
out, which ranks little. Behind rungs 160 candidates are trained at most, for which eta 3 needs the
work of some 38. `python studies/table/searchers.py` made this page and the figure.

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
        f"{100 * bench().quantile(rows[seen].worth):.2f} %."
    )


def main() -> None:
    """All of them over the table."""
    parser = argparse.ArgumentParser(description="compare searchers over the table")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    runs = judged(bench, SEARCHERS, seeds := parser.parse_args().seeds)
    page = ABOUT.format(floor=floor(), seeds=seeds, table=compared(runs))
    write_atomic(HERE / "README.md", page)
    draw(runs, HERE / "figure.svg")


if __name__ == "__main__":
    main()
