"""What architectures are known to reach on a task, and in which order: seed by seed, no average.

The orders are those of the papers (attention looks up, and does not at lengths it never saw; fixed
decays see what stands where, and look nothing up), at sizes that take seconds. docs/presets.md has
more of them, over the same seeds.
"""

from typing import Any

import pytest

from archsearch import presets
from archsearch.recipe import Training
from archsearch.spec import ModelSpec
from archsearch.tasks import task
from archsearch.training import train

CONV: dict[str, Any] = {"type": "attention", "heads": 4, "conv": 4}
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
LOOKUPS = ["in_context_recall", "noisy_recall", "fuzzy_recall", "mqar"]


def metrics(name: str, major: dict[str, Any], seed: int, steps: int, **options: Any) -> Any:
    """On a task, of two layers 64 wide with a SwiGLU each."""
    topology = {"type": "interleave", "major": major}
    mlp = {"type": "swiglu", "expand": 2.0}
    spec = ModelSpec.model_validate({"dim": 64, "layers": 2, "mlp": mlp, "topology": topology})
    return train(spec, task(name, **options), Training(steps=steps), seed=seed).evaluation.metrics


@pytest.mark.slow
@SEEDS
def test_recall_needs_content_and_a_look_at_the_neighbour(seed: int) -> None:
    """Attention with a short convolution solves it, what is the same at all times does not."""
    options = {"vocab": 16, "length": 64, "batch": 32, "extrapolate": []}
    assert metrics("in_context_recall", CONV, seed, 150, **options)["accuracy"] > 0.98
    assert metrics("in_context_recall", {"type": "s4d"}, seed, 150, **options)["accuracy"] < 0.5


@pytest.mark.slow
@SEEDS
def test_a_state_reaches_further_than_it_was_trained_for(seed: int) -> None:
    """Over eight times the length attention's loss grows at least twice as much."""
    options = {"vocab": 16, "length": 64, "batch": 32, "extrapolate": [8]}
    attention = metrics("in_context_recall", CONV, seed, 150, **options)
    selective = metrics("in_context_recall", {"type": "mamba2"}, seed, 250, **options)
    assert selective["accuracy@8x"] > max(0.99, attention["accuracy@8x"])
    grown = [each["loss@8x"] / each["loss"] for each in (attention, selective)]
    assert grown[0] > 2 * grown[1]


@pytest.mark.slow
@SEEDS
def test_digits_are_for_what_is_the_same_at_all_times(seed: int) -> None:
    fixed = metrics("sequential_digits", {"type": "s4d", "init": "inv"}, seed, 150)["accuracy"]
    assert fixed > metrics("sequential_digits", CONV, seed, 150)["accuracy"]


@pytest.mark.slow
@SEEDS
def test_language_is_for_attention_then_what_is_fixed(seed: int) -> None:
    bits = [
        metrics("language", mixer, seed, 150)["bits_per_byte"]
        for mixer in (CONV, {"type": "s4d"}, {"type": "retention"})
    ]
    assert bits[0] < min(bits[1:]) - 0.1


@pytest.mark.parametrize("name", LOOKUPS)
def test_lookups_are_for_attention_with_a_convolution(name: str) -> None:
    """As measured at the presets."""
    found = presets.expected(name, "cpu")
    assert found is not None
    scores = {reference: run["scores"] for reference, run in found["runs"].items()}
    assert min(scores["primer"]) > 0.9
    for reference in ("transformer", "retnet", "s4d"):
        assert max(scores[reference]) < 0.5
