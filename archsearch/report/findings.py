"""What a study found so far, read from its folder alone: its trials, and the Pareto front.

A study may be read while it runs, so anything may be missing; a number that is missing or not
finite is None.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from archsearch.folder import StudyFolder
from archsearch.racing import Noise, noise


def number(value: Any) -> float | None:
    """A finite number, or None."""
    good = isinstance(value, int | float) and math.isfinite(value)
    return value if good else None


def numbers(values: Iterable[Any]) -> list[float]:
    """The finite numbers among `values`."""
    return [found for value in values if (found := number(value)) is not None]


@dataclass(frozen=True)
class Trial:
    """An architecture that was trained, or failed to.

    Attributes:
        loss: of the search, split "val", mean over tasks: of several seeds what racing makes of
            them.
        losses: at the end, over the seeds of the search in their order; None of one that failed.
        tasks: what the search measured, by task.
        tests: the final runs, on split "test", one for each fresh seed.
        failed_finals: how many of the final runs failed.
        excess: by how much it is over soft budgets.
        memory: the most bytes that one of its trainings held.
        breaches: budgets that the trained model was measured to be over: name, cost and limit.
        speed: how fast it is, as archsearch.speed measured it; empty where it did not.
    """

    number: int
    kind: Literal["baseline", "candidate"]
    name: str
    state: Literal["trained", "failed"]
    summary: str
    cost: dict[str, float]
    loss: float | None
    losses: list[float | None]
    tasks: dict[str, dict[str, Any]]
    tests: list[dict[str, Any]]
    failed_finals: int
    cause: str | None
    message: str | None
    excess: float
    memory: float | None
    breaches: list[tuple[str, float, float]]
    speed: dict[str, Any]

    @property
    def finals(self) -> list[float]:
        """The losses of the final runs."""
        return [run["loss"] for run in self.tests]

    @property
    def final(self) -> float | None:
        """Mean of the final losses."""
        return sum(self.finals) / len(self.finals) if self.finals else None

    def measured(self, task: str, metric: str) -> float | None:
        """The loss or a metric of a task, as the search measured it."""
        about = self.tasks.get(task) or {}
        source = about if metric in ("loss", "score") else about.get("metrics") or {}
        return number(source.get(metric))

    @property
    def score(self) -> float | None:
        """The mean of the tasks' scores, 0 at the floor of each and 1 at its reference."""
        scores = [self.measured(task, "score") for task in self.tasks]
        known = [score for score in scores if score is not None]
        return sum(known) / len(known) if known and len(known) == len(scores) else None

    @property
    def behind(self) -> tuple[int, float]:
        """What counts before the loss: seeds on which it failed, soft budgets it is over."""
        return sum(loss is None for loss in self.losses), self.excess

    @classmethod
    def read(cls, data: dict[str, Any], seeds: Sequence[int]) -> "Trial":
        """From the data of a metrics.json, in a study with these seeds of the search."""
        runs: list[dict[str, Any]] = data.get("runs") or []
        failures: list[dict[str, Any]] = data.get("failures") or []
        searches = [run for run in runs if run.get("split") == "val"]
        costs = data.get("cost") or {}
        return cls(
            number=data["number"],
            kind=data["kind"],
            name=data["name"],
            state=data["state"],
            summary=data.get("summary") or "",
            cost={name: c for name, value in costs.items() if (c := number(value)) is not None},
            loss=number(data.get("loss")),
            losses=_over(seeds, searches, failures) if searches else [],
            tasks=(searches[0].get("tasks") or {}) if searches else {},
            tests=[
                r for r in runs if r.get("split") == "test" and number(r.get("loss")) is not None
            ],
            failed_finals=sum(failure.get("split") == "test" for failure in failures),
            cause=data.get("cause"),
            message=data.get("message"),
            excess=data.get("excess") or 0.0,
            memory=max(numbers(run.get("memory") for run in runs), default=None),
            breaches=[(b["budget"], b["cost"], b["max"]) for b in data.get("breaches") or []],
            speed=data.get("speed") or {},
        )


def _over(
    seeds: Sequence[int], runs: Sequence[dict[str, Any]], failures: Sequence[dict[str, Any]]
) -> list[float | None]:
    """The losses of the search over its seeds, as far as they came."""
    found = {run.get("seed"): number(run.get("loss")) for run in runs}
    ended = {run.get("seed") for run in failures if run.get("split") == "val"}
    return [found.get(seed) for seed in seeds if seed in found or seed in ended]


