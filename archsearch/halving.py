"""Successive halving without waiting (ASHA: Li et al. 2020, arXiv 1810.05934): who goes on.

    rung k        the validation loss of a candidate when train.rungs[k] is behind it
    goes on       one in eta of all that reached the rung, the best, as soon as it is among them
    at the end    one in eta rounded up, at least as many as there are finalists; others are pruned

A candidate that waits keeps its checkpoint and is trained further from there. Candidates without a
loss at a rung, as they failed before, are not of it; those that fail behind it are.
"""

import math
from collections.abc import Sequence

from archsearch.ledger import Entry
from archsearch.ranking import ordered


def promotable(entries: Sequence[Entry], eta: int, objectives: Sequence[str]) -> Entry | None:
    """The next to go on, from the highest rung on which one may; None if all have to wait.

    Args:
        entries: all candidates that were let through to training.
        eta: one in so many goes on.
        objectives: what is to be small.
    """
    for rung in reversed(range(_rungs(entries))):
        reached = _reached(entries, rung, objectives)
        if (entry := _waiting(reached[: len(reached) // eta], rung)) is not None:
            return entry
    return None


def last(entries: Sequence[Entry], eta: int, objectives: Sequence[str], least: int) -> Entry | None:
    """The next to go on when no further candidate comes, from the lowest rung on.

    A rung is decided when nothing is on its way to it.

    Args:
        entries: all candidates that were let through to training.
        eta: one in so many goes on.
        objectives: what is to be small.
        least: how many go on at least.
    """
    for rung in range(_rungs(entries)):
        if any(e.state == "training" and len(e.rungs) <= rung for e in entries):
            return None
        reached = [
            e for e in _reached(entries, rung, objectives) if e.state != "failed"
        ]  # none ends by it
        quota = max(least, math.ceil(len(reached) / eta))
        if (entry := _waiting(reached[:quota], rung)) is not None:
            return entry
    return None


def _rungs(entries: Sequence[Entry]) -> int:
    return max((len(entry.rungs) for entry in entries), default=0)


def _reached(entries: Sequence[Entry], rung: int, objectives: Sequence[str]) -> list[Entry]:
    """Who has a loss at a rung, the best first."""
    there = [entry for entry in entries if len(entry.rungs) > rung]
    return ordered(there, objectives, rung)


def _waiting(entries: Sequence[Entry], rung: int) -> Entry | None:
    """The first that waits behind a rung."""
    there = (e for e in entries if e.state == "paused" and len(e.rungs) == rung + 1)
    return next(there, None)
