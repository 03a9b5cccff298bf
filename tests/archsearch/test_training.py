"""One loop for all: it learns, repeats bit for bit, and stops when the loss is no number."""

import pytest
import torch

from archsearch import build, reference, task
from archsearch.model import Model
from archsearch.training import Diverged, Training, _groups, _warm_up, train

TASK = task("in_context_recall", vocab=8, length=16, batch=8, extrapolate=[2])
SPEC = reference("transformer", dim=16, layers=1)
SHORT = Training(steps=15, rungs=[5, 10])


def test_training_learns_and_reports() -> None:
    told: list[tuple[int, float]] = []
    settings = Training(steps=60, rungs=[20])
    outcome = train(SPEC, TASK, settings, seed=0, report=lambda *word: told.append(word))
    assert outcome.curve == told
    assert [step for step, _ in outcome.curve] == [1, 10, 20, 30, 40, 50, 60]
    assert [step for step, _ in outcome.rungs] == [20, 60]
    assert outcome.rungs[-1][1] == outcome.evaluation.loss
    assert outcome.curve[-1][1] < outcome.curve[0][1] - 0.1


def test_a_seed_repeats_bit_for_bit_and_another_differs() -> None:
    a, b, c = (train(SPEC, TASK, SHORT, seed=seed) for seed in (3, 3, 4))
    assert a.curve == b.curve
    assert a.evaluation == b.evaluation
    assert all(
        torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True)
    )
    assert a.curve != c.curve


def test_rungs_and_the_global_generator_change_nothing() -> None:
    """Measuring on the way leaves the result alone, and training leaves the caller's stream alone."""
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    with_rungs = train(SPEC, TASK, SHORT, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    without = train(SPEC, TASK, Training(steps=15), seed=0)
    assert with_rungs.curve == without.curve
    assert with_rungs.evaluation == without.evaluation


def test_all_architectures_see_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[torch.Tensor]] = []
    sample = type(TASK).sample

    def watched(self, batch, generator):
        inputs, targets = sample(self, batch, generator)
        seen[-1].append(inputs)
        return inputs, targets

    monkeypatch.setattr(type(TASK), "sample", watched)
    for name in ("retnet", "mamba"):
        seen.append([])
        train(reference(name, dim=16, layers=1), TASK, Training(steps=3), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_a_loss_that_is_no_number_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Model, "forward", lambda self, tokens: (self.embed(tokens)[..., :8] * torch.nan, None)
    )
    with pytest.raises(Diverged, match="in_context_recall: training loss is nan at step 1"):
        train(SPEC, TASK, SHORT, seed=0)


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    settings = Training(steps=100, warmup=20)
    factors = [_warm_up(step, settings) for step in range(100)]
    assert max(factors) == factors[20] == 1.0
    assert factors[0] == pytest.approx(1 / 21)
    assert factors[-1] == pytest.approx(1 / 80)
    assert factors[:21] == sorted(factors[:21])
    assert factors[20:] == sorted(factors[20:], reverse=True)


def test_weight_decay_is_for_matrices_only() -> None:
    model = build(reference("mamba", dim=16, layers=1), vocab=8)
    decayed, rest = (group["params"] for group in _groups(model, 0.1))
    assert {id(p) for p in (*decayed, *rest)} == {id(p) for p in model.parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in decayed} == {"weight"}
    kept = {names[id(p)] for p in rest}
    assert {"layer0_mixer.A_log", "layer0_mixer.D", "layer0_mixer.step.bias", "norm.weight"} <= kept


@pytest.mark.parametrize("rungs", [[9], [3, 3], [3, 2]])
def test_rungs_must_rise_within_the_steps(rungs: list[int]) -> None:
    with pytest.raises(ValueError, match="must rise and end by steps"):
        Training(steps=5, rungs=rungs)
