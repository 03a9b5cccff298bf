"""How good are the searchers in a space of thousands? Over a surrogate: surrogate.md.

    pip install matplotlib
    python studies/table/surrogate.py train             half an hour on two CPU cores
    python studies/table/surrogate.py [--seeds N]

`train` writes sample.csv, random architectures of large.yaml within its budgets, each trained
once as in the table. Boosted trees, fitted to their losses at each rung and the end, stand for all
others (as in NAS-Bench-301, Siems et al. 2020): an architecture is worth what they say, and what a
searcher sees is off by what they miss of some architecture that they were not fitted to.
"""

import argparse
import csv
import json
import random
import statistics
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from comparing import compared, draw
from judging import SEARCHERS, Bench, Row, judged
from make import Among, fill
from scipy.stats import spearmanr
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.feature_extraction import DictVectorizer
from sklearn.model_selection import cross_val_predict

from archsearch import load_space
from archsearch.durable import write_atomic
from archsearch.engines import cores
from archsearch.ledger import Entry
from archsearch.space import Space

HERE = Path(__file__).parent
SPACE, SAMPLE = HERE / "large.yaml", HERE / "sample.csv"
TRAINED, RANKED = 400, 2000
"""Random architectures that are trained; others, among which those found are ranked."""
SEEDS = 100
"""Searches of each searcher: thirty part none of them here."""


def drawn(space: Space, first: int, count: int) -> Among:
    """Random architectures within the budgets, from one seed on."""
    found: Among = {}
    while len(found) < count:
        spec = space.sample(first)
        screened = space.file.budgets.screen(spec, space.file.ends)
        if screened.excess is None:
            found.setdefault(spec.hash(), (spec, screened.costs))
        first += 1
    return found


def features(spec: Any) -> dict[str, str]:
    """Of a spec as JSON: what stands at each path, in words."""

    def leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in pairs:
                yield from leaves(item, f"{path}/{key}")
        else:
            yield path, str(value)

    return dict(leaves(spec, ""))


@cache
def sample() -> tuple[list[dict[str, str]], np.ndarray, list[int], float]:
    """Features and losses of what was trained, where losses were taken, seconds of a training."""
    rows = {row["architecture"]: row for row in csv.DictReader(SAMPLE.read_text().splitlines())}
    among = drawn(load_space(SPACE), 0, TRAINED)
    names = [name for name in next(iter(rows.values())) if name.startswith("loss@")]
    losses = [[float(rows[digest][name]) for name in names] for digest in among]
    seconds = statistics.fmean(float(row["seconds"]) for row in rows.values())
    found = [features(spec.model_dump(mode="json")) for spec, _ in among.values()]
    return found, np.array(losses), [int(name.removeprefix("loss@")) for name in names], seconds


def trees() -> GradientBoostingRegressor:
    return GradientBoostingRegressor(
        n_estimators=300, learning_rate=0.05, max_depth=4, subsample=0.7, random_state=0
    )


@cache
def held_out() -> np.ndarray:
    """Of each architecture and rung what trees say that were not fitted to it (10 folds)."""
    found, losses, _, _ = sample()
    x = DictVectorizer(sparse=False).fit_transform(found)
    said = [np.asarray(cross_val_predict(trees(), x, y, cv=10)) for y in losses.T]
    return np.stack(said, axis=1)


@cache
def others() -> Among:
    """Those among which what is found is ranked."""
    return drawn(load_space(SPACE), 1_000_000, RANKED)


@cache
def known() -> tuple[Callable[[Any], list[float]], list[float]]:
    """What the trees say of a spec, at each rung and the end; what others are worth, in order."""
    found, losses, _, _ = sample()
    vectorizer = DictVectorizer(sparse=False)
    x = vectorizer.fit_transform(found)
    fitted = [trees().fit(x, y) for y in losses.T]

    @cache
    def said(spec: str) -> list[float]:
        encoded = vectorizer.transform([features(json.loads(spec))])
        return [float(model.predict(encoded)[0]) for model in fitted]

    specs = [json.dumps(spec.model_dump(mode="json")) for spec, _ in others().values()]
    return lambda spec: said(json.dumps(spec)), sorted(said(spec)[-1] for spec in specs)


def bench(seed: int) -> Bench:
    """The space, to be searched; what is missed of an architecture is drawn for each search."""
    _, losses, steps, seconds = sample()
    missed = losses - held_out()
    said, worths = known()

    def row(entry: Entry) -> Row | None:
        if entry.state == "over_budget" or entry.excess:
            return None
        losses = said(entry.spec)
        off = missed[random.Random(f"{entry.hash} {seed}").randrange(len(missed))]
        seen = [a + float(b) for a, b in zip(losses, off, strict=True)]
        return Row(seen, losses[-1], seconds)

    return Bench(SPACE, steps, row, worths, seconds)


def fit() -> str:
    """How well the trees say what they were not fitted to."""
    _, losses, steps, _ = sample()
    pairs: list[Any] = [spearmanr(a, b) for a, b in zip(held_out().T, losses.T, strict=True)]
    told = [f"{each.statistic:.2f} at {step}" for each, step in zip(pairs, steps, strict=True)]
    ends: list[Any] = [spearmanr(losses[:, k], losses[:, -1]) for k in range(len(steps) - 1)]
    rungs = [f"{e.statistic:.2f} at {step}" for e, step in zip(ends, steps[:-1], strict=True)]
    missed = np.std((losses - held_out())[:, -1])
    return (
        f"Rank correlation of\nwhat they say with what was measured (Spearman, ten folds): "
        f"{', '.join(told)} steps.\nAt the end losses have a standard deviation of "
        f"{np.std(losses[:, -1]):.3f}, what the trees miss {missed:.3f}.\nLosses of a rung rank as "
        f"those of the end by {', '.join(rungs)}."
    )


ABOUT = """# How good are the searchers in a space of thousands?

[large.yaml](large.yaml) has 31,250 draws, two in five of them within its budgets. {trained} were
trained, as in [the table](README.md) (sample.csv); boosted trees stand for the others. {fit}

An architecture is worth what the trees say of the end. A searcher sees, at each rung, what they say
and what they missed of one of the sample, drawn for each architecture and search. All else is as in
the table: medians over {seeds} seeds, quantiles in % among {ranked} random architectures within the
budgets; 0 is better than all of them. What comes of the screen and of duplicates is told there. A
surrogate is smoother than what it stands for: read it beside the table, not in its place.
`python studies/table/surrogate.py` made page and figure.

{table}

![The rank of the chosen one as the search goes](surrogate.svg)
"""


def main() -> None:
    """Trains the sample, or compares the searchers."""
    parser = argparse.ArgumentParser(description="compare searchers over a surrogate")
    parser.add_argument("what", nargs="?", choices=["train", "compare"], default="compare")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    told = parser.parse_args()
    if told.what == "train":
        space = load_space(SPACE)
        fill(space, drawn(space, 0, TRAINED), {0: "val"}, SAMPLE, cores())
        return
    among = [each for each in SEARCHERS if each.screened and each.reused]
    runs = judged(bench, among, told.seeds)
    parts = {"fit": fit(), "trained": TRAINED, "ranked": RANKED, "seeds": told.seeds}
    write_atomic(HERE / "surrogate.md", ABOUT.format(**parts, table=compared(runs)))
    draw(runs, HERE / "surrogate.svg")


if __name__ == "__main__":
    main()
