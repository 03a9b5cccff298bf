"""One loop for all: it learns, repeats bit for bit, and stops when the loss is no number."""

import gc
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from archsearch import build, reference, task
from archsearch import training as loop
from archsearch.counting import Counts
from archsearch.model import Model
from archsearch.optimizing import Optimizer, split
from archsearch.recipe import Training
from archsearch.spec import ModelSpec
from archsearch.training import Diverged, Run, steps_of, train

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


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd", "constant"])
def test_the_learning_rate_rises_then_falls(schedule: Any) -> None:
    settings = Training(steps=100, warmup=20, schedule=schedule)
    factors = [settings.factor(step, step / 100, 0.2) for step in range(101)]
    assert max(factors) == factors[20] == 1.0
    assert factors[0] == pytest.approx(1 / 21)
    assert factors[:21] == sorted(factors[:21])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[100] == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=1e-12)
    middle = {"linear": 0.5, "cosine": 0.5, "wsd": 1.0, "constant": 1.0}
    assert factors[60] == pytest.approx(middle[schedule])
    assert (factors[84] < 1) == (schedule in ("linear", "cosine"))


def test_weight_decay_is_for_matrices_only() -> None:
    model = build(reference("mamba", dim=16, layers=1), vocab=8)
    decayed, rest = split(model)
    assert {id(p) for p in (*decayed, *rest)} == {id(p) for p in model.parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in decayed} == {"weight"}
    kept = {names[id(p)] for p in rest}
    assert {"layer0_mixer.A_log", "layer0_mixer.D", "layer0_mixer.step.bias", "norm.weight"} <= kept


@pytest.mark.parametrize("rungs", [[9], [3, 3], [3, 2], [0.5, 2]])
def test_rungs_must_rise_within_the_steps(rungs: Any) -> None:
    with pytest.raises(ValueError, match="must rise and end by steps"):
        Training(steps=5, rungs=rungs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5, "tokens": 10}, r"{'steps': 5, 'tokens': 10}: say how long in one way"),
        ({"seconds": 1, "rungs": [7]}, "without steps they are shares, below 1"),
        ({"lr": []}, r"got \[\]; must be a number above 0, or a list of different ones"),
        ({"lr": -1}, "got -1; must be a number above 0"),
        ({"lr": [1e-3, 1e-3]}, "or a list of different ones"),
        ({"lr": [True]}, "must be a number above 0"),
        ({"rungs": [2.5]}, r"got \[2.5\]; must be a list of whole steps, or of shares below 1"),
        ({"rungs": 3}, "got 3; must be a list of whole steps"),
        ({"dropout": 1}, "less than 1"),
    ],
)
def test_recipes_that_are_none(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**options)


@pytest.mark.parametrize(
    "options", [{}, {"rungs": [3, 7]}, {"seconds": 2, "rungs": [0.5]}, {"lr": [1e-3, 1]}]
)
def test_a_recipe_is_read_back_as_it_was_written(options: Any) -> None:
    recipe = Training(**options)
    assert Training.model_validate(recipe.model_dump(mode="json")) == recipe
    assert Training.model_validate_json(recipe.model_dump_json()) == recipe


def test_how_long_in_four_ways() -> None:
    per_step = 8 * 16
    flops = Counts(SPEC, TASK.ends).train(8, 16).flops
    assert Training().steps == 150
    ways: list[tuple[dict[str, Any], int | None, str]] = [
        ({"steps": 7}, 7, "7 steps"),
        ({"tokens": 5 * per_step + 1}, 5, "641 tokens"),
        ({"flops": 3 * flops}, 3, f"{3 * flops:,} FLOPs"),
        ({"seconds": 2}, None, "2 s"),
    ]
    for options, steps, amount in ways:
        settings = Training(**options)
        assert steps_of(settings, SPEC, TASK) == steps
        assert settings.amount == amount
    wide = reference("transformer", dim=32, layers=1)
    fewer = steps_of(Training(flops=20 * flops), wide, TASK)
    assert fewer is not None
    assert fewer < 10  # for equal work


def test_time_is_a_budget_too() -> None:
    outcome = train(SPEC, TASK, Training(seconds=0.3, rungs=[0.5]), seed=0)
    (first, _), (last, _) = outcome.rungs
    assert 0 < first < last == outcome.curve[-1][0]


