"""A curriculum of lengths: training begins with short sequences of a task and ends with whole ones.

    train: {curriculum: [0.25, 0.5]}     a third of training each at 1/4, 1/2 and all of the length

What is read first is cheap and steadies what follows (Bengio et al. 2009; of language models Press
et al. 2021, section 4, and Li et al. 2022). A lesson is the task itself with a smaller `length`,
drawn by its own rule: nothing is cut off a longer sequence, so no answer is. Batches keep their
number of sequences. What is evaluated is of the full length always.
"""

from collections.abc import Sequence

from archsearch.recipe import Training
from archsearch.tasks.task import Task


def lessons(training: Training, task: Task) -> list[Task]:
    """The task as each stage of a recipe reads it, the last as it is.

    Raises:
        TaskError: it has no such shorter sequences.
    """
    return [*(task.shortened(share) for share in training.curriculum), task]


def lesson_at(step: int, steps: int, count: int) -> int:
    """Which of so many lessons a step is of, from 0 on: equal numbers of steps for each."""
    return step * count // steps


def steps_within(budget: int, costs: Sequence[int]) -> int:
    """The most steps, one at least, that cost no more than a budget.

    Args:
        budget: in all.
        costs: of a step in each of the lessons, which have equal numbers of steps.
    """
    count = len(costs)
    steps = budget * count // sum(costs) + count  # more than enough: a stage ends within a step
    while steps > 1 and _spent(steps, costs) > budget:
        steps -= 1
    return steps


def _spent(steps: int, costs: Sequence[int]) -> int:
    starts = [-(-i * steps // len(costs)) for i in range(len(costs) + 1)]  # rounded up
    return sum(c * (b - a) for c, a, b in zip(costs, starts, starts[1:], strict=False))
