"""The ledger: what became of every proposal, kept in the study's storage trial by trial.

Nothing is dropped: a candidate over budget, a duplicate, a combination that cannot be built and a
crash are entries like a trained one, and the counts of a report come from here.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from optuna.trial import FrozenTrial

from archsearch.workers import SPENT

State = Literal[
    "training", "paused", "trained", "pruned", "failed",
    "over_budget", "duplicate", "invalid",
]  # fmt: skip
STARTED: tuple[State, ...] = ("training", "paused", "trained", "pruned", "failed")
"""What was let through to training."""
Kind = Literal["baseline", "candidate"]
COUNTED: tuple[State, ...] = (
    "trained", "pruned", "failed", "over_budget", "duplicate", "invalid",
)  # fmt: skip
ATTRIBUTE = "archsearch"
"""The user attribute under which an entry stands in Optuna's storage."""


@dataclass
class Entry:
    """One proposal and what became of it."""

    number: int
    kind: Kind
    name: str
    state: State
    hash: str | None = None
    summary: str | None = None
    spec: dict[str, Any] | None = None
    cost: dict[str, float] = field(default_factory=dict)
    loss: float | None = None
    """On val, at the end or at the last of `rungs`; of several seeds what racing makes of them."""
    losses: list[float | None] = field(default_factory=list)
    """At the end, over the seeds of the search in their order; None of a run that failed."""
    rungs: list[float] = field(default_factory=list)
    """The loss at each rung behind which it was decided whether it goes on."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds, tokens and FLOPs of its training in the search, as far as it came."""
    excess: float = 0.0
    """By how much it is over soft budgets, all together, in shares of them."""
    deaths: int = 0
    """How often a worker that trained it died, after which it was begun again."""
    cause: str | None = None
    """Of a failure: diverged, out_of_memory, died or error. Of a rejection: the budget."""
    message: str | None = None
    duplicate_of: int | None = None

    @property
    def behind(self) -> tuple[int, float]:
        """What counts before any objective: seeds on which it failed, soft budgets it is over."""
        return sum(loss is None for loss in self.losses), self.excess

    def brief(self) -> dict[str, Any]:
        """The entry without its spec, which has a file of its own."""
        return {key: value for key, value in asdict(self).items() if key != "spec"}


class Ledger:
    """All entries by trial number.

    A row that says another number than its own is of a process that wrote beside this one and was
    told so; it counts for nothing.
    """

    def __init__(self, trials: list[FrozenTrial]) -> None:
        self.entries: dict[int, Entry] = {}
        for trial in trials:
            if ATTRIBUTE in trial.user_attrs:
                entry = Entry(**trial.user_attrs[ATTRIBUTE])
                if entry.number == trial.number:
                    self.add(entry)

    def add(self, entry: Entry) -> None:
        self.entries[entry.number] = entry

    def having(self, *states: State, kind: Kind | None = None) -> list[Entry]:
        """The entries in one of the states, of one kind or of both."""
        entries = self.entries.values()
        return [e for e in entries if e.state in states and kind in (None, e.kind)]

    def numbers(self, *states: State) -> set[int]:
        """The trial numbers of the entries in one of the states."""
        return {entry.number for entry in self.having(*states)}

    def first_with(self, digest: str) -> Entry | None:
        """The entry that stands for an architecture: the first that was let through to training."""
        return next((e for e in self.having(*STARTED) if e.hash == digest), None)

    def ranking(self) -> list[Entry]:
        """Trained candidates: what fails on no seed and keeps to soft budgets, then by the loss."""
        trained = self.having("trained", kind="candidate")
        return sorted(trained, key=lambda e: (e.behind, e.loss, e.number))

    def counts(self) -> dict[str, Any]:
        """How many were proposed, and what became of them; rejections by budget."""
        states = Counter(e.state for e in self.entries.values())
        budgets = Counter(e.cause for e in self.having("over_budget"))
        causes = Counter(e.cause for e in self.having("failed"))
        taken = self.having(*STARTED)
        rungs = Counter(len(e.rungs) for e in self.having("pruned"))
        return {
            "proposed": len(self.entries),
            **{s: states[s] for s in COUNTED},
            "unfinished": sum(states[s] for s in ("training", "paused")),
            "pruned_by": {f"rung {n}": k for n, k in sorted(rungs.items())},
            "over_budget_by": dict(budgets),
            "failed_by": dict(causes),
            "deaths": sum(e.deaths for e in taken),
            "spent": {key: sum(e.spent.get(key, 0) for e in taken) for key in SPENT},
        }
