"""How a study stands at a moment: for whoever watches it, and for status.json in its folder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from archsearch.ledger import Ledger
from archsearch.workers import Progress


@dataclass
class Status:
    """A snapshot for whoever watches a study."""

    ledger: Ledger
    running: dict[tuple[int, int], Progress | None]
    """(trial, seed) -> the latest word from its worker."""
    phase: str
    jobs: int
    jobs_done: int
    seconds_left: float | None

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain data: status.json, and what the live view shows."""
        best = next(iter(self.ledger.ranking()), None)
        return {
            "phase": self.phase,
            "runs": self.jobs,
            "runs_done": self.jobs_done,
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left, 1),
            "counts": self.ledger.counts(),
            "best": best.brief() if best else None,
            "running": [
                {
                    "name": self.ledger.entries[number].name,
                    "seed": seed,
                    "task": word and word.task,
                    "step": word and word.step,
                    "loss": word and word.loss,
                    "summary": self.ledger.entries[number].summary,
                }
                for (number, seed), word in self.running.items()
            ],
        }


Watch = Callable[[Status], None]