@dataclass(frozen=True)
class Findings:
    """A study as it stands.

    Attributes:
        trials: trained and failed ones, those that failed on a seed or are over soft budgets last,
            then by validation loss.
        seeds: of the search.
        noise: what they say of the architectures, and of themselves.
    """

    record: dict[str, Any]
    space: dict[str, Any]
    trials: list[Trial]
    seeds: list[int]
    noise: Noise

    @classmethod
    def read(cls, folder: StudyFolder) -> "Findings":
        """UserError if the folder holds no study."""
        return cls.of(folder.read_record(), folder.read_space() or {}, folder.read_trials())

    @classmethod
    def of(
        cls, record: dict[str, Any], space: dict[str, Any], data: Sequence[dict[str, Any]]
    ) -> "Findings":
        """From what stands in record.json, space.yaml and every metrics.json."""
        ended = [run for t in data for run in (*(t.get("runs") or []), *(t.get("failures") or []))]
        seeds = sorted({run["seed"] for run in ended if run.get("split") == "val"})
        trials = [Trial.read(trial, seeds) for trial in data]
        again = {t.number: t.losses for t in trials if len(t.losses) > 1}
        fitted = noise(again, {t.number for t in trials if t.kind == "baseline"})
        trials = [replace(t, loss=fitted.means.get(t.number, t.loss)) for t in trials]
        over = [t for t in trials if t.state in ("trained", "failed")]
        over.sort(key=lambda t: (t.behind, math.inf if t.loss is None else t.loss, t.number))
        return cls(record, space, over, seeds, fitted)

    @property
    def trained(self) -> list[Trial]:
        return [t for t in self.trials if t.state == "trained" and t.loss is not None]

    @property
    def baselines(self) -> list[Trial]:
        """Trained baselines in the order in which they were named."""
        return sorted((t for t in self.trained if t.kind == "baseline"), key=lambda t: t.number)

    @property
    def candidates(self) -> list[Trial]:
        """Trained candidates, best first."""
        return [t for t in self.trained if t.kind == "candidate"]

    @property
    def best(self) -> Trial | None:
        """Chosen on the validation loss: a choice made on the test split would flatter itself."""
        return next(iter(self.candidates), None)

    @property
    def finalists(self) -> list[Trial]:
        """Those with final runs or a measured speed: candidates, best first, then baselines."""
        return [t for t in (*self.candidates, *self.baselines) if t.tests or t.speed]

    def kind(self, trial: Trial) -> str:
        """What a trial is on the page: best, baseline or candidate."""
        return "best" if trial is self.best else trial.kind

    @property
    def memory(self) -> float | None:
        """The most bytes that a training held."""
        return max((trial.memory for trial in self.trials if trial.memory), default=None)

    @property
    def untrained(self) -> list[dict[str, Any]]:
        """The proposals not trained to the end: rejected, pruned or duplicate."""
        entries = self.record.get("untrained") or []
        return [entry for entry in entries if entry.get("state") != "failed"]

    @property
    def name(self) -> str:
        return str(self.record.get("name", "study"))

    @property
    def objectives(self) -> list[str]:
        """What is to be small, the loss first."""
        return self.space.get("objectives") or ["loss"]

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks in their order."""
        return [*(self.record.get("tasks") or {})]

    def metrics(self, task: str) -> list[str]:
        """The main metrics of a task: measured, with a floor to compare with, losses aside."""
        measured = {name for t in self.trained for name in t.tasks.get(task, {}).get("metrics", {})}
        told = {name: None for metrics in self.floors(task).values() for name in metrics}
        return [name for name in told if name in measured and not name.startswith("loss")]

    def floor(self, task: str, metric: str) -> float | None:
        """What the first rule of a task, which has learned nothing, reaches on a metric."""
        return number(next(iter(self.floors(task).values()), {}).get(metric))

    def floors(self, task: str) -> dict[str, dict[str, Any]]:
        """What rules reach that are no network, by the name of the rule."""
        return self._about(task).get("floors") or {}

    def unit(self, *tasks: str) -> str:
        """Of the loss of these tasks, or of all; empty where they differ."""
        units = {self._about(task).get("unit", "nats") for task in tasks or self.tasks}
        return units.pop() if len(units) == 1 else ""

    def _about(self, task: str) -> dict[str, Any]:
        return (self.record.get("tasks") or {}).get(task) or {}

    def rank(self, trial: Trial) -> float | None:
        """The mean over tasks of a trial's place among those trained, by score; 1 is the best."""
        places = [_place(trial.measured(task, "score"), self._scores(task)) for task in self.tasks]
        known = [place for place in places if place is not None]
        return sum(known) / len(known) if known and len(known) == len(places) else None

    def _scores(self, task: str) -> list[float]:
        return numbers(trial.measured(task, "score") for trial in self.trained)


def _place(score: float | None, scores: list[float]) -> float | None:
    """How many are better, and half of those as good, from 1 on."""
    if score is None:
        return None
    return sum(s > score for s in scores) + (1 + sum(s == score for s in scores)) / 2


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in one coordinate without losing in the other.

    Lower is better in both. Ordered by the first coordinate; equal points stay together.
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[i][1] < points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front
