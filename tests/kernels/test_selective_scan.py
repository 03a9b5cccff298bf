"""selective_scan: values and every gradient against the step loop, for any length and memory."""

import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.kernels import scan, selective_scan

LENGTHS = (1, 2, 16, 17, 63, 64, 65, 130)
PER_STEP = ("x", "delta", "B", "C")


MODULE = sys.modules["archsearch.kernels.selective_scan_chunked"]


def case(T, batch=2, D=5, N=3) -> dict[str, Any]:
    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64)

    return {
        "x": draw(batch, T, D),
        "delta": torch.nn.functional.softplus(draw(batch, T, D)),
        "A": -torch.rand(D, N, dtype=torch.float64) - 0.1,
        "B": draw(batch, T, N),
        "C": draw(batch, T, N),
        "D": draw(D),
        "initial_state": draw(batch, D, N),
    }


def steps(tensors, span, state) -> dict[str, Any]:
    cut = {name: tensors[name][:, span] for name in PER_STEP}
    return {**tensors, **cut, "initial_state": state}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("T", LENGTHS)
def test_chunked_is_the_reference(agree, T, dtype):
    agree(selective_scan, case(T), dtype)


@pytest.mark.parametrize("steps", [1, 3, 35, 70, 100])
def test_the_block_changes_nothing(agree, monkeypatch, steps):
    """One step at a time, blocks with padded steps and without, one block."""
    monkeypatch.setattr(MODULE, "_block", lambda *_: steps)
    agree(selective_scan, case(70))


@pytest.mark.parametrize("absent", [["D"], ["initial_state"], ["D", "initial_state"]])
@pytest.mark.parametrize("T", [1, 40])
def test_absent_tensors(agree, absent, T):
    agree(selective_scan, {**case(T), **dict.fromkeys(absent)})


@pytest.mark.parametrize(("batch", "D", "N"), [(1, 1, 1), (3, 1, 4), (1, 6, 1)])
def test_smallest_widths(agree, batch, D, N):
    agree(selective_scan, case(37, batch, D, N))


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_gradcheck(monkeypatch, backend):
    monkeypatch.setattr(MODULE, "_block", lambda *_: 3)  # 7 steps: three blocks, two padded steps
    tensors = case(7, 1, 3, 2)

    def call(*values):
        return selective_scan(**dict(zip(tensors, values, strict=True)), backend=backend)

    assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in tensors.values()])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_is_a_scan_with_one_head_per_channel(backend, same):
    """With k = B, q = C, v = delta x and g = delta A, it is the vector-decay scan, V = 1."""
    t = case(40)
    y, state = selective_scan(**t, backend=backend)
    heads = (2, 40, 5, 3)
    o, S = scan(
        t["C"][:, :, None].expand(heads),
        t["B"][:, :, None].expand(heads),
        (t["delta"] * t["x"])[..., None],
        t["delta"][..., None] * t["A"],
        scale=1.0,
        initial_state=t["initial_state"][..., None],
        backend="reference",
    )
    same((y, state), (o[..., 0] + t["D"] * t["x"], S[..., 0]))


@settings(deadline=None, max_examples=15)
@given(T=st.integers(2, 100), data=st.data())
def test_any_split_is_the_whole(T, data):
    tensors = case(T)
    cut = data.draw(st.integers(1, T - 1))
    y1, state = selective_scan(**steps(tensors, slice(0, cut), tensors["initial_state"]))
    y2, state = selective_scan(**steps(tensors, slice(cut, T), state))
    want_y, want_state = selective_scan(**tensors)
    torch.testing.assert_close(torch.cat([y1, y2], 1), want_y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, want_state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rate", [0.0, 1e-3, 50.0, 500.0])
def test_decays_of_any_strength(agree, rate, dtype):
    tensors = case(70)
    tensors["A"] = torch.full_like(tensors["A"], -rate)
    agree(selective_scan, tensors, dtype)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_packing_is_separate_calls(backend, same):
    tensors = case(90, batch=1)
    tensors["initial_state"] = torch.randn(4, 5, 3, dtype=torch.float64)
    borders = [0, 0, 1, 66, 90]
    got = selective_scan(**tensors, cu_seqlens=torch.tensor(borders), backend=backend)
    outputs, states = [], []
    for i, (a, b) in enumerate(pairwise(borders)):
        state = tensors["initial_state"][i : i + 1]
        if a < b:
            y, state = selective_scan(**steps(tensors, slice(a, b), state), backend="reference")
            outputs.append(y)
        states.append(state)
    same(got, (torch.cat(outputs, 1), torch.cat(states)))


def test_packing_carries_gradients(agree):
    tensors = {**case(60, batch=1), "initial_state": torch.randn(3, 5, 3, dtype=torch.float64)}
    agree(selective_scan, tensors, cu_seqlens=torch.tensor([0, 25, 25, 60]))


def test_rows_do_not_see_each_other_and_steps_not_the_future(same):
    tensors = case(70)
    y, state = selective_scan(**tensors)
    row = {
        name: x[1:] if name in (*PER_STEP, "initial_state") else x for name, x in tensors.items()
    }
    same(selective_scan(**row), (y[1:], state[1:]))
    early = selective_scan(**steps(tensors, slice(0, 33), tensors["initial_state"]))[0]
    same([early], [y[:, :33]])


def test_half_precision_inputs_keep_a_float32_state(agree):
    """Activations in bfloat16, parameters in float32: what autocast hands over."""
    tensors = case(130)
    half = {n: x.bfloat16() if n in PER_STEP else x.float() for n, x in tensors.items()}
    y, state = selective_scan(**half)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    agree(selective_scan, tensors, torch.bfloat16)
