"""causal_conv: values and every gradient against the step loop and torch's own convolution."""

import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.kernels import causal_conv

WIDTHS = (1, 2, 4, 7)
ACTIVATIONS = (None, "silu")


def case(T, W, B=2, D=5) -> dict[str, Any]:
    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64)

    return {
        "x": draw(B, T, D),
        "weight": draw(D, W),
        "bias": draw(D),
        "initial_state": draw(B, D, W - 1),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("W", WIDTHS)
@pytest.mark.parametrize("T", [1, 2, 3, 65])
def test_chunked_is_the_reference(agree, T, W, activation, dtype):
    agree(causal_conv, case(T, W), dtype, activation=activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("W", WIDTHS)
@pytest.mark.parametrize("numbers", [1, 60])
def test_the_size_of_a_tile_changes_nothing(monkeypatch, agree, numbers, W, activation):
    monkeypatch.setattr(sys.modules["archsearch.kernels.causal_conv_chunked"], "TILE", numbers)
    agree(causal_conv, case(23, W), torch.float64, activation=activation)


@pytest.mark.parametrize("absent", [["bias"], ["initial_state"], ["bias", "initial_state"]])
@pytest.mark.parametrize("T", [1, 9])
def test_absent_tensors(agree, absent, T):
    agree(causal_conv, {**case(T, 4), **dict.fromkeys(absent)}, activation="silu")


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("W", [1, 3])
def test_gradcheck(W, activation, backend):
    tensors = case(5, W, 1, 2)

    def call(*values):
        named = dict(zip(tensors, values, strict=True))
        return causal_conv(**named, activation=activation, backend=backend)

    assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in tensors.values()])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("W", WIDTHS)
def test_is_torch_conv1d(W, backend, same):
    t = case(20, W)
    past = torch.cat([t["initial_state"], t["x"].mT], 2)
    y = F.conv1d(past, t["weight"][:, None], t["bias"], groups=5).mT
    same(causal_conv(**t, backend=backend), (y, past[:, :, past.shape[2] - W + 1 :]))


@settings(deadline=None, max_examples=15)
@given(T=st.integers(2, 20), W=st.integers(1, 6), data=st.data())
def test_any_split_is_the_whole(T, W, data):
    tensors = case(T, W)
    x, state = tensors.pop("x"), tensors.pop("initial_state")
    cut = data.draw(st.integers(1, T - 1))
    y1, middle = causal_conv(x[:, :cut], **tensors, initial_state=state)
    y2, end = causal_conv(x[:, cut:], **tensors, initial_state=middle)
    want_y, want_end = causal_conv(x, **tensors, initial_state=state)
    torch.testing.assert_close(torch.cat([y1, y2], 1), want_y, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(end, want_end, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("W", [1, 4])
def test_packing_is_separate_calls(W, backend, same):
    tensors = case(20, W, B=1)
    x = tensors.pop("x")
    states = tensors["initial_state"] = torch.randn(4, 5, W - 1, dtype=torch.float64)
    borders = [0, 2, 2, 3, 20]
    got = causal_conv(x, **tensors, cu_seqlens=torch.tensor(borders), backend=backend)
    outputs, finals = [], []
    for i, (a, b) in enumerate(pairwise(borders)):
        final = states[i : i + 1]
        if a < b:
            y, final = causal_conv(x[:, a:b], **{**tensors, "initial_state": final})
            outputs.append(y)
        finals.append(final)
    same(got, (torch.cat(outputs, 1), torch.cat(finals)))


def test_packing_carries_gradients(agree):
    tensors = {**case(20, 4, B=1), "initial_state": torch.randn(3, 5, 3, dtype=torch.float64)}
    agree(causal_conv, tensors, cu_seqlens=torch.tensor([0, 2, 2, 20]), activation="silu")


def test_rows_do_not_see_each_other_and_steps_not_the_future(same):
    tensors = case(12, 4)
    x, state = tensors.pop("x"), tensors.pop("initial_state")
    y, end = causal_conv(x, **tensors, initial_state=state)
    same(causal_conv(x[1:], **tensors, initial_state=state[1:]), (y[1:], end[1:]))
    same([causal_conv(x[:, :7], **tensors, initial_state=state)[0]], [y[:, :7]])


def test_half_precision(agree):
    tensors = case(65, 4)
    half = {name: x.bfloat16() if name == "x" else x.float() for name, x in tensors.items()}
    y, state = causal_conv(**half)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.bfloat16)
    agree(causal_conv, tensors, torch.bfloat16, activation="silu")
