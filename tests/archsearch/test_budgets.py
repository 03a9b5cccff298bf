"""Budgets: what is counted, what is rejected, what is only told to the sampler, what is timed."""

import pytest
import torch

from archsearch import measuring, reference
from archsearch.budgets import Budgets
from archsearch.counting import Counts
from archsearch.ends import language
from archsearch.quantities import BYTES, COUNT, TIME, quantity
from archsearch.spec import ModelSpec

LANGUAGE = language(32)
SPEC = reference("transformer", dim=16, layers=2)


@pytest.mark.parametrize(
    ("text", "units", "value"),
    [("400k", COUNT, 400_000), ("1.5M", COUNT, 1_500_000), ("7", COUNT, 7), ("2 G", COUNT, 2 * 10**9),
     ("600MiB", BYTES, 600 * 2**20), ("1.5 KiB", BYTES, 1536), ("3MB", BYTES, 3_000_000),
     ("4ms", TIME, 0.004), ("1.5 s", TIME, 1.5), ("20us", TIME, 20e-6)],
)  # fmt: skip
def test_quantities(text: str, units: dict, value: float) -> None:
    assert quantity(units)(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["4kk", "k", "1.2.3k", "600MiB", "-3k", "."])
def test_quantities_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number with a unit of k, M, G, T"):
        quantity(COUNT)(text)


def test_the_first_hard_limit_broken_stops_the_screen() -> None:
    limits = {"parameters": {"max": "1M"}, "state": {"max": 8, "context": 16}, "decode_flops": {}}
    found = Budgets.model_validate(limits).screen(SPEC, LANGUAGE)
    assert list(found.costs) == ["parameters", "flops_per_token", "state"]
    assert found.costs["parameters"] == Counts(SPEC, LANGUAGE).parameters
    assert found.excess is not None
    excess = found.excess
    assert (excess.budget, excess.max, excess.cost) == ("state", 8, found.costs["state"])
    assert excess.ratio == found.costs["state"] / 8 - 1


def test_a_soft_limit_rejects_nobody_and_is_told_either_way() -> None:
    limits = {"parameters": {"max": "1M", "soft": True}, "state": {"max": 8, "soft": True}}
    found = Budgets.model_validate(limits).screen(SPEC, LANGUAGE)
    assert found.excess is None
    assert found.soft["state"] == found.costs["state"] / 8 - 1 > 0
    assert -1 < found.soft["parameters"] < 0


def test_what_no_one_asks_for_is_not_counted() -> None:
    found = Budgets().screen(SPEC, LANGUAGE, "cpu")
    assert list(found.costs) == ["parameters", "flops_per_token", "state"]
    assert (found.excess, found.soft) == (None, {})


def test_every_budget_has_its_cost() -> None:
    """By hand where it is short, and all of them positive."""
    named = {name: {} for name in Budgets.model_fields}
    named["parameters"] = {"embedding": False}
    named |= {"train_time": {"batch": 2, "length": 8}, "decode_latency": {"context": 8}}
    costs = Budgets.model_validate(named).screen(SPEC, LANGUAGE, "cpu").costs
    assert costs.keys() == Budgets.model_fields.keys()
    assert all(cost > 0 for cost in costs.values())
    counts = Counts(SPEC, LANGUAGE)
    assert costs["parameters"] == counts.parameters - 16 * 32
    assert costs["train_flops"] == counts.train(1, 256).flops / 256
    hidden = round(8 / 3 * 16)
    weights = 2 * (4 * 16 * 16 + 3 * 16 * hidden) + 32 * 16
    assert costs["decode_flops"] == 2 * weights + 2 * 4 * 4097 * 16


def test_times_are_taken_only_on_a_device() -> None:
    budgets = Budgets.model_validate(
        {"decode_latency": {"max": "1us", "context": 4, "measured": True}}
    )
    assert budgets.screen(SPEC, LANGUAGE).excess is None
    excess = budgets.screen(SPEC, LANGUAGE, "cpu").excess
    assert excess is not None
    assert excess.budget == "decode_latency"


