"""selective_scan's Triton kernels: on a GPU, or on the CPU under TRITON_INTERPRET=1."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from archsearch.kernels import selective_scan
from archsearch.kernels import selective_scan_triton as module
from archsearch.kernels.launch import Device, Tile
from archsearch.kernels.tiles import TABLE

PER_STEP = ("x", "delta", "B", "C")


def case(T, batch=1, D=3, N=2, sequences=None) -> dict[str, Any]:
    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64)

    return {
        "x": draw(batch, T, D),
        "delta": torch.nn.functional.softplus(draw(batch, T, D)),
        "A": -torch.rand(D, N, dtype=torch.float64) - 0.1,
        "B": draw(batch, T, N),
        "C": draw(batch, T, N),
        "D": draw(D),
        "initial_state": draw(sequences or batch, D, N),
    }


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Several intervals, blocks and tiles of channels, the last ones ragged, from small shapes."""
    monkeypatch.setattr(module, "STEPS", 2)
    monkeypatch.setattr(module, "INTERVAL", 4)
    monkeypatch.setattr(module, "tile_of", lambda *_: Tile(64, 1, 1))
    processors(monkeypatch, 0)


def processors(monkeypatch, number: int) -> None:
    """None: every sequence is one part; very many: parts are as short as can be."""
    device = Device("sm_90", number)
    monkeypatch.setattr(module, "device_of", lambda _: device)


def parts(tensors, cu_seqlens=None):
    x, delta, A, B, C = (tensors[name] for name in ("x", "delta", "A", "B", "C"))
    return module.Sweeps(x, delta, A, B, C, cu_seqlens).parts


@pytest.mark.parametrize(("T", "N"), [(1, 1), (2, 3), (9, 5)])
def test_is_the_reference(agree, T, N):
    agree(selective_scan, case(T, batch=2, N=N), torch.float32, backend="triton")


@pytest.mark.parametrize("T", [12, 15])
def test_parts_of_time_make_no_difference(agree, monkeypatch, T):
    processors(monkeypatch, 1000)
    assert parts(case(T, batch=2)) == (4, 2 * ((T + 3) // 4), 2)
    agree(selective_scan, case(T, batch=2), torch.float32, backend="triton")


def test_tiles_of_channels(agree):
    agree(selective_scan, case(5, D=67), torch.float32, backend="triton")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(agree, dtype):
    """Activations in half precision, parameters in float32: what autocast hands over."""
    tensors = case(7)
    half = {n: x.to(dtype) if n in PER_STEP else x.float() for n, x in tensors.items()}
    y, state = selective_scan(**half, backend="triton")
    assert (y.dtype, state.dtype) == (dtype, torch.float32)
    agree(selective_scan, tensors, dtype, backend="triton")


@pytest.mark.parametrize("absent", ["D", "initial_state"])
def test_absent_tensors(agree, monkeypatch, absent):
    processors(monkeypatch, 1000)
    agree(selective_scan, {**case(13), absent: None}, torch.float32, backend="triton")


@pytest.mark.parametrize("rate", [0.0, 1e-3, 50.0, 500.0])
def test_decays_of_any_strength(agree, monkeypatch, rate):
    processors(monkeypatch, 1000)
    tensors = case(13)
    tensors["A"] = torch.full_like(tensors["A"], -rate)
    agree(selective_scan, tensors, torch.float32, backend="triton")


@pytest.mark.parametrize("split", [False, True])
def test_packing_is_separate_calls(agree, monkeypatch, split):
    """Sequences that are empty, of one step, of exactly a part, and of several."""
    processors(monkeypatch, 1000 * split)
    borders = torch.tensor([0, 0, 1, 5, 5, 19, 19], dtype=torch.int32)
    tensors = case(19, sequences=6)
    assert parts(tensors, borders) == ((4, 10, 6) if split else (19, 7, 6))
    options = {"backend": "triton", "cu_seqlens": borders}
    agree(selective_scan, tensors, torch.float32, **options)


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_a_split_is_the_whole(cut):
    """Blocks of steps fall otherwise, and the sums of every state do not."""
    tensors = {name: x.float() for name, x in case(9).items()}
    first, second = (
        {**tensors, **{n: tensors[n][:, span] for n in PER_STEP}}
        for span in (slice(0, cut), slice(cut, None))
    )
    y1, middle = selective_scan(**first, backend="triton")
    y2, end = selective_scan(**{**second, "initial_state": middle}, backend="triton")
    want = selective_scan(**tensors, backend="triton")
    torch.testing.assert_close((torch.cat([y1, y2], 1), end), want, rtol=0, atol=0)


def test_strides_may_be_any(agree):
    """B and C out of one wider tensor, time before the batch, states before channels."""
    tensors = case(7, batch=2)
    wide = torch.randn(2, 7, 6)
    turned = {
        "x": torch.randn(7, 2, 3).transpose(0, 1),
        "A": tensors["A"].float().mT.contiguous().mT,
        "B": wide[:, :, 2:4],
        "C": wide[:, :, 4:],
    }
    assert not any(x.is_contiguous() for x in turned.values())
    agree(selective_scan, {**tensors, **turned}, torch.float32, backend="triton")


def gradients(tensors):
    leaves = {n: x.detach().float().requires_grad_() for n, x in tensors.items()}
    y, state = selective_scan(**leaves, backend="triton")
    (y.square().sum() + state.square().sum()).backward()
    return [y, state, *(x.grad for x in leaves.values())]


def test_runs_are_equal_bit_for_bit(monkeypatch):
    processors(monkeypatch, 1000)
    tensors = case(12, D=2, N=1)
    first = gradients(tensors)
    for _ in range(2):
        for a, b in zip(gradients(tensors), first, strict=True):
            assert torch.equal(a, b)


def test_parts_are_no_shorter_than_the_processors_need(monkeypatch):
    tensors = case(64)
    numbers = {}
    for number in (0, 1, 10):
        processors(monkeypatch, number)
        numbers[number] = parts(tensors)[:2]
    assert numbers == {0: (64, 1), 1: (8, 8), 10: (4, 16)}


def test_every_lane_has_a_channel_of_its_own():
    """Only so does a lane read back the state that it left: none is held by two."""
    for architecture, table in TABLE.items():
        lanes = 64 if architecture.startswith("gfx") else 32
        for (kernel, _), sizes in table.items():
            for block, warps, _ in sizes.values() if kernel.startswith("selective") else ():
                assert block >= lanes * warps


def test_one_step_out_of_a_batch_is_a_row_of_its_own():
    """The distance in time, which is compiled in, must not be that of the batch's layout."""
    x = torch.randn(1, 5, 3).transpose(0, 1)
    assert x.stride() == (3, 15, 1) and x.is_contiguous()
    assert module._in_rows(x).stride() == (3, 3, 1)


def test_what_pytorch_is_owed():
    tensors = {name: x.float().requires_grad_() for name, x in case(2, N=1).items()}
    arguments = (*tensors.values(), None, True)
    results = torch.library.opcheck(module.selective_scan_triton, arguments)
    assert set(results.values()) == {"SUCCESS"}
    flops = []
    for backend in ("chunked", "triton"):
        with FlopCounterMode(display=False) as counter:
            selective_scan(**tensors, backend=backend)[0].sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0
    with torch.no_grad():  # nothing is kept then
        assert module.selective_scan_triton(*arguments[:-1], False)[2].numel() == 0
