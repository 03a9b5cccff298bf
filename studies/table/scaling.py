"""What a study takes beside training, and what a second worker brings: scaling.md.

    python studies/table/scaling.py      five minutes on two quiet cores

Random candidates of space.yaml, trained for about 10 s each. Overhead is the share of one worker's
time, from its first word to the end of the last training, in which it did not train: proposals,
screening, files, storage. Starting a worker takes some seconds more, once. Trials per minute are
counted from the end of the first to the end of the last.
"""

import tempfile
import time
from pathlib import Path

from archsearch import load_space, speed, study
from archsearch.durable import write_atomic
from archsearch.folder import StudyFolder
from archsearch.space import Space
from archsearch.status import Status

HERE = Path(__file__).parent
STEPS, TRIALS = 300, 12


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


def main() -> None:
    """One worker, then two."""
    speed.ALLOWANCE = 0.1
    space = load_space(HERE / "space.yaml")
    train = space.file.train.model_copy(update={"steps": STEPS, "rungs": []})
    search = space.file.search.model_copy(update={"sampler": "random", "trials": TRIALS})
    final = space.file.final.model_copy(update={"seeds": 1})
    changes = {"train": train, "search": search, "final": final}
    space.file = space.file.model_copy(update=changes)
    found = {workers: measured(space, workers) for workers in (1, 2)}
    lines = ["| workers | seconds of a trial | trials per minute |", "|---|---|---|"]
    for n, each in found.items():
        lines.append(
            f"| {n} | {each['seconds of a trial']:.1f} | {each['trials per minute']:.2f} |"
        )
    one, two = (found[n]["trials per minute"] for n in (1, 2))
    said = [(__doc__ or "").split("\n\n")[2].strip(), *["", *lines, ""]]
    last = (
        f"Two for one: {two / one:.2f} times. Overhead of one: {100 * found[1]['overhead']:.1f} %."
    )
    text = "\n".join(["# Workers and overhead", "", *said, last, ""])
    write_atomic(HERE / "scaling.md", text)
    print((HERE / "scaling.md").read_text())


if __name__ == "__main__":
    main()