def test_half_precision_halves_a_cache() -> None:
    sizes = [
        Budgets.model_validate({"state": {"dtype": dtype, "context": 64}})
        .screen(SPEC, LANGUAGE)
        .costs["state"]
        for dtype in ("float32", "bfloat16")
    ]
    counters = 2 * 8  # tokens seen, an integer in each layer
    assert sizes[0] - counters == 2 * (sizes[1] - counters)


def test_what_is_measured_is_what_was_counted() -> None:
    limits = {"parameters": {"max": "1G"}, "state": {"max": "1GiB"}, "flops_per_token": {"max": 1}}
    budgets = Budgets.model_validate(limits | {"train_memory": {"max": "1GiB"}})
    measured = budgets.measure(SPEC, LANGUAGE, "cpu")
    assert measured.keys() == {"parameters", "state"}  # a CPU keeps no peak
    costs = Budgets.model_validate({"parameters": {}, "state": {}}).screen(SPEC, LANGUAGE).costs
    assert measured == {name: costs[name] for name in measured}
    assert budgets.breaches(measured) == []
    (excess,) = budgets.breaches(measured | {"state": 2**30 + 2**20})
    assert (excess.budget, excess.max) == ("state", 2**30)


def test_a_time_has_its_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    time = measuring.timed(lambda: calls.append(1), "cpu")
    assert len(calls) == measuring.WARM_UP + measuring.ROUNDS
    assert 0 <= time.lower <= time.median <= time.upper
    future = SPEC.model_copy(update={"causal": False})
    assert measuring.decode_latency(future, LANGUAGE, context=4, device="cpu") is None


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: its allocator keeps the peak"
)
@pytest.mark.parametrize("name", ["transformer", "retnet", "mamba", "gla"])
def test_train_memory_on_a_gpu(name: str) -> None:
    spec = reference(name, dim=256, layers=4)
    limits = {"train_memory": {"max": "80GB", "batch": 8, "length": 256}}
    budgets = Budgets.model_validate(limits)
    measured = budgets.measure(spec, language(256), "cuda")["train_memory"]
    assert budgets.screen(spec, language(256)).costs["train_memory"] == pytest.approx(
        measured, rel=0.05
    )


FUTURE = ModelSpec.model_validate(
    {
        "dim": 16,
        "layers": 1,
        "causal": False,
        "topology": {"type": "interleave", "major": {"type": "synthesizer", "length": 64}},
    }
)


@pytest.mark.parametrize(("name", "size"), [("train_flops", "context"), ("train_memory", "length")])
def test_a_length_that_a_block_cannot_have_is_over_a_limit_and_else_not_told(
    name: str, size: str
) -> None:
    found = Budgets.model_validate({name: {size: 65}}).screen(FUTURE, LANGUAGE)
    assert found.excess is None
    assert name not in found.costs
    limited = Budgets.model_validate({name: {size: 65, "max": 1}})
    told = f"{name} cannot be counted: synthesizer: takes at most length = 64 tokens, got 65"
    assert str(limited.screen(FUTURE, LANGUAGE).excess) == told
    soft = Budgets.model_validate({name: {size: 65, "max": 1, "soft": True}})
    assert soft.screen(FUTURE, LANGUAGE).soft == {name: 1.0}


def test_what_cannot_be_measured_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **sizes: object) -> int:
        raise ValueError("synthesizer: takes at most")

    monkeypatch.setattr(measuring, "train_memory", refuse)
    limits = {"train_memory": {"max": 1, "soft": True}, "parameters": {"max": 1}}
    assert list(Budgets.model_validate(limits).measure(FUTURE, LANGUAGE, "cpu")) == ["parameters"]


def test_what_cannot_stream_has_no_state_at_any_context() -> None:
    limits = {"state": {"max": 1, "context": 10**6}}
    found = Budgets.model_validate(limits).screen(FUTURE, LANGUAGE)
    assert found.excess is None
    assert found.costs["state"] == 0
