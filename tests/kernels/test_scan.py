"""scan: every decay kind and every gradient, against the step loop and the parallel form."""

import math
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.kernels import scan

KINDS = ("none", "fixed", "scalar", "vector")
LENGTHS = (1, 2, 63, 64, 65, 130)
DTYPES = (torch.float64, torch.float32)


def decay(kind, B, T, H, K, strength=1.0):
    shapes = {"fixed": (H,), "scalar": (B, T, H), "vector": (B, T, H, K)}
    if kind == "none":
        return None
    return -strength * torch.rand(shapes[kind], dtype=torch.float64)


def case(kind, T, B=2, H=3, K=5, V=7, strength=1.0) -> dict[str, Any]:
    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64)

    return {
        "q": draw(B, T, H, K),
        "k": draw(B, T, H, K),
        "v": draw(B, T, H, V),
        "log_decay": decay(kind, B, T, H, K, strength),
        "initial_state": draw(B, H, K, V),
    }


def steps(tensors, span, state) -> dict[str, Any]:
    """The same call, over some of the steps, from another state."""
    g = tensors["log_decay"]
    return {
        **{name: tensors[name][:, span] for name in "qkv"},
        "log_decay": g if g is None or g.dim() == 1 else g[:, span],
        "initial_state": state,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_chunked_is_the_reference(agree, kind, T, dtype):
    agree(scan, case(kind, T), dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_share_queries_and_keys(agree, same, kind, dtype):
    """Groups of heads: head h reads what group h // (H / G) writes; gradients sum over the group."""
    tensors = case(kind, 67, H=6)
    shared = {**tensors, **{name: tensors[name][:, :, :2] for name in "qk"}}
    agree(scan, shared, dtype)
    repeated = {name: shared[name].repeat_interleave(3, 2) for name in "qk"}
    same(scan(**shared), scan(**{**tensors, **repeated}))


@pytest.mark.parametrize(("B", "H", "K", "V"), [(1, 1, 1, 1), (3, 1, 1, 4), (1, 2, 6, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_smallest_widths(agree, kind, B, H, K, V):
    agree(scan, case(kind, 67, B, H, K, V))


@pytest.mark.parametrize("kind", KINDS)
def test_absent_state_is_zeros_and_scale_is_a_factor(kind, same):
    tensors = case(kind, 70)
    state = tensors.pop("initial_state")
    default, named = scan(**tensors), scan(**tensors, initial_state=torch.zeros_like(state))
    same(default, named)
    same(scan(**tensors, scale=3.0)[:1], [default[0] * 3.0 * 5**0.5])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(monkeypatch, kind, backend):
    monkeypatch.setattr(
        sys.modules["archsearch.kernels.scan_chunked"], "CHUNK", 4
    )  # 3 chunks, one ragged
    tensors = case(kind, 9, B=1, H=1, K=3, V=2)
    names = [name for name, x in tensors.items() if x is not None]

    def call(*values):
        return scan(**{"log_decay": None, **dict(zip(names, values, strict=True))}, backend=backend)

    assert torch.autograd.gradcheck(call, [tensors[name].requires_grad_() for name in names])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("kind", KINDS)
def test_parallel_form(kind, backend, same):
    """O = ((Q K^T) * M) V with M_ij = exp(G_i - G_j), the third form of the same function."""
    B, T, H, K = 2, 40, 3, 5
    tensors = case(kind, T, B, H, K)
    del tensors["initial_state"]
    g = tensors["log_decay"]
    g = torch.zeros(B, T, H, K, dtype=torch.float64) if g is None else g
    g = g[None, None, :].expand(B, T, H) if g.dim() == 1 else g
    g = g[..., None].expand(B, T, H, K) if g.dim() == 3 else g
    G = g.cumsum(1)
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    M = (G[:, :, None] - G[:, None, :]).exp() * causal[None, :, :, None, None]
    scores = torch.einsum("bihk,bjhk,bijhk->bhij", tensors["q"], tensors["k"], M)
    o = torch.einsum("bhij,bjhv->bihv", scores, tensors["v"]) * K**-0.5
    S = torch.einsum("bjhk,bjhv->bhkv", (G[:, -1:] - G).exp() * tensors["k"], tensors["v"])
    same(scan(**tensors, backend=backend), (o, S))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=8)
@given(T=st.integers(2, 140), data=st.data())
def test_any_split_is_the_whole(kind, T, data):
    tensors = case(kind, T, B=1)
    cut = data.draw(st.integers(1, T - 1))
    o1, state = scan(**steps(tensors, slice(0, cut), tensors["initial_state"]))
    o2, state = scan(**steps(tensors, slice(cut, T), state))
    want_o, want_state = scan(**tensors)
    torch.testing.assert_close(torch.cat([o1, o2], 1), want_o, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, want_state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_step_by_step_is_the_whole(kind, same):
    tensors = case(kind, 67)
    state, outputs = tensors["initial_state"], []
    for t in range(67):
        o, state = scan(**steps(tensors, slice(t, t + 1), state))
        outputs.append(o)
    same((torch.cat(outputs, 1), state), scan(**tensors))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("g", [0.0, -1e-3, -1.0, -20.0, -50.0, -500.0, -math.inf])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_decays_of_any_strength(agree, kind, g, dtype):
    tensors = case(kind, 70)
    tensors["log_decay"] = torch.full_like(tensors["log_decay"], g)
    agree(scan, tensors, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_mixed_decays_lose_no_digits(agree, kind, dtype):
    """Mild decays between strong ones: where differences of cumulative sums go wrong."""
    tensors = case(kind, 130)
    levels = torch.tensor([0.0, -1e-4, -1e-2, -1e4, -math.inf], dtype=torch.float64)
    drawn = torch.multinomial(torch.tensor([4.0, 4, 4, 1, 1]), tensors["log_decay"].numel(), True)
    tensors["log_decay"] = levels[drawn].view_as(tensors["log_decay"])
    agree(scan, tensors, dtype)


def test_decay_kinds_nest(same):
    tensors = case("fixed", 70)
    fixed = tensors.pop("log_decay")
    scalar = fixed.expand(2, 70, 3)
    vector = scalar[..., None].expand(2, 70, 3, 5)
    want = scan(**tensors, log_decay=fixed)
    same(scan(**tensors, log_decay=scalar), want)
    same(scan(**tensors, log_decay=vector), want)
    same(scan(**tensors, log_decay=0 * vector), scan(**tensors))


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("kind", KINDS)
def test_packing_is_separate_calls(kind, backend, same):
    tensors = case(kind, 150, B=1)
    tensors["initial_state"] = torch.randn(5, 3, 5, 7, dtype=torch.float64)
    borders = [0, 1, 1, 66, 150, 150]
    got = scan(**tensors, cu_seqlens=torch.tensor(borders), backend=backend)
    outputs, states = [], []
    for i, (a, b) in enumerate(pairwise(borders)):
        state = tensors["initial_state"][i : i + 1]
        if a < b:
            o, state = scan(**steps(tensors, slice(a, b), state), backend="reference")
            outputs.append(o)
        states.append(state)
    same(got, (torch.cat(outputs, 1), torch.cat(states)))


def test_packing_carries_gradients(agree):
    tensors = case("vector", 90, B=1)
    tensors["initial_state"] = torch.randn(3, 3, 5, 7, dtype=torch.float64)
    agree(scan, tensors, cu_seqlens=torch.tensor([0, 66, 66, 90], dtype=torch.int32))
    tensors["initial_state"] = None
    agree(scan, tensors, cu_seqlens=torch.tensor([0, 66, 66, 90]))


@pytest.mark.parametrize("kind", KINDS)
def test_packing_has_the_gradients_of_separate_calls(kind, same):
    """Sequences of like length run together, padded: nothing may come from the padding."""
    tensors = case(kind, 40, B=1)
    tensors["initial_state"] = torch.randn(6, 3, 5, 7, dtype=torch.float64)
    borders = [0, 9, 9, 21, 24, 26, 40]
    leaves = [x.requires_grad_() for x in tensors.values() if x is not None]
    o, states = scan(**tensors, cu_seqlens=torch.tensor(borders))
    weights = torch.randn_like(o), torch.randn_like(states)
    total = torch.zeros((), dtype=torch.float64)
    for i, (a, b) in enumerate(pairwise(borders)):
        state = tensors["initial_state"][i : i + 1]
        if a < b:
            one, state = scan(**steps(tensors, slice(a, b), state), backend="reference")
            total = total + (one * weights[0][:, a:b]).sum()
        total = total + (state * weights[1][i]).sum()
    want = torch.autograd.grad(total, leaves)
    same(torch.autograd.grad((o, states), leaves, weights), want)


@pytest.mark.parametrize("tile", [1, 6, 12, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_the_tile_changes_nothing(agree, monkeypatch, kind, tile):
    """One chunk at a time, two chunks of a row, a row at a time, all at once; with groups."""
    module = sys.modules["archsearch.kernels.scan_chunked"]
    monkeypatch.setattr(module, "CHUNK", 8)
    monkeypatch.setattr(module, "TILE", tile)
    tensors = case(kind, 37, B=3, H=4)
    agree(scan, {**tensors, **{name: tensors[name][:, :, :2] for name in "qk"}})


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_decay_without_gradient_changes_no_other(kind, same):
    tensors = case(kind, 70)
    decay = tensors.pop("log_decay")
    leaves = [x.requires_grad_() for x in tensors.values()]
    grads = [
        torch.autograd.grad(scan(**tensors, log_decay=g)[0].sum(), leaves, materialize_grads=True)
        for g in (decay, decay.clone().requires_grad_())
    ]
    same(*grads)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_see_each_other_and_steps_not_the_future(kind, same):
    tensors = case(kind, 70)
    g = tensors["log_decay"]
    o, state = scan(**tensors)
    row: dict[str, Any] = {name: x if x is None else x[1:] for name, x in tensors.items()}
    row["log_decay"] = g if kind in ("none", "fixed") else g[1:]
    same(scan(**row), (o[1:], state[1:]))
    early = scan(**steps(tensors, slice(0, 33), tensors["initial_state"]))[0]
    same([early], [o[:, :33]])


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_inputs_keep_a_float32_state(agree, kind):
    tensors = case(kind, 130)
    half: dict[str, Any] = {n: None if x is None else x.bfloat16() for n, x in tensors.items()}
    o, state = scan(**half)
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    agree(scan, tensors, torch.bfloat16)


def test_inputs_need_not_be_contiguous(agree):
    tensors = case("vector", 70)
    turned = {name: x.mT.contiguous().mT for name, x in tensors.items()}
    assert not turned["q"].is_contiguous()
    agree(scan, turned)


@pytest.mark.parametrize("which", [0, 1])
def test_either_output_alone_has_gradients(which):
    tensors = case("vector", 70)
    leaves = [x.requires_grad_() for x in tensors.values()]
    grads = [
        torch.autograd.grad(
            scan(**tensors, backend=backend)[which].sum(), leaves, materialize_grads=True
        )
        for backend in ("chunked", "reference")
    ]
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
