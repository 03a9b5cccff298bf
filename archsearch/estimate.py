"""What a study will take, before it starts: trainings, tokens, FLOPs, hours and memory.

    candidates x the share of a training that rungs leave them + baselines
    + further seeds of the baselines, and of as many leaders as chance makes if none are parted
    + final runs, of the finalists and the baselines over fresh seeds
    + the measurements of speed at the end

Tokens and FLOPs are counted by the recipe. Seconds and bytes are those of the baselines and a few
random candidates: some real steps of each, and one evaluation, are timed on this machine; a study
may find dearer ones or cheaper ones, within what the draws span.
"""

import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from archsearch import measuring, memory
from archsearch.counting import Counts
from archsearch.curriculum import lesson_at, lessons
from archsearch.document import SpaceFile
from archsearch.model import build
from archsearch.preflight import feasible
from archsearch.racing import expected
from archsearch.space import Space
from archsearch.spec import ModelSpec
from archsearch.speed import allowance, step_time
from archsearch.tasks.task import Task, stream
from archsearch.training import steps_of
from archsearch.units import BYTES, COUNT, Cost

TIMED = 4
"""Random candidates of which steps are timed."""
LIMIT = 0.3
"""Seconds for the steps of one candidate on one task."""


@dataclass(frozen=True)
class Load:
    """What work takes; seconds are those of one worker."""

    seconds: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0

    def __add__(self, other: "Load") -> "Load":
        pairs = zip(self.numbers, other.numbers, strict=True)
        return Load(*(a + b for a, b in pairs))

    def __mul__(self, times: float) -> "Load":
        return Load(*(times * number for number in self.numbers))

    @property
    def numbers(self) -> tuple[float, float, float]:
        return self.seconds, self.tokens, self.flops


@dataclass(frozen=True)
class Estimate:
    """Of a whole study: `seconds` with so many workers, `least` to `most` by the draws.

    Attributes:
        work: of all trainings together.
        measuring: seconds of the measurements at the end, which have the machine for themselves.
        memory: peak bytes of a training, by trace.
    """

    name: str
    trainings: int
    workers: int
    work: Load
    seconds: float
    least: float
    most: float
    measuring: float
    memory: int

    def json(self) -> str:
        """Every number by name."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """A line for each."""
        count, size = Cost("", "", 1000, COUNT), Cost("", "", 1024, BYTES)
        spread = f"{duration(self.least)} to {duration(self.most)}"
        rows = [
            ("trainings", f"{self.trainings}, final runs included"),
            ("tokens", count.tell(self.work.tokens)),
            ("FLOPs", count.tell(self.work.flops)),
            ("of one worker", f"{duration(self.work.seconds)}, then {self.measuring:.0f} s alone"),
            (f"with {self.workers}", f"{duration(self.seconds)}; {spread} by {TIMED} draws"),
            ("memory of a worker", f"{size.tell(self.memory)} traced, beside 400 MiB of a process"),
        ]
        return "\n".join([self.name, *(f"{name:<24}{value}" for name, value in rows)])


def estimate(space: Space, workers: int, device: str) -> Estimate:
    """What a study of a space takes; NoFeasibleCandidate where nothing fits its budgets."""
    file = space.file
    specs = feasible(space, 0, TIMED)
    drawn = [training(spec, file, device) for spec in specs]
    known = [space.baseline(name) for name in file.baselines]
    within = [each for each in known if file.budgets.screen(each, file.ends).excess is None]
    fixed = [training(spec, file, device) for spec in within]
    mean = Load(*map(statistics.fmean, zip(*(load.numbers for load in drawn), strict=True)))
    whole = total(file, mean, fixed)
    ends = sorted(total(file, load, fixed).seconds for load in drawn)
    alone = sum(allowance(load.seconds) for load in [*fixed, *[mean] * file.final.top])
    finals = (file.final.top + len(fixed)) * file.final.seeds
    again = round(raced(file)) + len(fixed) * (file.search.seeds - 1)
    return Estimate(
        name=space.name,
        trainings=file.search.trials + len(fixed) + again + finals,
        workers=workers,
        work=whole,
        seconds=whole.seconds / workers + alone,
        least=ends[0] / workers + alone,
        most=ends[-1] / workers + alone,
        measuring=alone,
        memory=max(peak(spec, file.tasks) for spec in (*specs, *within)),
    )


def total(file: SpaceFile, candidate: Load, baselines: Sequence[Load]) -> Load:
    """All trainings of a study, when each candidate takes what one does."""
    known = sum(baselines, Load())
    rates = len(file.train.rates)  # tried in the search, then the chosen one goes on
    search = (candidate * (file.search.trials * share(file)) + known) * rates
    again = candidate * raced(file) + known * (file.search.seeds - 1)  # at the chosen rate
    return search + again + (candidate * file.final.top + known) * file.final.seeds


def raced(file: SpaceFile) -> float:
    """Further trainings of leaders, if no interval parts them."""
    return expected(starting(file)[-1], file.final.top, file.search.seeds)


def share(file: SpaceFile) -> float:
    """What candidates have of a whole training, on average."""
    stretches = itertools.pairwise([0.0, *file.train.pauses, 1.0])
    counts = starting(file)
    return sum(n * (b - a) for n, (a, b) in zip(counts, stretches, strict=True)) / counts[0]


def starting(file: SpaceFile) -> list[int]:
    """How many candidates start each stretch of a training, between rungs, if none fails."""
    search, counts = file.search, [file.search.trials]
    for _ in file.train.pauses:
        left = counts[-1] if search.eta is None else math.ceil(counts[-1] / search.eta)
        counts.append(min(counts[-1], max(file.final.top, left)))
    return counts


def training(spec: ModelSpec, file: SpaceFile, device: str) -> Load:
    """One training of an architecture on every task, its evaluations included."""
    return sum((_on(spec, task, file, device) for task in file.tasks), Load())


def _on(spec: ModelSpec, task: Task, file: SpaceFile, device: str) -> Load:
    recipe, counts = file.train, Counts(spec, task.ends)
    stages, model = lessons(recipe, task), build(spec, task.ends).to(device)
    times, loads = [], []
    for lesson in stages:
        timed, _ = step_time(spec, lesson, recipe, device, LIMIT)
        batch, length = lesson.sample(task.batch, stream("init", 0))[0].shape[:2]
        times.append(timed.median)
        loads.append(Load(timed.median, batch * length, counts.train(batch, length).flops))
    steps = steps_of(recipe, spec, task) or round((recipe.seconds or 0) / statistics.fmean(times))
    of = Counter(lesson_at(step, steps, len(stages)) for step in range(steps))
    evaluation = measuring.once(lambda: task.evaluate(model, "val"), device)
    learning = sum((loads[i] * n for i, n in of.items()), Load())
    return learning + Load(evaluation) * (1 + len(recipe.rungs))


def peak(spec: ModelSpec, tasks: Sequence[Task]) -> int:
    """Bytes of the training step of a task that holds most."""
    shapes = [task.sample(task.batch, stream("init", 0))[0].shape[:2] for task in tasks]
    traced = zip(tasks, shapes, strict=True)
    return max(
        memory.train_memory(spec, task.ends, batch=b, seq_len=t).peak for task, (b, t) in traced
    )


def duration(seconds: float) -> str:
    """`38 s`, `4.2 min`, `7.5 h`."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
