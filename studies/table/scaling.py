"""What a study takes beside training, and what a second worker brings: scaling.md.

    python studies/table/scaling.py      eleven minutes on two cores

Random candidates of space.yaml, trained for about 10 s each, by one worker and by two in turns, as
a machine has better and worse minutes. Overhead is the share of one worker's time, from its first
word to the end of the last training, in which it did not train: proposals, screening, files,
storage. Starting a worker takes some seconds more, once. Trials per minute are counted from the end
of the first to the end of the last.

What a proposal takes, with all that follows until its trial is closed: drawn, looked up, screened,
written to SQLite. In the same space, until 40 candidates were let through or half a minute was
over; duplicates count.
"""

import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import get_args

import optuna
from optuna.trial import TrialState

from archsearch import load_space, speed, study
from archsearch.document import Sampler
from archsearch.durable import write_atomic
from archsearch.folder import StudyFolder
from archsearch.proposing import Proposer
from archsearch.space import Space
from archsearch.status import Status

HERE = Path(__file__).parent
STEPS, TRIALS, ROUNDS = 300, 10, 4
LONGEST = 30
"""Seconds in which a sampler is asked."""


def measured(space: Space, workers: int) -> dict[str, float]:
    """One study, its times."""
    began: list[float] = []
    ends: list[float] = []

    def watch(status: Status) -> None:
        if any(status.running.values()) and not began:  # a word of the first steps
            began.append(time.monotonic())
        trained = len(status.ledger.having("trained"))
        ends.extend([time.monotonic()] * (trained - len(ends)))

    with tempfile.TemporaryDirectory() as folder:
        study(space, out=folder, workers=workers, watch=watch)
        runs = [run for trial in StudyFolder(folder).read_trials() for run in trial["runs"]]
    trained = sum(run["seconds"] for run in runs if run["split"] == "val")
    return {
        "seconds of a trial": trained / TRIALS,
        "overhead": 1 - trained / (ends[TRIALS - 1] - began[0]),
        "trials per minute": 60 * (TRIALS - 1) / (ends[TRIALS - 1] - ends[0]),
    }


def proposing(sampler: Sampler) -> tuple[int, float]:
    """Of a search in which training takes no time: its proposals, and milliseconds of each."""
    space = load_space(HERE / "space.yaml")
    search = space.file.search.model_copy(update={"sampler": sampler, "eta": None})
    space.file = space.file.model_copy(update={"search": search})
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        stored = optuna.create_study(storage=f"sqlite:///{folder}/study.db")
        proposer = Proposer(space, stored, seed=0, trials=40)
        began = time.monotonic()
        while time.monotonic() < began + LONGEST and (entry := proposer.next()) is not None:
            entry.state, entry.loss = "trained", rng.random()
            proposer.settle(entry, TrialState.COMPLETE, (entry.loss,))
        took = time.monotonic() - began
    proposed = proposer.ledger.counts()["proposed"]
    return proposed, 1000 * took / proposed


def short() -> Space:
    """The space with few candidates, all trained to the end."""
    space = load_space(HERE / "space.yaml")
    train = space.file.train.model_copy(update={"steps": STEPS, "rungs": []})
    changed = {"sampler": "random", "trials": TRIALS, "eta": None}
    search = space.file.search.model_copy(update=changed)
    final = space.file.final.model_copy(update={"seeds": 1})
    changes = {"train": train, "search": search, "final": final}
    space.file = space.file.model_copy(update=changes)
    return space


def turns() -> list[str]:
    """One worker, then two, and again: a line for each turn, and what they come to."""
    lines = ["| turn | workers | seconds of a trial | trials per minute |", "|---|---|---|---|"]
    ratios, overheads = [], []
    for turn in range(1, ROUNDS + 1):
        found = {workers: measured(short(), workers) for workers in (1, 2)}
        for n, each in found.items():
            numbers = f"{each['seconds of a trial']:.1f} | {each['trials per minute']:.2f}"
            lines.append(f"| {turn} | {n} | {numbers} |")
        ratios.append(found[2]["trials per minute"] / found[1]["trials per minute"])
        overheads.append(100 * found[1]["overhead"])
    told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    middle, over = statistics.median(ratios), statistics.median(overheads)
    last = f"Two for one: {middle:.2f} times, the median of {told}. Overhead of one: {over:.1f} %."
    return [*lines, "", last]


def main() -> None:
    """The workers; then the samplers."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    speed.ALLOWANCE = 0.1
    lines = turns()
    asked = ["| sampler | proposals | ms of each |", "|---|---|---|"]
    for sampler in get_args(Sampler):
        n, each = proposing(sampler)
        asked.append(f"| {sampler} | {n} | {each:.0f} |")
    _, _, work, proposals = (part.strip() for part in (__doc__ or "").split("\n\n"))
    text = ["# Workers and overhead", "", work, "", *lines, "", proposals, "", *asked, ""]
    write_atomic(HERE / "scaling.md", "\n".join(text))
    print((HERE / "scaling.md").read_text())


if __name__ == "__main__":
    main()