def weights(outcome: Any) -> list[torch.Tensor]:
    return [*outcome.model.parameters()]


MASKED = TASK.model_copy(update={"loss": "masked"})


def with_experts(balance: float) -> ModelSpec:
    """Of the short attention model, the same with four experts, of which a token takes one."""
    experts = {"type": "moe", "experts": 4, "top_k": 1, "balance": balance}
    return ModelSpec.model_validate(SPEC.model_dump(mode="json") | {"mlp": experts})


def alike(spec: ModelSpec, *pieces: int) -> list[Run]:
    """Runs in float64 from the same weights, each with its batches in so many pieces."""
    recipes = [Training(steps=1, accumulate=n, clip=1e9) for n in pieces]
    runs = [Run(spec, MASKED, recipe, 0.1, 0, "cpu") for recipe in recipes]
    for run in runs:
        run.model.load_state_dict(runs[0].model.state_dict())
        run.model.double()
    return runs


def gradients(run: Run) -> list[torch.Tensor]:
    return [p.grad for p in run.model.parameters() if p.grad is not None]


def with_route(entropy: float) -> ModelSpec:
    """Of the short attention model, the same beside a convolution, a token choosing between them."""
    merge = {"type": "route", "entropy": entropy}
    top = {"type": "parallel", "branches": ["attention", "short_conv"], "merge": merge}
    return ModelSpec.model_validate(SPEC.model_dump(mode="json") | {"topology": top})


