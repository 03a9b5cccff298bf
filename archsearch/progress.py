"""A study while it runs: a live table on a terminal, a line per result elsewhere."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from archsearch.folder import StudyFolder
from archsearch.ledger import Entry
from archsearch.status import Status


@contextmanager
def watching() -> Iterator[Callable[[Status], None]]:
    """A watcher for the time of a study; it writes on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        lines = _Lines()

        def watch(status: Status) -> None:
            lines(status)
            live.update(render(status.snapshot()))

        yield watch


class _Lines:
    """Prints each entry once, when its search run is over, and at each rung where it waits."""

    def __init__(self) -> None:
        self.told: set[tuple[int, int, str]] | None = None

    def __call__(self, status: Status) -> None:
        over = {
            (entry.number, len(entry.rungs), entry.state): entry
            for entry in status.ledger.having("trained", "failed", "paused")
        }
        for entry in status.ledger.having("training"):
            if entry.deaths:
                over[entry.number, entry.deaths, "died"] = entry
        if self.told is None:  # what an earlier process finished is no news
            self.told = {*over}
        for key in sorted(over.keys() - self.told):
            self.told.add(key)
            print(tell(over[key]), file=sys.stderr, flush=True)


def tell(entry: Entry) -> str:
    """One line for a finished entry."""
    if entry.state == "failed":
        last = (entry.message or "").strip().splitlines()[-1:]
        return f"{entry.name:<12} failed: {entry.cause}  {' '.join(last)}"
    if entry.state == "training":
        return f"{entry.name:<12} its worker died; it is trained on"
    where = f" at rung {len(entry.rungs)}" if entry.state == "paused" else ""
    return f"{entry.name:<12} loss {entry.loss:.3f}{where}  {entry.summary}"


def follow(folder: StudyFolder, *, plain: bool) -> None:
    """Shows how a study stands, again each second until nothing runs it; `plain` as JSON lines."""
    if plain:
        for snapshot in _each_second(folder):
            print(json.dumps(snapshot), flush=True)
        return
    with Live(console=Console(), auto_refresh=False) as live:
        for snapshot in _each_second(folder):
            live.update(render(snapshot), refresh=True)


def _each_second(folder: StudyFolder) -> Iterator[dict[str, Any]]:
    """How a study stands, until nothing runs it."""
    while (snapshot := folder.read_status())["state"] == "running":
        yield snapshot
        time.sleep(1)
    yield snapshot


def render(snapshot: dict[str, Any]) -> Group:
    """How a study stands: who trains what, the best so far, the ledger, the time left."""
    table = Table(box=None, pad_edge=False)
    for column in ("trial", "seed", "task", "step", "loss", "architecture"):
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    phase = snapshot.get("phase", "search")
    for run in snapshot["running"]:
        at = ("measured" if phase == "speed" else "starting", "", "")
        if run["task"] is not None:
            at = (run["task"], f"{run['step']:,}", f"{run['loss']:.3f}")
        table.add_row(run["name"], str(run["seed"]), *at, run["summary"] or "")
    counts: dict[str, Any] = snapshot["counts"]
    best, seconds = snapshot.get("best"), snapshot.get("seconds_left")
    told = best and f"{best['name']:<12} loss {best['loss']:.3f}  {best['summary']}"
    over = ", ".join(f"{name} {n}" for name, n in counts["over_budget_by"].items()) or "none"
    left = "" if seconds is None or not snapshot["running"] else f"  about {_time(seconds)} left"
    state = snapshot.get("state", "running")
    where = phase if state == "running" else state
    return Group(
        f"{where}  {snapshot.get('runs_done', 0)}/{snapshot.get('runs', '?')} runs{left}",
        f"best  {told or 'none yet'}",
        f"proposed {counts['proposed']}  trained {counts['trained']}  "
        f"pruned {counts.get('pruned', 0)}  failed {counts['failed']}  "
        f"duplicate {counts['duplicate']}  invalid {counts['invalid']}  over budget: {over}",
        table if snapshot["running"] else "",
    )


def _time(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
