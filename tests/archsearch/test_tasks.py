"""The contract of every task in TASKS, their registry, and the random streams."""

import math
import pickle
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torch import nn

from archsearch.ends import Classes, Decoded, Forecast, NextToken, Tags, Tokens, language
from archsearch.tasks import IGNORE, TASKS, TaskError, stream, task
from archsearch.tasks.task import Purpose, predict

torch.set_num_threads(1)


class Constant(nn.Module):
    """Gives the same at every position, class or step; remembers how it was called."""

    def __init__(self, ends, values):
        super().__init__()
        self.ends, self.values = ends, nn.Parameter(values)
        self.dropout = nn.Dropout()
        self.calls = []

    def forward(self, inputs, state=None):
        self.calls.append((self.training, torch.is_grad_enabled(), inputs.dtype))
        places = {
            NextToken: inputs.shape,
            Classes: inputs.shape[:1],
            Decoded: (len(inputs), getattr(self.ends.gives, "length", 0)),
            Tags: inputs.shape[:2],
            Forecast: (len(inputs), getattr(self.ends.gives, "horizon", 0)),
        }[type(self.ends.gives)]
        return self.dropout(self.values).expand(*places, -1), state


def width(tested):
    """How many values a model of the task gives at a place."""
    match tested.ends.gives:
        case Classes(classes) | Tags(classes):
            return classes
        case Forecast():
            return tested.ends.reads.channels
    return tested.ends.reads.vocab


def uniform(tested, dtype=torch.float32):
    return Constant(tested.ends, torch.zeros(width(tested), dtype=dtype))


def logits(tested):
    return not isinstance(tested.ends.gives, Forecast)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of images, for the task that has none of its own."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(240):
        path = folder / "aaabc"[i % 5] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path)
    return str(folder)


@pytest.fixture(params=sorted(TASKS))
def tested(request, pictures):
    made = task(request.param, **({"data": pictures} if request.param == "images" else {}))
    made.prepare()
    return made


def test_sample_gives_what_the_ends_read_and_give(tested):
    inputs, targets = tested.sample(3, stream("train", 0))
    like = tested.ends.inputs(3, inputs.shape[1]), tested.ends.targets(3, inputs.shape[1])
    assert [(x.shape, x.dtype) for x in (inputs, targets)] == [(x.shape, x.dtype) for x in like]
    if isinstance(tested.ends.reads, Tokens):
        assert 0 <= inputs.min() <= inputs.max() < tested.ends.reads.vocab
    if logits(tested):
        scored = targets[targets != IGNORE]
        assert 0 <= scored.min() <= scored.max() < width(tested)
        assert (targets.view(3, -1) != IGNORE).any(dim=1).all()


def test_sample_is_a_function_of_its_generator(tested):
    (a, b), (c, d) = (tested.sample(4, stream("train", 7)) for _ in range(2))
    assert torch.equal(a, c)
    assert torch.equal(b, d)
    assert not torch.equal(a, tested.sample(4, stream("train", 8))[0])
    generator = stream("train", 7)
    assert not torch.equal(tested.sample(4, generator)[0], tested.sample(4, generator)[0])


def test_sample_may_be_changed_in_place(tested):
    inputs, targets = tested.sample(2, stream("train", 0))
    before = inputs.clone(), targets.clone()
    inputs.zero_()
    assert torch.equal(targets, before[1])
    assert torch.equal(targets.view(-1), before[1].flatten())
    assert torch.equal(tested.sample(2, stream("train", 0))[0], before[0])


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_uniform_model_scores_log_of_the_choices(tested, split):
    if logits(tested):
        evaluation = tested.evaluate(uniform(tested), split)
        assert evaluation.loss == pytest.approx(math.log(width(tested)), rel=1e-7)


def test_floors_beat_a_uniform_model_and_share_names_with_it(tested):
    """No worse, where all classes are as frequent; not much, where val has them otherwise."""
    evaluation, floors = tested.evaluate(uniform(tested)), tested.floors()
    assert tested.floor["loss"] < evaluation.loss + 0.02
    assert all(metrics.keys() & evaluation.metrics.keys() for metrics in floors.values())
    assert tested.score(evaluation) < 0.02
    for metrics in floors.values():
        metrics.clear()
    assert tested.floor["loss"]  # a copy: nobody can spoil the cache


def test_metrics_are_told_sequence_by_sequence(tested):
    """Their mean is the metric, where all sequences have as many answers; else it is near."""
    evaluation = tested.evaluate(Constant(tested.ends, torch.linspace(0, 1, width(tested))))
    assert evaluation.examples
    assert (
        len({len(values) for name, values in evaluation.examples.items() if "@" not in name}) == 1
    )
    for name, values in evaluation.examples.items():
        assert values.shape == (len(values),)
        assert len(values) > 1
        assert values.mean().item() == pytest.approx(evaluation.metrics[name], rel=0.1, abs=0.02)