SPECS = {"swiglu": SPEC, "moe": with_experts(0.0), "route": with_route(0.5)}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_pieces_of_a_batch_give_the_same_gradients(spec: ModelSpec) -> None:
    """Though they hold different numbers of answers."""
    whole, pieces = (
        Run(spec, MASKED, Training(steps=1, accumulate=n), 0.1, 0, "cpu") for n in (1, 3)
    )
    pieces.model.load_state_dict(whole.model.state_dict())
    (loss, norm), (other, other_norm) = whole.gradients(), pieces.gradients()
    torch.testing.assert_close((other, other_norm), (loss, norm))
    for p, q in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_equal_pieces_balance_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = type(MASKED).sample

    def repeated(self, batch, generator):
        inputs, targets = sample(self, batch // 4, generator)
        return inputs.repeat(4, 1), targets.repeat(4, 1)

    monkeypatch.setattr(type(MASKED), "sample", repeated)
    whole, pieces, free = *alike(with_experts(3.0), 1, 4), *alike(with_experts(0.0), 1)
    for run in (whole, pieces, free):
        run.gradients()
    torch.testing.assert_close(gradients(pieces), gradients(whole))
    balanced, unbalanced = map(gradients, (whole, free))
    assert any(not torch.allclose(a, b) for a, b in zip(balanced, unbalanced, strict=True))


def test_unequal_pieces_balance_by_the_mean_of_their_losses() -> None:
    """Weighed by their tokens: eight sequences in three pieces are 3, 3 and 2."""
    (pieces,), (written,) = alike(with_experts(3.0), 3), alike(with_experts(0.0), 1)
    written.model.load_state_dict(pieces.model.state_dict())
    pieces.gradients()
    logits: list[Any] = []
    router = written.model.get_submodule("layer0_mlp.router")
    router.register_forward_hook(lambda _, args, z: logits.append(z))
    inputs, targets = MASKED.sample(MASKED.batch, written.data)
    total = MASKED.ends.loss(written.model(inputs)[0], targets)
    p = torch.softmax(logits[0], -1).unflatten(0, inputs.shape)
    for rows in p.split([3, 3, 2]):
        f = F.one_hot(rows.argmax(-1), 4).double().mean((0, 1))
        total = total + 3.0 * len(rows) / 8 * 4 * (f * rows.mean((0, 1))).sum()
    total.backward()
    torch.testing.assert_close(gradients(pieces), gradients(written))


def test_recomputing_changes_nothing_but_the_memory() -> None:
    spec = reference("mamba", dim=16, layers=2)
    for dropout in (0.0, 0.3):
        kept, again = (
            train(spec, TASK, Training(steps=4, recompute=r, dropout=dropout), seed=0)
            for r in (False, True)
        )
        assert kept.curve == again.curve
        assert all(map(torch.equal, weights(kept), weights(again)))
    saved = []
    for recompute in (False, True):
        run = Run(spec, TASK, Training(steps=1, recompute=recompute), 0.1, 0, "cpu")
        held = [0]

        def keep(x: torch.Tensor, held: list[int] = held) -> torch.Tensor:
            held[0] += x.nbytes
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            run.model(TASK.sample(8, run.data)[0])
        saved.append(held[0])
    assert saved[1] < 0.6 * saved[0]


def test_dropout_is_of_training_alone() -> None:
    run = Run(SPEC, TASK, Training(dropout=0.5), 0.1, 0, "cpu")
    inputs, _ = TASK.sample(4, run.data)
    a, b = run.model(inputs)[0], run.model(inputs)[0]
    assert not torch.equal(a, b)
    run.model.eval()
    assert torch.equal(run.model(inputs)[0], run.model(inputs)[0])


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_every_optimizer_learns_and_goes_on_bit_for_bit(optimizer: Any, tmp_path: Path) -> None:
    """Stopped anywhere, the run ends with the weights, curve and rungs of one that was not."""
    lr = {"adamw": 8e-3, "muon": 8e-3, "sgd": 0.3}[optimizer]
    settings = Training(steps=60, rungs=[0.5], optimizer=optimizer, lr=lr, dropout=0.1)
    whole = train(SPEC, TASK, settings, seed=0)
    assert whole.curve[-1][1] < whole.curve[0][1] - 0.1
    file = tmp_path / "a.checkpoint"
    for stop in (7, 31):
        with loop._seeded(0, "cpu"):
            run = Run(SPEC, TASK, settings, lr, 0, "cpu")
            while run.step < stop:
                run.learn(lambda step, loss: None)
                run.climb("val")
            run.save(file)
        again = train(SPEC, TASK, settings, seed=0, checkpoint=file)
        assert not file.exists()
        assert again.curve == whole.curve
        assert again.rungs == whole.rungs
        assert all(map(torch.equal, weights(again), weights(whole)))


def test_checkpoints_are_written_on_the_way_and_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    file, seen = tmp_path / "trials" / "a.checkpoint", []
    train(SPEC, TASK, SHORT, seed=0, checkpoint=file, report=lambda *_: seen.append(file.exists()))
    assert seen == [False, True, True]  # at steps 1, 10 and 15
    assert not file.exists()


@pytest.mark.parametrize(("error", "kept"), [(ZeroDivisionError, False), (KeyboardInterrupt, True)])
def test_a_run_that_failed_leaves_no_checkpoint_and_one_that_was_stopped_does(
    error: type[BaseException], kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    file = tmp_path / "a.checkpoint"

    def end(step: int, loss: float) -> None:
        if step > 1:
            raise error

    with pytest.raises(error):
        train(SPEC, TASK, SHORT, seed=0, checkpoint=file, report=end)
    assert file.exists() == kept
    assert not [*tmp_path.glob("*.partial")]


def test_muon_is_for_the_matrices_of_linear_maps() -> None:
    model = build(SPEC, vocab=8)
    muon, adamw = Optimizer(model, Training(optimizer="muon"), 1e-3).parts
    of_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    linear = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    assert of_muon == linear
    rest = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert of_muon | rest == {id(p) for p in model.parameters()}
    assert not of_muon & rest


def test_half_precision_is_of_the_passes_alone() -> None:
    seen = []
    run = Run(SPEC, TASK, Training(precision="bfloat16"), 0.1, 0, "cpu")
    linear = next(m for m in run.model.modules() if isinstance(m, torch.nn.Linear))
    linear.register_forward_hook(lambda module, args, y: seen.append(y.dtype))
    run.gradients()
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_steps() -> None:
    run = Run(SPEC, TASK, Training(steps=10_100), 1e-3, 0, "cpu")
    sizes = []
    for _ in range(10_000):
        run.learn(lambda step, loss: None)
        if run.step % 2_000 == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            sizes.append(pages * resource.getpagesize())
    assert sizes[-1] - sizes[0] < 2**22, sizes
