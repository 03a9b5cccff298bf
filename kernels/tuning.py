"""Tuning: with ARCHSEARCH_TUNE=tiles.json, tiles are measured where they run.

The rows of that file win over the table in tiles.py. A row that a call needs and the file does not
have is measured on that call: the fastest of its candidates, the other rows as they are. It is kept
in the file, by architecture, kernel, bytes of the dtype and size, and measured no more: so let the
first call be like those to come.

Some kernels add to what they find. So no kernel is timed, but whole operators, whose every call
returns the same. The shape of what they return must not depend on a tile: rows change between a
forward pass and its backward pass. Whoever tunes is warned that no test has run the tiles chosen.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any, NamedTuple

import torch
from triton import TritonError

from .launch import INTERPRETED, Tile

RUNS = 10  # the fastest counts


class Row(NamedTuple):
    """What a tile is looked up by; `bytes` are those of the inputs' dtype."""

    architecture: str
    kernel: str
    bytes: int
    size: int


# Blocks, warps and stages worth trying, the largest first. A block of 64 would stand on the left of
# products in the kernels that compute what stands there, see sweep.py.
WIDE = [(64, 4, 2), (64, 4, 1), (64, 8, 2), (64, 8, 1)]
THIN = [(32, 4, 2), (32, 4, 1), (32, 8, 1), (16, 4, 1), (16, 8, 1)]
STEPWISE = [(64, 1, 1), (128, 1, 1), (256, 1, 1)]  # a warp; selective's lanes hold no channel twice
CANDIDATES: dict[tuple[str, int], list[tuple[int, int, int]]] = {
    **{
        (f"scan {role} {decay}", bytes): WIDE + THIN if (decay, bytes) == ("scalar", 2) else THIN
        for role in ("o", "dq", "dk", "dv")
        for decay in ("scalar", "vector")
        for bytes in (2, 4)
    },
    **{
        (f"delta {role}", bytes): [(64, 4, 1)] if role == "systems" else [(32, 8, 2), *THIN]
        for role in ("systems", "write", "unwrite", "gather")
        for bytes in (2, 4)
    },
    **{
        (f"{operator} {direction}", bytes): STEPWISE
        for operator in ("conv", "selective")
        for direction in ("forward", "backward")
        for bytes in (2, 4)
    },
}


class Tuner:
    """The rows of one file, and how they are found."""

    def __init__(self, path: Path, clock: Callable[[Callable], float]) -> None:
        self.path, self.clock = path, clock
        self.rows = read(path)
        self.asked: dict[Row, Tile] = {}  # by the operator that runs, with the table's tile
        self.trial: dict[Row, Tile] = {}  # what it runs with instead

    def tile(self, row: Row, known: Tile) -> Tile:
        """The tile that a kernel is launched with, where the table has `known`."""
        self.asked[row] = known
        return self.rows.get(row) or self.trial.get(row, known)

    def run(self, operator: Callable[[], Any]) -> Any:
        """What the operator returns, after the rows that it lacks have been measured."""
        self.asked, self.trial = {}, {}
        result = operator()
        lacking = {row: known for row, known in self.asked.items() if row not in self.rows}
        for row, known in lacking.items():
            self.trial[row] = self.fastest(row, known, operator)
        if lacking:
            result = operator()
            self.rows |= self.trial
            write(self.path, self.trial)
        return result

    def fastest(self, row: Row, known: Tile, operator: Callable[[], Any]) -> Tile:
        """The candidate that the operator is fastest with; one that fails is skipped."""
        name = f"{row.kernel}, {8 * row.bytes} bits, {row.size} on {row.architecture}"
        times = {known: self.clock(operator)}
        for tile in (Tile(*each) for each in CANDIDATES[row.kernel, row.bytes]):
            if tile == known:
                continue
            self.trial[row] = tile
            try:
                times[tile] = self.clock(operator)
            except (TritonError, RuntimeError) as error:  # MLIR and CUDA raise the latter
                reason = str(error).strip().partition("\n")[0]
                say(f"{name}: {tuple(tile)} fails: {type(error).__name__}: {reason}")
        best = min(times, key=times.__getitem__)
        say(f"{name}: {tuple(best)} takes {times[best]:.3g} ms, {tuple(known)} {times[known]:.3g}")
        return best


def measured(row: Row, known: Tile) -> Tile:
    """The tile of a row, where the table has `known`."""
    return known if TUNER is None else TUNER.tile(row, known)


def tuned(operator: Callable) -> Callable:
    """The operator; where ARCHSEARCH_TUNE is set, it measures what rows it lacks."""

    @wraps(operator)
    def run(*arguments: Any) -> Any:
        if TUNER is None:
            return operator(*arguments)
        return TUNER.run(partial(operator, *arguments))

    return run


def milliseconds(operator: Callable[[], Any]) -> float:
    """How long the operator takes, once it is compiled."""
    operator()
    return min(_once(operator) for _ in range(RUNS))


def _once(operator: Callable[[], Any]) -> float:
    if INTERPRETED:
        start = time.perf_counter()
        operator()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    operator()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def say(line: str) -> None:
    print(f"ARCHSEARCH_TUNE: {line}", file=sys.stderr, flush=True)


def read(path: Path) -> dict[Row, Tile]:
    """The rows of a file; none if it is not there yet."""
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"ARCHSEARCH_TUNE={path} is not JSON: {error}") from None
    if not isinstance(rows, list):
        raise ValueError(f"ARCHSEARCH_TUNE={path} must hold a list; got {type(rows).__name__}")
    return dict(_parsed(row, f"ARCHSEARCH_TUNE={path}, row {i}") for i, row in enumerate(rows, 1))


def _parsed(row: Any, where: str) -> tuple[Row, Tile]:
    kinds = Row.__annotations__ | Tile.__annotations__
    if not isinstance(row, dict) or row.keys() != kinds.keys():
        raise ValueError(f"{where} must have {', '.join(kinds)}; got {json.dumps(row)}")
    for name, kind in kinds.items():
        value = row[name]
        if type(value) is not kind or (kind is int and value < 1):
            allowed = "a positive integer" if kind is int else "a string"
            raise ValueError(f"{where}: {name} must be {allowed}; got {json.dumps(value)}")
        if name in ("block", "warps") and value & (value - 1):
            raise ValueError(f"{where}: {name} must be a power of 2; got {value}")
    return Row(*(row[name] for name in Row._fields)), Tile(*(row[name] for name in Tile._fields))


def write(path: Path, rows: dict[Row, Tile]) -> None:
    """Add rows to a file, which is whole at any moment; other processes may add theirs."""
    known = sorted((read(path) | rows).items())
    lines = (json.dumps(row._asdict() | tile._asdict()) for row, tile in known)
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    os.replace(aside, path)


FILE = os.environ.get("ARCHSEARCH_TUNE")
TUNER = Tuner(Path(FILE), milliseconds) if FILE else None
