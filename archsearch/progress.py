"""A study while it runs: a live table on a terminal, a line per result elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from archsearch.ledger import Entry
from archsearch.search import Status


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
            live.update(render(status))

        yield watch


class _Lines:
    """Prints each entry once, when its search run is over."""

    def __init__(self) -> None:
        self.told: set[int] | None = None

    def __call__(self, status: Status) -> None:
        over = status.ledger.having("trained", "failed")
        if self.told is None:  # what an earlier process finished is no news
            self.told = {entry.number for entry in over}
        for entry in over:
            if entry.number not in self.told:
                self.told.add(entry.number)
                print(tell(entry), file=sys.stderr, flush=True)


def tell(entry: Entry) -> str:
    """One line for a finished entry."""
    if entry.state == "failed":
        last = (entry.message or "").strip().splitlines()[-1:]
        return f"{entry.name:<12} failed: {entry.cause}  {' '.join(last)}"
    return f"{entry.name:<12} loss {entry.loss:.3f}  {entry.summary}"


def render(status: Status) -> Group:
    """The live view: who trains what, the best so far, the ledger, the time left."""
    table = Table(box=None, pad_edge=False)
    for column in ("trial", "seed", "task", "step", "loss", "architecture"):
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    for (number, seed), word in status.running.items():
        entry = status.ledger.entries[number]
        told = word and (word.task, f"{word.step:,}", f"{word.loss:.3f}")
        at = told or ("measured" if status.phase == "speed" else "starting", "", "")
        table.add_row(entry.name, str(seed), *at, entry.summary or "")
    counts = status.ledger.counts()
    best = next(iter(status.ledger.ranking()), None)
    over = ", ".join(f"{name} {n}" for name, n in counts["over_budget_by"].items()) or "none"
    left = "" if status.seconds_left is None else f"  about {_time(status.seconds_left)} left"
    return Group(
        f"{status.phase}  {status.jobs_done}/{status.jobs} runs{left}",
        f"best  {tell(best)}" if best else "best  none yet",
        f"proposed {counts['proposed']}  trained {counts['trained']}  failed {counts['failed']}  "
        f"duplicate {counts['duplicate']}  invalid {counts['invalid']}  over budget: {over}",
        table,
    )


def _time(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
