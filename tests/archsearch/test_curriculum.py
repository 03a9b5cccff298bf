"""Short sequences first: whose turn it is, what is read, what a budget of it buys."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from archsearch import load_space, reference, task
from archsearch import training as loop
from archsearch.counting import Counts
from archsearch.curriculum import lesson_at, lessons, steps_within
from archsearch.ends import IGNORE, Forecast
from archsearch.errors import SpecError
from archsearch.recipe import Training
from archsearch.tasks import TASKS, TaskError, stream
from archsearch.training import Run, steps_of, train

TASK = task("in_context_recall", vocab=8, length=16, batch=8, extrapolate=[2])
SPEC = reference("transformer", dim=16, layers=1)
THIRDS = [0.25, 0.5]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the batches that are drawn to train on."""
    lengths: list[int] = []
    sample = type(TASK).sample

    def watched(self: Any, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, targets = sample(self, batch, generator)
        lengths.append(inputs.shape[1])
        return inputs, targets

    monkeypatch.setattr(type(TASK), "sample", watched)
    return lengths


def test_stages_are_equal_and_the_last_is_the_whole_task(read: list[int]) -> None:
    outcome = train(SPEC, TASK, Training(steps=11, curriculum=THIRDS), seed=0)
    assert read == [4] * 4 + [8] * 4 + [16] * 3
    assert lessons(Training(curriculum=THIRDS), TASK)[-1] is TASK
    assert outcome.evaluation == TASK.evaluate(outcome.model)


def test_of_time_the_stages_are_shares(read: list[int]) -> None:
    run = Run(SPEC, TASK, Training(seconds=3, curriculum=THIRDS), 0.1, 0, "cpu")
    for elapsed in (0.0, 0.99, 1.01, 1.99, 2.01, 2.99):
        run.elapsed = elapsed
        run.gradients()
    assert read == [4, 4, 8, 8, 16, 16]


def test_one_batch_is_the_same_for_all_architectures() -> None:
    """Of the first lesson too: the model's seed and width have no say."""
    draws = []
    for name in ("retnet", "mamba"):
        run = Run(
            reference(name, dim=16, layers=1), TASK, Training(curriculum=THIRDS), 0.1, 0, "cpu"
        )
        draws.append(run.lesson.sample(8, run.data)[0])
    assert torch.equal(*draws)


def test_the_most_steps_within_a_budget() -> None:
    rng = random.Random(0)
    for _ in range(100):
        costs = sorted(rng.choices(range(1, 50), k=rng.randint(1, 4)))
        budget = rng.randint(1, 200)

        def spent(steps: int, costs: list[int] = costs) -> int:
            return sum(costs[lesson_at(i, steps, len(costs))] for i in range(steps))

        affordable = [steps for steps in range(1, budget + 2) if spent(steps) <= budget]
        assert steps_within(budget, costs) == max(affordable, default=1)


def test_tokens_and_flops_are_those_of_what_is_read(read: list[int]) -> None:
    run = Run(SPEC, TASK, Training(tokens=10_000, curriculum=THIRDS), 0.1, 0, "cpu")
    read.clear()
    assert run.steps is not None
    for step in range(run.steps):
        run.step = step
        run.gradients()
    assert 10_000 - 16 * 8 < 8 * sum(read) <= 10_000
    counts = Counts(SPEC, TASK.ends)
    costs = [counts.train(8, length).flops for length in (4, 8, 16)]
    nine = 3 * sum(costs)
    for flops, steps in ((nine, 9), (nine - 1, 8)):
        assert steps_of(Training(flops=flops, curriculum=THIRDS), SPEC, TASK) == steps
    assert costs[2] > 4 * costs[0]  # a step is not as dear as any other


def test_it_goes_on_bit_for_bit_from_every_stage(tmp_path: Path) -> None:
    settings = Training(steps=12, curriculum=THIRDS, dropout=0.1, rungs=[0.5])
    whole, file = train(SPEC, TASK, settings, seed=0), tmp_path / "a.checkpoint"
    for stop in (2, 4, 7, 11):
        with loop._seeded(0, "cpu"):
            run = Run(SPEC, TASK, settings, settings.rates[0], 0, "cpu")
            while run.step < stop:
                run.learn(lambda step, loss: None)
                run.climb("val")
            run.save(file)
        again = train(SPEC, TASK, settings, seed=0, checkpoint=file)
        assert (again.curve, again.rungs) == (whole.curve, whole.rungs)
        pairs = zip(again.model.parameters(), whole.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", [name for name in sorted(TASKS) if TASKS[name].shortens()])
def test_a_shorter_task_has_its_answers_and_the_ends_of_the_whole(name: str) -> None:
    whole = task(name)
    whole.prepare()
    short = whole.shortened(0.75)
    assert short.ends == whole.ends
    inputs, targets = short.sample(16, stream("train", 0))
    length = whole.model_dump()["length"]
    assert inputs.shape[1] == short.model_dump()["length"] == pytest.approx(0.75 * length, abs=1)
    if not isinstance(whole.ends.gives, Forecast):
        assert (targets.view(16, -1) != IGNORE).any(1).all()


def test_a_length_is_the_nearest_that_a_task_allows() -> None:
    """Pairs make even lengths."""
    odd = TASK.model_copy(update={"length": 30})
    lengths = [odd.shortened(share).model_dump()["length"] for share in (0.2, 0.45, 0.9)]
    assert lengths == [6, 14, 28]


@pytest.mark.parametrize("name", ["sequential_digits", "listops", "compression", "generation"])
def test_tasks_without_shorter_sequences_are_refused(name: str) -> None:
    message = (
        f"{name}: train.curriculum asks for shorter .*these tasks have: .*, in_context_recall,"
    )
    with pytest.raises(TaskError, match=message) as caught:
        lessons(Training(curriculum=THIRDS), task(name))
    assert "compression," not in str(caught.value).partition("these tasks")[2]
    assert lessons(Training(), task(name)) == [task(name)]


def test_a_share_that_is_too_short_is_refused() -> None:
    message = (
        "mqar: train.curriculum asks for 0.25 of its length 32, which is 8: 4 pairs in 1 hops need "
        "a length of 16 or more to be shown and asked; got 8. Raise the share or the length"
    )
    with pytest.raises(TaskError, match=message):
        lessons(Training(curriculum=THIRDS), task("mqar", length=32))


def test_a_space_is_refused_where_it_says_so(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    text = (
        "archsearch: 1\nname: t\nmodel: {dim: 16, layers: 1, topology: {type: interleave, major: gru}}\n"
        "tasks: [{type: in_context_recall}, {type: sequential_digits}]\ntrain: {curriculum: [0.5]}\n"
    )
    path.write_text(text)
    with pytest.raises(
        SpecError, match=r"s.yaml:5:8: train: sequential_digits: train.curriculum asks"
    ):
        load_space(path)
    path.write_text(text.replace(", {type: sequential_digits}", ""))
    assert load_space(path).file.train.curriculum == [0.5]


@pytest.mark.parametrize("shares", [0.5, [1], [0.5, 0.25], [0.5, 0.5], [0.0], [1.5], ["a"], [True]])
def test_curricula_that_are_none(shares: Any) -> None:
    with pytest.raises(ValueError, match="must be a list of shares of a length that rise, below 1"):
        Training(curriculum=shares)
    with pytest.raises(ValueError, match="a curriculum of 3 stages needs as many steps, not 2"):
        Training(steps=2, curriculum=THIRDS)


def test_it_is_read_back_as_it_was_written() -> None:
    recipe = Training(curriculum=THIRDS)
    assert Training.model_validate_json(recipe.model_dump_json()) == recipe