def test_evaluation_is_in_eval_mode_without_gradients_and_leaves_no_trace(tested):
    model = uniform(tested).train()
    model.dropout.eval()  # held in eval mode on purpose
    torch.manual_seed(0)
    before = torch.get_rng_state()
    tested.evaluate(model)
    assert {call[:2] for call in model.calls} == {(False, False)}
    assert model.training
    assert not model.dropout.training
    assert torch.equal(torch.get_rng_state(), before)
    assert model.values.grad is None


def test_evaluation_restores_the_mode_of_a_model_that_fails(tested):
    model = uniform(tested).train()
    model.dropout.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tested.evaluate(model)
    assert model.training


def test_no_seed_changes_an_evaluation(tested):
    class Looking(Constant):  # classes may be as frequent in test, but what is read is not the same
        def forward(self, inputs, state=None):
            return super().forward(inputs)[0] * (1 + inputs.float().mean()), state

    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        tested.sample(2, stream("train", seed))
        model = Looking(tested.ends, torch.linspace(0, 1, width(tested)))
        results.append(tested.evaluate(model))
    assert results[0] == results[1]
    assert results[0] != tested.evaluate(model, "test")


def test_a_model_that_diverges_shows_even_in_one_sequence(tested):
    class Diverging(Constant):
        def forward(self, inputs, state=None):
            y, state = super().forward(inputs)
            y = y.clone()
            y[0] = math.nan
            return y, state

    assert math.isnan(tested.evaluate(Diverging(tested.ends, torch.zeros(width(tested)))).loss)


def test_a_bfloat16_model_is_measured_in_float32(tested):
    evaluation = tested.evaluate(uniform(tested, torch.bfloat16))
    assert evaluation.loss == pytest.approx(tested.evaluate(uniform(tested)).loss, rel=1e-6)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 7), budget=st.integers(1, 60))
def test_predict_does_not_depend_on_its_batches(rows, budget):
    rng = torch.Generator().manual_seed(rows)
    inputs, targets = torch.randint(5, (2, rows, 9), generator=rng)
    targets[0, 0] = IGNORE
    model = Constant(language(5), torch.arange(5.0))
    nats, guesses = predict(model, inputs, targets, tokens_per_batch=budget)
    assert len(model.calls) == math.ceil(rows / max(1, budget // 9))
    expected = -model.values.detach().log_softmax(0)[targets.clamp(min=0)]
    assert torch.allclose(nats, expected.where(targets != IGNORE, torch.tensor(0.0)))
    assert (guesses == 4).all()


def test_a_task_is_a_value(tested):
    copy = pickle.loads(pickle.dumps(tested))
    assert copy == tested == type(tested).model_validate(tested.model_dump())
    assert hash(copy) == hash(tested)
    assert copy.fingerprint() == tested.fingerprint()
    with pytest.raises(ValidationError, match="frozen"):
        tested.batch = 8


def test_every_option_is_in_the_fingerprint(tested):
    """The first of what an option may be beside its default."""
    prints = [tested.fingerprint()]
    for name, field in type(tested).model_fields.items():
        value = field.get_default()
        if name == "type" or field.is_required() or isinstance(value, str | tuple | None):
            continue  # a path, a list or a name: each task's own test
        other = not value if isinstance(value, bool) else 2 * value
        prints.append(type(tested)(**tested.model_dump() | {name: other}).fingerprint())
    assert len(set(prints)) == len(prints) > 1


def test_every_option_is_described(tested):
    fields = type(tested).model_fields
    assert all(field.description for name, field in fields.items() if name != "type")


# --- the registry -----------------------------------------------------------------------------


def test_tasks_are_named_by_their_type():
    assert {name: cls.model_fields["type"].default for name, cls in TASKS.items()} == {
        name: name for name in TASKS
    }
    assert all(cls.model_construct(type=name).name == name for name, cls in TASKS.items())


def test_unknown_task():
    with pytest.raises(TaskError, match=r"'langauge'; did you mean 'language'\? Allowed: .*in_con"):
        task("langauge")
    with pytest.raises(
        ValueError, match=r"no task is named 'zzz'\. Allowed: .*in_context_recall, .*language, "
    ):
        task("zzz")


def test_unknown_option(tested):
    with pytest.raises(ValidationError, match=r"lenght\n +Extra inputs are not permitted"):
        task(tested.name, lenght=64)


def test_importing_tasks_imports_no_slow_library():
    code = "import sys, archsearch.tasks; print(*{'torchmetrics', 'datasets'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not run.stdout.strip()


# --- streams ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(key=st.integers() | st.text())
def test_two_purposes_never_share_a_seed(key):
    for i, purpose in enumerate(get_args(Purpose)):
        assert stream(purpose, key).initial_seed() >> 30 == i


def test_a_torch_seed_has_32_bits():
    """The reason for the layout of `stream`; if this fails, more bits are free to use."""
    low, high = (torch.rand(4, generator=torch.Generator().manual_seed(s)) for s in (1, 2**32 + 1))
    assert torch.equal(low, high)
