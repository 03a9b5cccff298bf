"""The table of trained architectures, and the searchers on it: it is whole, and accounts are kept."""

import csv
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch import load_space
from archsearch.ledger import STARTED
from archsearch.proposing import Proposer

HERE = Path(__file__).parents[1] / "studies" / "table"


@pytest.fixture(scope="module")
def judging() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        yield importlib.import_module("judging")


@pytest.fixture(scope="module")
def bench(judging: ModuleType) -> Any:
    return importlib.import_module("searchers").bench()


def test_the_table_is_whole() -> None:
    """Three seeds of each architecture, and what random draws give is in it or over budget."""
    rows = [*csv.DictReader((HERE / "table.csv").read_text().splitlines())]
    known = {row["architecture"] for row in rows}
    assert len(known) >= 250
    expected = {(digest, seed) for digest in known for seed in "012"}
    assert sorted((row["architecture"], row["seed"]) for row in rows) == sorted(expected)
    assert all(row["split"] == ("test" if row["seed"] in "12" else "val") for row in rows)
    space, within = load_space(HERE / "space.yaml"), 0
    for seed in range(40):
        spec = space.sample(seed)
        screened = space.file.budgets.screen(spec, space.file.ends)
        assert (screened.excess is None) == (spec.hash() in known)
        if screened.excess is None:
            row = next(row for row in rows if row["architecture"] == spec.hash())
            assert all(float(row[name]) == cost for name, cost in screened.costs.items())
            within += 1
    assert 10 < within < 40


@pytest.mark.parametrize(
    "name",
    [
        "evolution",
        "evolution, later rungs",
        "random",
        "evolution without rungs and the screen",
        "evolution without rungs and reuse",
    ],
)
def test_accounts_of_a_search(
    judging: Any, bench: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is spent is what was trained, by steps; what is chosen has the lowest loss seen so far."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    monkeypatch.setattr(judging, "JUDGED", 6)
    kept: list[Proposer] = []

    class Kept(Proposer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            kept.append(self)

    monkeypatch.setattr(judging, "Proposer", Kept)
    searcher = next(each for each in judging.SEARCHERS if each.name == name)
    path, counts = judging.search(bench, searcher, 3)
    ledger, steps = kept[0].ledger, bench.steps[searcher.first :]
    started = ledger.having("trained", "paused", "training")
    spent = sum(
        1.0 if e.state == "trained" else steps[len(e.rungs) - 1] / steps[-1] if e.rungs else 0.0
        for e in started
    )
    repeats = 0 if searcher.reused else len(ledger.having("duplicate"))
    assert spent < 8
    assert spent + repeats >= 6 or len(ledger.having(*STARTED)) == kept[0].wanted
    assert path[-1].trainings <= spent + repeats + 1e-9
    within = [e for e in ledger.having("trained") if not e.excess]
    best = min(within, key=lambda e: (e.loss, e.number))
    assert path[-1].chosen == best.hash
    assert [p.trainings for p in path] == sorted(p.trainings for p in path)
    assert bool(counts["over budget"]) <= searcher.screened


def test_holm(judging: Any) -> None:
    assert importlib.import_module("comparing").holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )


def test_the_sample_is_what_is_drawn(judging: Any) -> None:
    surrogate = importlib.import_module("surrogate")
    rows = [*csv.DictReader(surrogate.SAMPLE.read_text().splitlines())]
    known = {row["architecture"]: row for row in rows}
    assert len(known) == len(rows) == surrogate.TRAINED
    for digest, (_, costs) in surrogate.drawn(load_space(surrogate.SPACE), 0, 25).items():
        assert all(float(known[digest][name]) == cost for name, cost in costs.items())


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=8))
def test_a_hypervolume_is_what_is_dominated(judging: Any, places: list[tuple[int, int]]) -> None:
    """Counted in cells of a grid; what is beyond the corner adds nothing."""
    fronts = importlib.import_module("fronts")
    cells = {(x, y) for a, b in places for x in range(a, 6) for y in range(b, 6)}
    assert fronts.volume(places, (6, 6)) == len(cells)
