"""Generation piece by piece: what is read, what is drawn, what is kept."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from archsearch import build
from archsearch.blocks import Mixer
from archsearch.spec import ModelSpec
from archsearch.standalone.generation import distribution, generate, prefill, sample

VOCAB = 13
STREAMING = [name for name, cls in Mixer.members.items() if cls.causal]


def model_of(mixer: str) -> torch.nn.Module:
    topology = {"type": "parallel", "branches": [mixer, "short_conv"]}
    spec = ModelSpec.model_validate({"dim": 16, "layers": 2, "topology": topology})
    torch.manual_seed(0)
    return build(spec, vocab=VOCAB).double().eval()


@pytest.mark.parametrize("mixer", STREAMING)
def test_a_prompt_read_by_chunks_is_the_prompt(mixer: str) -> None:
    """Whatever the chunk, whether it divides the prompt or not, and the state goes on as well."""
    model, prompt = model_of(mixer), torch.randint(VOCAB, (3, 17))
    whole, state = prefill(model, prompt)
    following = prefill(model, prompt[:, :5], state)[0]
    for chunk in (1, 4, 17, 100):
        logits, there = prefill(model, prompt, chunk=chunk)
        torch.testing.assert_close(logits, whole)
        torch.testing.assert_close(prefill(model, prompt[:, :5], there)[0], following)


@pytest.mark.parametrize("mixer", STREAMING)
def test_a_state_put_away_on_disk_goes_on_as_if_it_had_stayed(mixer: str, tmp_path: Path) -> None:
    model, prompt = model_of(mixer), torch.randint(VOCAB, (2, 9))
    _, state = prefill(model, prompt)
    torch.save(state, tmp_path / "state.pt")
    again = torch.load(tmp_path / "state.pt")  # weights_only: it runs no code
    assert len(tree_leaves(again)) == len(tree_leaves(state))
    stayed, went = (
        [*generate(model, prompt[:, :1], 5, state=each, generator=torch.Generator().manual_seed(7))]
        for each in (state, again)
    )
    assert all(torch.equal(a, b) for a, b in zip(stayed, went, strict=True))


numbers = st.floats(-4, 4).map(lambda x: round(x, 2))  # few enough that some are equal


@given(
    row=st.lists(numbers, min_size=1, max_size=9),
    temperature=st.floats(0.1, 5),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.none() | st.floats(0.01, 1),
)
def test_the_distribution_is_its_definition(
    row: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    logits = torch.tensor([row], dtype=torch.float64)
    found = distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)[0]
    kept = sorted(range(len(row)), key=lambda i: -row[i])
    if top_k is not None:
        kept = [i for i in kept if row[i] >= row[kept[min(top_k, len(row)) - 1]]]
    weights = {i: math.exp(row[i] / temperature) for i in kept}
    masses = {i: weight / math.fsum(weights.values()) for i, weight in weights.items()}
    if top_p is not None:
        before = {i: math.fsum(masses[j] for j in kept[:n]) for n, i in enumerate(kept)}
        if any(abs(mass - top_p) < 1e-9 for mass in before.values()):
            return  # on the edge, where rounding decides
        kept = [i for i in kept if before[i] < top_p]
    total = math.fsum(masses[i] for i in kept)
    expected = sorted((masses[i] / total for i in kept), reverse=True)
    assert found[found > 0].sort(descending=True).values.tolist() == pytest.approx(expected)
    assert found.sum().item() == pytest.approx(1)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 3.0]]).expand(20_000, -1)
    settings: dict[str, Any] = {"temperature": 1.5, "top_k": 4, "top_p": 0.9}
    drawn = sample(logits, **settings, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=5) / len(drawn)
    p = distribution(logits[:1], **settings)[0]
    assert (p == 0).sum() == 2
    assert shares[p == 0].sum() == 0
    assert (shares - p).abs().max() < 5 * (0.25 / len(drawn)) ** 0.5


def test_at_temperature_0_the_first_of_the_likeliest_is_taken() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [5.0, 1.0, -torch.inf]])
    assert sample(logits, temperature=0).tolist() == [1, 0]
    assert distribution(logits, temperature=0).tolist() == [[0, 1, 0], [1, 0, 0]]
    half = sample(logits.bfloat16(), temperature=0.5, top_k=1, top_p=0.5)
    assert half[1] == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; must be 0 or more"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; must be 1 or more, or None"),
        ({"top_p": 0.0}, r"top_p is 0.0; must be above 0, 1 at most"),
        ({"top_p": 1.5}, r"top_p is 1.5"),
        ({"chunk": 0}, "chunk is 0; must be 1 or more"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, Any], says: str) -> None:
    model, prompt = model_of("retention"), torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=says):
        next(generate(model, prompt, 1, **settings))


@pytest.mark.parametrize("shape", [(4,), (1, 0)])
def test_a_prompt_has_tokens_in_rows(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(B, T\), T >= 1"):
        prefill(model_of("retention"), torch.zeros(shape, dtype=torch.long))
