"""scan's Triton kernels: on a GPU, or on the CPU under TRITON_INTERPRET=1 (see conftest)."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from archsearch.kernels import scan
from archsearch.kernels import scan_triton as module
from archsearch.kernels.launch import Device, Tile

KINDS = ("none", "fixed", "scalar", "vector")


@pytest.fixture
def processors(monkeypatch):
    """processors(n): plan for a GPU of n processors; many cut time into segments."""

    def processors(n):
        monkeypatch.setattr(module, "device_of", lambda tensor: Device("sm_90", n))

    return processors


def case(kind, T, B=1, H=2, G=None, K=16, V=16, strength=1.0, N=None) -> dict[str, Any]:
    G = G or H
    shapes = {"fixed": (H,), "scalar": (B, T, H), "vector": (B, T, H, K)}
    return {
        "q": torch.randn(B, T, G, K),
        "k": torch.randn(B, T, G, K),
        "v": torch.randn(B, T, H, V),
        "log_decay": None if kind == "none" else -strength * torch.rand(shapes[kind]),
        "initial_state": torch.randn(N or B, H, K, V),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_is_the_reference(agree, kind, dtype):
    agree(scan, case(kind, 70), dtype, backend="triton")


@pytest.mark.parametrize("T", [1, 2, 16, 17, 64])
@pytest.mark.parametrize("kind", ["fixed", "vector"])
def test_any_length(agree, kind, T):
    agree(scan, case(kind, T, H=1), torch.float32, backend="triton")


@pytest.mark.parametrize(("K", "V"), [(1, 1), (24, 40), (40, 20), (16, 130)])
@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_any_width(agree, kind, K, V):
    agree(scan, case(kind, 35, H=1, K=K, V=V), torch.float32, backend="triton")


@pytest.mark.parametrize("kind", KINDS)
def test_heads_share_queries_and_keys(agree, kind):
    agree(scan, case(kind, 18, H=4, G=2), torch.float32, backend="triton")


@pytest.mark.parametrize("kind", KINDS)
def test_segments_are_one_pass(agree, processors, monkeypatch, kind):
    """The same call cut into segments of time, and not: five launches at most, all told."""
    launches = []

    def count(kernel, programs, *arguments, **constants):
        launches.append(programs)
        return launch(kernel, programs, *arguments, **constants)

    launch = module.launch
    monkeypatch.setattr(module, "launch", count)
    tensors = case(kind, 130, H=1)
    processors(0)
    agree(scan, tensors, torch.float32, backend="triton")
    assert launches == [1, 1, 1, 1]
    launches.clear()
    processors(64)
    agree(scan, tensors, torch.float32, backend="triton")
    assert len(launches) == 5 and min(launches) > 1


@pytest.mark.parametrize("strength", [0.0, 1e-3, 20.0, 500.0])
@pytest.mark.parametrize("kind", ["fixed", "scalar", "vector"])
def test_decays_of_any_strength(agree, kind, strength):
    agree(scan, case(kind, 70, H=1, strength=strength), torch.float32, backend="triton")


@pytest.mark.parametrize("kind", ["fixed", "scalar", "vector"])
def test_the_tiles_change_nothing(agree, monkeypatch, kind):
    """Another block for each role, none of which is the whole width."""
    blocks = {"o": 16, "dq": 32, "dk": 16, "dv": 32}
    monkeypatch.setattr(
        module, "tile_of", lambda _, name, *shape: Tile(blocks[name.split()[1]], 4, 1)
    )
    agree(scan, case(kind, 35, H=1, K=40, V=50), torch.float32, backend="triton")


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_goes_step_by_step(kind, T):
    """Without gradients a few steps take another kernel."""
    for options in ({"B": 2, "H": 4, "G": 2, "K": 24, "V": 40}, {"B": 1, "K": 3, "V": 1}):
        tensors = case(kind, T, **options)
        want = scan(**tensors, backend="reference")
        got = scan(**tensors, backend="triton")
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        without = {**tensors, "initial_state": None}
        torch.testing.assert_close(
            scan(**without, backend="triton"), scan(**without), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_forgetting_everything_now_and_then(agree, kind):
    """Some steps forget all, the others nearly nothing: sums of decays lose nothing to them."""
    tensors = case(kind, 70, H=1, strength=1e-2)
    forget = torch.rand(tensors["log_decay"].shape) < 0.1
    tensors["log_decay"][forget] = -torch.inf
    agree(scan, tensors, torch.float32, backend="triton")


@pytest.mark.parametrize("kind", KINDS)
def test_packing_is_separate_calls(kind):
    borders = [0, 0, 1, 34, 70]
    tensors = case(kind, 70, N=4)
    cu_seqlens = torch.tensor(borders, dtype=torch.int32)
    o, states = scan(**tensors, cu_seqlens=cu_seqlens, backend="triton")
    assert torch.equal(states[0], tensors["initial_state"][0])
    for n, (a, b) in enumerate(pairwise(borders)):
        if a == b:
            continue
        g = tensors["log_decay"]
        span = {name: tensors[name][:, a:b] for name in "qkv"}
        span["log_decay"] = g if g is None or g.dim() == 1 else g[:, a:b]
        want_o, want = scan(**span, initial_state=tensors["initial_state"][n, None])
        torch.testing.assert_close(o[:, a:b], want_o, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(states[n, None], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["fixed", "scalar", "vector"])
def test_packing_carries_gradients(agree, kind):
    borders = torch.tensor([0, 25, 25, 60])
    agree(scan, case(kind, 60, N=3, H=1), torch.float32, cu_seqlens=borders, backend="triton")


@pytest.mark.parametrize("kind", ["fixed", "vector"])
def test_any_split_is_the_whole(kind):
    tensors = case(kind, 40, H=1)
    whole = scan(**tensors, backend="triton")
    g, state, outputs = tensors["log_decay"], tensors["initial_state"], []
    for a, b in pairwise([0, 1, 18, 40]):
        span = {name: tensors[name][:, a:b] for name in "qkv"}
        span["log_decay"] = g if g.dim() == 1 else g[:, a:b]
        o, state = scan(**span, initial_state=state, backend="triton")
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), whole[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, whole[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "T"), [("scalar", 130), ("vector", 40)])
def test_five_runs_are_bit_equal(kind, T, processors):
    processors(64)
    tensors = {n: x.requires_grad_() for n, x in case(kind, T, H=1).items()}

    def once():
        o, state = scan(**tensors, backend="triton")
        return torch.autograd.grad(o.sum() + state.sum(), list(tensors.values()))

    first = once()
    for _ in range(4):
        assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


def test_views_of_a_fused_projection_are_not_copied(agree, monkeypatch):
    """Strides are passed on; only a last axis that is not contiguous is copied."""
    fused = torch.randn(2, 20, 3 * 32).view(2, 20, 3, 2, 16)
    q, k, v = fused.unbind(2)
    assert not q.is_contiguous()
    copies = []
    monkeypatch.setattr(
        torch.Tensor, "contiguous", lambda x, **_: copies.append(x) or x.clone(), raising=True
    )
    got = scan(q, k, v, backend="triton")
    assert not copies
    monkeypatch.undo()
    torch.testing.assert_close(got, scan(q, k, v), rtol=1e-4, atol=1e-5)


def test_without_gradients_nothing_is_kept(processors):
    processors(64)
    tensors = case("scalar", 300, H=1)
    args = (*(tensors[n] for n in ("q", "k", "v", "log_decay")), 1.0, None, None)
    assert module.scan_triton(*args, False)[2].numel() == 0
    assert module.scan_triton(*args, True)[2].numel() > 0


def test_float64_is_refused():
    tensors = {n: x.double() for n, x in case("scalar", 5).items()}
    with pytest.raises(ValueError, match=r"takes float32, bfloat16 and float16; got torch.float64"):
        scan(**tensors, backend="triton")


def test_auto_stays_chunked_until_the_chip_has_been_checked():
    o, _ = scan(**{n: x.requires_grad_() for n, x in case("scalar", 5).items()})
    assert "chunked" in str(o.grad_fn)


def test_opcheck():
    tensors = {n: x.requires_grad_() for n, x in case("vector", 20, H=1).items()}
    q, k, v, g, state = tensors.values()
    results = torch.library.opcheck(module.scan_triton, (q, k, v, g, 0.5, state, None, True))
    assert set(results.values()) == {"SUCCESS"}
