"""Who is better: the order of losses with one objective, non-dominated fronts with several."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.ledger import Entry
from archsearch.ranking import crowding, fronts, ordered, ranks

NUMBERS = st.integers(0, 4).map(float)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=25)


def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    pairs = [*zip(one, other, strict=True)]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


@given(POINTS)
def test_fronts(found: list[tuple[float, ...]]) -> None:
    """Each point is in one; none of a front is beaten by its own, each by one of the front before."""
    layers = fronts(found)
    assert sorted(i for layer in layers for i in layer) == [*range(len(found))]
    for number, layer in enumerate(layers):
        for i in layer:
            assert not any(beats(found[j], found[i]) for j in layer)
            assert not number or any(beats(found[j], found[i]) for j in layers[number - 1])


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=20), st.randoms())
def test_one_objective_is_an_order_of_losses(
    found: list[tuple[float, float]], rng: random.Random
) -> None:
    """Behind what is over soft budgets; equal ones in the order in which they came."""
    entries = [
        Entry(i, "candidate", f"{i}", "trained", loss=loss, excess=excess)
        for i, (loss, excess) in enumerate(found)
    ]
    shuffled = rng.sample(entries, len(entries))
    assert ordered(shuffled, ["loss"]) == sorted(
        entries, key=lambda e: (e.excess, e.loss, e.number)
    )


@given(POINTS)
def test_the_first_has_the_lowest_loss(found: list[tuple[float, ...]]) -> None:
    entries = [
        Entry(i, "candidate", f"{i}", "trained", loss=loss, cost={"state": a, "parameters": b})
        for i, (loss, a, b) in enumerate(found)
    ]
    listed = ordered(entries, ["loss", "state", "parameters"])
    assert sorted(entry.number for entry in listed) == [*range(len(found))]
    if listed:
        assert listed[0].loss == min(point[0] for point in found)
    at_rung = [
        Entry(e.number, e.kind, e.name, "paused", cost=e.cost, rungs=[9.0, e.loss or 0.0])
        for e in entries
    ]
    again = ordered(at_rung, ["loss", "state", "parameters"], rung=1)
    assert [entry.number for entry in again] == [entry.number for entry in listed]


def test_crowding_prefers_the_ends_and_the_empty_stretches() -> None:
    front = [(0.0, 10.0), (1.0, 9.0), (2.0, 8.0), (6.0, 4.0), (10.0, 0.0), (2.0, 8.0)]
    wide = crowding(front)
    assert wide[0] == wide[4] == math.inf
    assert wide[1] == pytest.approx(0.4)  # (2 - 0) / 10 + (10 - 8) / 10
    assert wide[3] == pytest.approx(1.6)
    assert wide[2] == wide[5] == pytest.approx(1.0)
    keys = ranks([(0.0,)] * 6, front)
    assert sorted(range(6), key=lambda i: keys[i]) == [0, 4, 3, 2, 5, 1]
    assert crowding([]) == []
    assert crowding([(1.0, 2.0)]) == [math.inf]
