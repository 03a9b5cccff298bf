"""delta_scan's Triton kernels: on a GPU, or on the CPU under TRITON_INTERPRET=1 (see conftest)."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from archsearch.kernels import delta_scan
from archsearch.kernels import delta_scan_triton as module
from archsearch.kernels.launch import Tile

KINDS = ("none", "fixed", "scalar")


def case(kind, T, B=1, H=2, G=None, K=16, V=16, strength=1.0, N=None) -> dict[str, Any]:
    """Keys of length 0.8 to 1.2 and beta below 1: every step shrinks the state along its key."""
    G = G or H
    shapes = {"fixed": (H,), "scalar": (B, T, H)}
    return {
        "q": torch.randn(B, T, G, K),
        "k": F.normalize(torch.randn(B, T, G, K), dim=-1) * (0.8 + 0.4 * torch.rand(B, T, G, 1)),
        "v": torch.randn(B, T, H, V),
        "beta": torch.rand(B, T, H),
        "log_decay": None if kind == "none" else -strength * torch.rand(shapes[kind]),
        "initial_state": torch.randn(N or B, H, K, V),
    }


def span(tensors, a, b, state) -> dict[str, Any]:
    """The same call over some of the steps, from another state."""
    g = tensors["log_decay"]
    steps = {name: tensors[name][:, a:b] for name in ("q", "k", "v", "beta")}
    steps["log_decay"] = g if g is None or g.dim() == 1 else g[:, a:b]
    return {**steps, "initial_state": state}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_is_the_reference(agree, kind, dtype):
    agree(delta_scan, case(kind, 70), dtype, backend="triton")


@pytest.mark.parametrize("T", [1, 2, 16, 17, 32, 33])
def test_any_length(agree, T):
    agree(delta_scan, case("scalar", T, H=1), torch.float32, backend="triton")


def test_chunks_of_32_steps(agree, monkeypatch):
    """Those of half precision, which the interpreter would round: here exactly."""
    chunks = module.Chunks.__init__

    def longer(self, q, k, v, beta, log_decay, scale, cu_seqlens):
        chunks(self, q, k, v, beta, log_decay, scale, cu_seqlens)
        self.C, self.chunks = 32, 2 * 2

    monkeypatch.setattr(module.Chunks, "__init__", longer)
    agree(delta_scan, case("scalar", 60, B=2, H=1), torch.float32, backend="triton")


@pytest.mark.parametrize(("K", "V"), [(1, 1), (24, 40), (40, 20), (80, 16)])
def test_any_width(agree, K, V):
    agree(delta_scan, case("fixed", 35, H=1, K=K, V=V), torch.float32, backend="triton")


@pytest.mark.parametrize("kind", KINDS)
def test_heads_share_queries_and_keys(agree, kind):
    agree(delta_scan, case(kind, 18, H=4, G=2), torch.float32, backend="triton")


@pytest.mark.parametrize("strength", [0.0, 1e-3, 20.0, 500.0])
@pytest.mark.parametrize("kind", ["fixed", "scalar"])
def test_decays_of_any_strength(agree, kind, strength):
    agree(delta_scan, case(kind, 35, H=1, strength=strength), torch.float32, backend="triton")


def test_forgetting_everything_now_and_then(agree):
    tensors = case("scalar", 35, strength=1e-2)
    tensors["log_decay"][torch.rand(tensors["log_decay"].shape) < 0.1] = -torch.inf
    agree(delta_scan, tensors, torch.float32, backend="triton")


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_one_key_again_and_again(agree, beta):
    """The systems are as far from diagonal as they can be: powers of G would reach 1e8."""
    tensors = case("none", 35)
    tensors["k"][:] = F.normalize(tensors["k"][:, :1], dim=-1)
    tensors["beta"].fill_(beta)
    agree(delta_scan, tensors, torch.float32, backend="triton")


def test_the_tiles_change_nothing(agree, monkeypatch):
    monkeypatch.setattr(module, "tile_of", lambda *_: Tile(16, 4, 1))
    agree(delta_scan, case("scalar", 35, H=1, K=40, V=50), torch.float32, backend="triton")


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_goes_step_by_step(kind, T):
    """Without gradients a few steps take another kernel."""
    for options in ({"B": 2, "H": 4, "G": 2, "K": 24, "V": 40}, {"B": 1, "K": 3, "V": 1}):
        tensors = case(kind, T, **options)
        want = delta_scan(**tensors, backend="reference")
        got = delta_scan(**tensors, backend="triton")
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packing_is_separate_calls(kind, gradients):
    """Sequences that are empty, of one step, of exactly two chunks, and ragged."""
    borders = [0, 0, 1, 33, 50, 50]
    tensors = case(kind, 50, H=1, N=5)
    given = [x.requires_grad_(gradients) for x in tensors.values() if x is not None]
    o, states = delta_scan(**tensors, cu_seqlens=torch.tensor(borders), backend="triton")
    wanted, ends = [], []
    for n, (a, b) in enumerate(pairwise(borders)):
        state = tensors["initial_state"][n, None]
        if a < b:
            part, state = delta_scan(**span(tensors, a, b, state))
            wanted.append(part)
        ends.append(state)
    want_o, want_states = torch.cat(wanted, 1), torch.cat(ends)
    torch.testing.assert_close(o, want_o, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states, want_states, rtol=1e-4, atol=1e-5)
    if gradients:
        weights = torch.randn_like(o)
        got = torch.autograd.grad((o * weights).sum() + states.square().sum(), given)
        want = torch.autograd.grad((want_o * weights).sum() + want_states.square().sum(), given)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["fixed", "scalar"])
def test_any_split_is_the_whole(kind):
    tensors = case(kind, 40, H=1)
    whole = delta_scan(**tensors, backend="triton")
    state, outputs = tensors["initial_state"], []
    for a, b in pairwise([0, 1, 18, 40]):
        o, state = delta_scan(**span(tensors, a, b, state), backend="triton")
        outputs.append(o)
    torch.testing.assert_close((torch.cat(outputs, 1), state), whole, rtol=1e-4, atol=1e-5)


def test_launches_and_what_is_kept(monkeypatch):
    """Two forward and four backward; kept are the inputs."""
    launches = []

    def count(kernel, *arguments, **constants):
        launches.append(kernel)
        return launch(kernel, *arguments, **constants)

    launch = module.launch
    monkeypatch.setattr(module, "launch", count)
    tensors = {n: x.requires_grad_() for n, x in case("scalar", 35, B=2, H=2).items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        o, _ = delta_scan(**tensors, backend="triton")
    assert len(launches) == 2
    assert {x.data_ptr() for x in kept} == {x.data_ptr() for x in tensors.values()}
    o.sum().backward()
    assert len(launches) == 6


def test_five_runs_are_bit_equal():
    tensors = {n: x.requires_grad_() for n, x in case("scalar", 17, H=1).items()}

    def once():
        o, state = delta_scan(**tensors, backend="triton")
        return torch.autograd.grad(o.sum() + state.sum(), list(tensors.values()))

    first = once()
    for _ in range(4):
        assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


def test_views_of_a_fused_projection():
    fused = torch.randn(2, 20, 3 * 32 + 4)
    q, k, v = fused[..., :96].view(2, 20, 3, 2, 16).unbind(2)
    beta, g = fused[..., 96:98].sigmoid(), -fused[..., 98:].exp()
    assert not q.is_contiguous()
    inputs = q, F.normalize(k, dim=-1), v, beta, g
    got = delta_scan(*inputs, backend="triton")
    torch.testing.assert_close(got, delta_scan(*inputs), rtol=1e-4, atol=1e-5)


def test_what_pytorch_is_owed():
    tensors = {n: x.requires_grad_() for n, x in case("scalar", 3, H=1).items()}
    *inputs, state = tensors.values()
    arguments = (*inputs, 0.5, state, None, False)
    results = torch.library.opcheck(module.delta_scan_triton, arguments)
    assert set(results.values()) == {"SUCCESS"}
    flops = []
    for backend in ("chunked", "triton"):
        with FlopCounterMode(display=False) as counter:
            delta_scan(**tensors, backend=backend)[0].sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0
