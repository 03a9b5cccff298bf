"""The jobs of a study: of its search, of the final runs, and of the measurements after them."""

from collections.abc import Iterator
from typing import Any

from archsearch.folder import StudyFolder
from archsearch.ledger import Entry, Ledger
from archsearch.ranking import ordered
from archsearch.space import Space
from archsearch.speed import SpeedJob, allowance
from archsearch.workers import Job, Split


class Jobs:
    """Makes the jobs of one study; what its folder holds already is not done again."""

    def __init__(self, space: Space, folder: StudyFolder, device: str, seed: int) -> None:
        self.space, self.file, self.folder = space, space.file, folder
        self.device, self.seed = device, seed
        self.fresh = [seed + 1 + i for i in range(self.file.final.seeds)]
        self.seeds = [seed, *(self.fresh[-1] + i for i in range(1, self.file.search.seeds))]

    def search(self, entry: Entry) -> Job:
        """One training on the seed of the search, up to the next rung where candidates wait."""
        halves = self.file.search.eta is not None and entry.kind == "candidate"
        return Job(
            **self._common(entry, self.seed, "val"),
            training=self.file.train.model_dump(mode="json") | self._alive(entry),
            pause=len(entry.rungs) if halves else None,
            budgets=self.file.budgets.model_dump(mode="json"),
            weights=str(self.folder.weights(entry.number).absolute()),
        )

    def again(self, entry: Entry) -> Job:
        """One more training in the search, on the seed after its last, at the rate then chosen."""
        trial = self.folder.read_trial(entry.number)
        assert trial is not None
        seed = self.seeds[len(entry.losses)]
        return Job(**self._common(entry, seed, "val"), training=self._chosen(trial["runs"][0]))

    def losses(self, trial: dict[str, Any]) -> list[float | None]:
        """Of a trial over the seeds of the search, as far as it came."""
        found = {run["seed"]: run["loss"] for run in trial["runs"] if run["split"] == "val"}
        ended = {run["seed"] for run in trial["failures"] if run["split"] == "val"}
        return [found.get(seed) for seed in self.seeds if seed in found or seed in ended]

    def final(self, ledger: Ledger) -> Iterator[Job]:
        """The finalists on seeds and a split that the search never saw.

        The longest first, so that no worker is left alone with one at the end.
        """
        trials = self._finalists(ledger)
        trials.sort(key=lambda each: -_seconds(each[1]))
        for entry, trial in trials:
            past = [*trial["runs"], *trial["failures"]]
            known = {run["seed"] for run in past if run["split"] == "test"}
            for seed in self.fresh:
                if seed not in known:
                    yield Job(**self._common(entry, seed, "test"), training=self._chosen(past[0]))

    def speed(self, ledger: Ledger) -> Iterator[SpeedJob]:
        """The finalists that were not measured yet."""
        for entry, trial in self._finalists(ledger):
            if "speed" not in trial:
                yield SpeedJob(
                    **self._common(entry, self.seed, "test"),
                    training=self._chosen(trial["runs"][0]),
                    seconds=allowance(_seconds(trial)),
                )

    def _finalists(self, ledger: Ledger) -> list[tuple[Entry, dict[str, Any]]]:
        """The best candidates and all baselines, each with its metrics.json."""
        trained = ledger.having("trained", kind="candidate")
        entries = ordered(trained, self.file.objectives)[: self.file.final.top]
        entries += ledger.having("trained", kind="baseline")
        return [(e, t) for e in entries if (t := self.folder.read_trial(e.number)) is not None]

    def _alive(self, entry: Entry) -> dict[str, Any]:
        """The rates of a candidate that waits, without those at which it diverged."""
        waiting = (self.folder.read_trial(entry.number) or {}).get("waiting")
        if not waiting:
            return {}
        alive = [lr for lr, loss in waiting["losses_by_lr"] if loss is not None]
        return {"lr": alive} if len(alive) < len(self.file.train.rates) else {}

    def _chosen(self, run: dict[str, Any]) -> dict[str, Any]:
        """The recipe at the rate that the search chose, not to be chosen again on the test."""
        chosen = {"lr": run["lr"]} if "lr" in run else {}
        return self.file.train.model_dump(mode="json") | chosen

    def _common(self, entry: Entry, seed: int, split: Split) -> dict[str, Any]:
        """What all jobs of an entry share."""
        return {
            "number": entry.number,
            "spec": entry.spec,
            "blocks": [str(self.folder.path.absolute() / name) for name in self.space.blocks],
            "tasks": [task.model_dump(mode="json") for task in self.file.tasks],
            "folder": str(self.folder.trial(entry.number).absolute()),
            "seed": seed,
            "split": split,
            "device": self.device,
        }


def _seconds(trial: dict[str, Any]) -> float:
    """What the runs of a trial took."""
    return sum(run["seconds"] for run in trial["runs"])
