"""delta_scan: every gradient against the step loop, the literal formula, and what a memory owes."""

import math
import sys
from itertools import pairwise, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.kernels import delta_scan, scan

KINDS = ("none", "fixed", "scalar")
LENGTHS = (1, 2, 31, 32, 33, 63, 64, 65, 130)
DTYPES = (torch.float64, torch.float32)


def case(kind, T, B=2, H=3, K=5, V=7, strength=1.0) -> dict[str, Any]:
    """Keys of length 0.8 to 1.2 and beta below 1: every step shrinks the state along its key."""

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64)

    lengths = 0.8 + 0.4 * torch.rand(B, T, H, 1, dtype=torch.float64)
    shapes = {"fixed": (H,), "scalar": (B, T, H)}
    decay = None if kind == "none" else -strength * torch.rand(shapes[kind], dtype=torch.float64)
    return {
        "q": draw(B, T, H, K),
        "k": F.normalize(draw(B, T, H, K), dim=-1) * lengths,
        "v": draw(B, T, H, V),
        "beta": torch.rand(B, T, H, dtype=torch.float64),
        "log_decay": decay,
        "initial_state": draw(B, H, K, V),
    }


def steps(tensors, span, state) -> dict[str, Any]:
    """The same call, over some of the steps, from another state."""
    g = tensors["log_decay"]
    return {
        **{name: tensors[name][:, span] for name in ("q", "k", "v", "beta")},
        "log_decay": g if g is None or g.dim() == 1 else g[:, span],
        "initial_state": state,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_chunked_is_the_reference(agree, kind, T, dtype):
    agree(delta_scan, case(kind, T), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_heads_and_long_sequences(agree, dtype):
    agree(delta_scan, case("scalar", 400, 1, 1, 40, 24, strength=0.1), dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_share_queries_and_keys(agree, same, kind, dtype):
    """Groups of heads: head h uses the key of group h // (H / G); gradients sum over the group."""
    tensors = case(kind, 67, H=6)
    shared = {**tensors, **{name: tensors[name][:, :, :2] for name in "qk"}}
    agree(delta_scan, shared, dtype)
    repeated = {name: shared[name].repeat_interleave(3, 2) for name in "qk"}
    same(delta_scan(**shared), delta_scan(**{**tensors, **repeated}))


@pytest.mark.parametrize(("B", "H", "K", "V"), [(1, 1, 1, 1), (3, 1, 1, 4), (1, 2, 6, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_smallest_widths(agree, kind, B, H, K, V):
    agree(delta_scan, case(kind, 67, B, H, K, V))


@pytest.mark.parametrize("kind", KINDS)
def test_absent_state_is_zeros_and_scale_is_a_factor(kind, same):
    tensors = case(kind, 70)
    state = tensors.pop("initial_state")
    default, named = delta_scan(**tensors), delta_scan(**tensors, initial_state=0 * state)
    same(default, named)
    same(delta_scan(**tensors, scale=3.0)[:1], [default[0] * 3.0 * 5**0.5])


@pytest.mark.parametrize("missing", ["log_decay", "initial_state"])
def test_absent_tensors_leave_the_other_gradients(agree, missing):
    agree(delta_scan, {**case("scalar", 70), missing: None}, torch.float64)


def test_decay_kinds_nest(same):
    tensors = case("fixed", 70)
    fixed = tensors.pop("log_decay")
    same(
        delta_scan(**tensors, log_decay=fixed.expand(2, 70, 3)),
        delta_scan(**tensors, log_decay=fixed),
    )
    same(delta_scan(**tensors, log_decay=0 * fixed), delta_scan(**tensors))


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(monkeypatch, kind, backend):
    module = sys.modules["archsearch.kernels.delta_scan_chunked"]
    monkeypatch.setattr(module, "CHUNK", 4)  # 3 chunks, one ragged
    tensors = case(kind, 9, B=1, H=1, K=3, V=2)
    names = [name for name, x in tensors.items() if x is not None]

    def call(*values):
        given = dict(zip(names, values, strict=True))
        return delta_scan(**{"log_decay": None, **given}, backend=backend)

    assert torch.autograd.gradcheck(call, [tensors[name].requires_grad_() for name in names])


@pytest.mark.parametrize("size", [1, 2, 16, 64, 256])
def test_the_size_of_a_chunk_changes_nothing(monkeypatch, agree, size):
    monkeypatch.setattr(sys.modules["archsearch.kernels.delta_scan_chunked"], "CHUNK", size)
    for dtype in DTYPES:
        agree(delta_scan, case("scalar", 70), dtype)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("kind", ["none", "scalar"])
def test_literal_formula(kind, backend, same):
    """S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, as matrix products."""
    tensors = case(kind, 40, B=1, H=1)
    q, k, v, beta = (tensors[name][0, :, 0] for name in ("q", "k", "v", "beta"))
    decay = torch.ones_like(beta) if kind == "none" else tensors["log_decay"][0, :, 0].exp()
    S, outputs, eye = tensors["initial_state"][0, 0], [], torch.eye(5, dtype=torch.float64)
    for t in range(40):
        erase = eye - beta[t] * torch.outer(k[t], k[t])
        S = decay[t] * erase @ S + beta[t] * torch.outer(k[t], v[t])
        outputs.append(5**-0.5 * S.mT @ q[t])
    got = delta_scan(**tensors, backend=backend)
    same(got, (torch.stack(outputs)[None, :, None], S[None, None]))


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_beta_of_zero_only_decays(backend, same):
    tensors = case("scalar", 70)
    tensors["beta"] = torch.zeros_like(tensors["beta"])
    without_values = {n: x for n, x in tensors.items() if n != "beta"} | {"v": 0 * tensors["v"]}
    same(delta_scan(**tensors, backend=backend), scan(**without_values, backend="reference"))
    tensors["log_decay"] = None
    state = delta_scan(**tensors, backend=backend)[1]
    same([state], [tensors["initial_state"]])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_beta_of_one_stores_and_replaces(backend, same):
    """Keys e_0, e_1, ... again and again: the state is the last value under each, and no other."""
    K, T = 5, 83
    tensors = case("none", T, K=K)
    order = torch.arange(T) % K
    k = torch.eye(K, dtype=torch.float64)[order][None, :, None].expand(2, T, 3, K)
    stored = {**tensors, "k": k, "q": k, "beta": torch.ones(2, T, 3, dtype=torch.float64)}
    o, state = delta_scan(**stored, scale=1.0, backend=backend)
    same([o], [tensors["v"]])
    last = [max(t for t in range(T) if t % K == i) for i in range(K)]
    same([state], [tensors["v"][:, last].movedim(1, 2)])


@pytest.mark.parametrize(
    ("beta", "dtype"), [*product([0.5, 1.0, 1.5], DTYPES), (2.0, torch.float64)]
)
def test_one_key_again_and_again(agree, beta, dtype):
    """The hardest system: no key is new. At 2 each step is a mirror, which damps no rounding."""
    tensors = case("scalar", 70, strength=0.01)
    tensors["k"] = F.normalize(tensors["k"][:, :1], dim=-1).expand_as(tensors["k"]).clone()
    tensors["beta"] = torch.full_like(tensors["beta"], beta)
    agree(delta_scan, tensors, dtype)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=8)
@given(T=st.integers(2, 140), data=st.data())
def test_any_split_is_the_whole(kind, T, data):
    tensors = case(kind, T, B=1)
    cut = data.draw(st.integers(1, T - 1))
    o1, state = delta_scan(**steps(tensors, slice(0, cut), tensors["initial_state"]))
    o2, state = delta_scan(**steps(tensors, slice(cut, T), state))
    want_o, want_state = delta_scan(**tensors)
    torch.testing.assert_close(torch.cat([o1, o2], 1), want_o, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, want_state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_step_by_step_is_the_whole(kind, same):
    tensors = case(kind, 67)
    state, outputs = tensors["initial_state"], []
    for t in range(67):
        o, state = delta_scan(**steps(tensors, slice(t, t + 1), state))
        outputs.append(o)
    same((torch.cat(outputs, 1), state), delta_scan(**tensors))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("g", [0.0, -1e-3, -1.0, -50.0, -500.0, -math.inf])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_decays_of_any_strength(agree, kind, g, dtype):
    tensors = case(kind, 70)
    tensors["log_decay"] = torch.full_like(tensors["log_decay"], g)
    agree(delta_scan, tensors, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixed_decays_lose_no_digits(agree, dtype):
    """Mild decays between strong ones: where differences of cumulative sums go wrong."""
    tensors = case("scalar", 130)
    levels = torch.tensor([0.0, -1e-4, -1e-3, -500.0, -1e4, -math.inf], dtype=torch.float64)
    drawn = torch.multinomial(torch.tensor([4.0, 4, 4, 1, 1, 1]), tensors["beta"].numel(), True)
    tensors["log_decay"] = levels[drawn].view_as(tensors["beta"])
    agree(delta_scan, tensors, dtype)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("kind", KINDS)
def test_packing_is_separate_calls(kind, backend, same):
    tensors = case(kind, 150, B=1)
    tensors["initial_state"] = torch.randn(5, 3, 5, 7, dtype=torch.float64)
    borders = [0, 1, 1, 66, 150, 150]
    got = delta_scan(**tensors, cu_seqlens=torch.tensor(borders), backend=backend)
    outputs, states = [], []
    for i, (a, b) in enumerate(pairwise(borders)):
        state = tensors["initial_state"][i : i + 1]
        if a < b:
            o, state = delta_scan(**steps(tensors, slice(a, b), state), backend="reference")
            outputs.append(o)
        states.append(state)
    same(got, (torch.cat(outputs, 1), torch.cat(states)))


def test_packing_carries_gradients(agree):
    tensors = case("scalar", 90, B=1)
    tensors["initial_state"] = torch.randn(3, 3, 5, 7, dtype=torch.float64)
    agree(delta_scan, tensors, cu_seqlens=torch.tensor([0, 66, 66, 90], dtype=torch.int32))
    tensors["initial_state"] = None
    agree(delta_scan, tensors, cu_seqlens=torch.tensor([0, 66, 66, 90]))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_see_each_other_and_steps_not_the_future(kind, same):
    tensors = case(kind, 70)
    o, state = delta_scan(**tensors)
    row: dict[str, Any] = {name: x if x is None else x[1:] for name, x in tensors.items()}
    if kind == "fixed":
        row["log_decay"] = tensors["log_decay"]
    same(delta_scan(**row), (o[1:], state[1:]))
    early = delta_scan(**steps(tensors, slice(0, 33), tensors["initial_state"]))[0]
    same([early], [o[:, :33]])


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_inputs_keep_a_float32_state(agree, kind):
    tensors = case(kind, 130)
    half: dict[str, Any] = {n: None if x is None else x.bfloat16() for n, x in tensors.items()}
    o, state = delta_scan(**half)
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    agree(delta_scan, tensors, torch.bfloat16)


def test_inputs_need_not_be_contiguous(agree):
    tensors = case("scalar", 70)
    turned = {name: x.mT.contiguous().mT for name, x in tensors.items()}
    assert not turned["q"].is_contiguous()
    agree(delta_scan, turned)


def test_inputs_stay_as_they_are(agree):
    """With one head and whole chunks nothing needs to move: what came must not be written to."""
    tensors = case("scalar", 64, H=1)
    before = {name: x.clone() for name, x in tensors.items()}
    agree(delta_scan, tensors)
    torch.testing.assert_close(tensors, before, rtol=0, atol=0)


@pytest.mark.parametrize("which", [0, 1])
def test_either_output_alone_has_gradients(which):
    tensors = case("scalar", 70)
    leaves = [x.requires_grad_() for x in tensors.values()]
    grads = [
        torch.autograd.grad(
            delta_scan(**tensors, backend=backend)[which].sum(), leaves, materialize_grads=True
        )
        for backend in ("chunked", "reference")
    ]
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
