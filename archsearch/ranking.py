"""Who is better, with one objective or several: the loss, and costs that are to be small too.

    behind      on how many seeds it failed, by how much soft budgets are broken (Deb 2000)
    front       0: nobody is better in one objective and as good in all others; 1: nobody but those
                of front 0 is, and so on
    crowding    within a front: how far its neighbours are apart, farther first, so that the ends of
                a front and its empty stretches are not lost (Deb et al. 2002, NSGA-II)

With the loss alone every front is one loss, so this is the order of losses.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence

from archsearch.ledger import Entry

Point = tuple[float, ...]
"""The objectives of a candidate, the loss first; less is better in all."""


def point(entry: Entry, objectives: Sequence[str], rung: int | None = None) -> Point:
    """The objectives of an entry that has a loss, the latest or that at a rung."""
    loss = entry.loss if rung is None else entry.rungs[rung]
    assert loss is not None
    return tuple(loss if name == "loss" else entry.cost[name] for name in objectives)


def ordered(
    entries: Sequence[Entry], objectives: Sequence[str], rung: int | None = None
) -> list[Entry]:
    """The best first."""
    found = [point(entry, objectives, rung) for entry in entries]
    keys = ranks([entry.behind for entry in entries], found)
    listed = sorted(zip(keys, entries, strict=True), key=lambda pair: (pair[0], pair[1].number))
    return [entry for _, entry in listed]


def ranks(before: Sequence[Point], found: Sequence[Point]) -> list[Point]:
    """For each point what it is sorted by, less first.

    Args:
        before: what counts before any objective; fronts are of those alike in it.
        found: the objectives.
    """
    keys: list[Point] = [()] * len(found)
    for group in {*before}:
        alike = [i for i, other in enumerate(before) if other == group]
        for number, front in enumerate(fronts([found[i] for i in alike])):
            members = [alike[i] for i in front]
            wide = crowding([found[i] for i in members])
            for i, distance in zip(members, wide, strict=True):
                keys[i] = (*group, number, -distance, *found[i])
    return keys


def fronts(found: Sequence[Point]) -> list[list[int]]:
    """The indices of points by front.

    A point is put into the first front in which nobody beats it, whoever beats it having been put
    before; nobody of a later front does either, so it is looked for by halves (Zhang et al. 2015,
    ENS-BS).
    """
    layers: list[list[int]] = []
    for i in sorted(range(len(found)), key=lambda i: found[i]):

        def fits(layer: list[int], here: Point = found[i]) -> bool:
            return not any(_beats(found[j], here) for j in reversed(layer))

        at = bisect_left(layers, True, key=fits)
        if at == len(layers):
            layers.append([])
        layers[at].append(i)
    return layers


def crowding(front: Sequence[Point]) -> list[float]:
    """Of each point the sum over objectives of how far its neighbours are apart, in shares.

    Infinite at the ends of an objective; equal points share one place.
    """
    places = sorted({*front})
    distance = dict.fromkeys(places, 0.0)
    for k in range(len(places[0]) if places else 0):
        line = sorted(places, key=lambda point: (point[k], point))
        wide = line[-1][k] - line[0][k]
        distance[line[0]] = distance[line[-1]] = math.inf
        for before, here, after in zip(line, line[1:], line[2:], strict=False):
            distance[here] += (after[k] - before[k]) / wide if wide else 0.0
    return [distance[point] for point in front]


def _beats(one: Point, other: Point) -> bool:
    """Whether it is better in one objective, and as good in all others."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
