"""causal_conv's Triton kernels: on a GPU, or on the CPU under TRITON_INTERPRET=1 (see conftest)."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from archsearch.kernels import causal_conv
from archsearch.kernels import causal_conv_triton as module
from archsearch.kernels.launch import Device, Tile


def case(T, W, B=1, D=3, sequences=None) -> dict[str, Any]:
    shapes = {
        "x": (B, T, D),
        "weight": (D, W),
        "bias": (D,),
        "initial_state": (sequences or B, D, W - 1),
    }
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.fixture(autouse=True)
def _short_parts(monkeypatch):
    """Several parts, the last one ragged, from small shapes; a ragged tile of channels."""
    monkeypatch.setattr(module, "LONGEST", 8)
    monkeypatch.setattr(module, "tile_of", lambda *_: Tile(64, 1, 1))


@pytest.mark.parametrize(("T", "W"), [(1, 1), (1, 4), (2, 8), (13, 1), (16, 3), (11, 8)])
def test_is_the_reference(agree, T, W):
    agree(causal_conv, case(T, W, B=2), torch.float32, backend="triton", activation="silu")


def test_tiles_of_channels_without_activation(agree):
    agree(causal_conv, case(9, 4, D=67), torch.float32, backend="triton")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(agree, dtype):
    agree(causal_conv, case(9, 4), dtype, backend="triton", activation="silu")


@pytest.mark.parametrize("absent", ["bias", "initial_state"])
def test_absent_tensors(agree, absent):
    agree(causal_conv, {**case(9, 4), absent: None}, torch.float32, backend="triton")


@pytest.mark.parametrize(("W", "states"), [(1, True), (4, True), (4, False), (8, True)])
def test_packing_is_separate_calls(agree, W, states):
    """Sequences that are empty, of one step, shorter than W, of exactly a part, of several."""
    # In a view: the kernel reads borders that follow one another.
    borders = torch.tensor([0, 0, 1, 4, 4, 12, 22, 22]).repeat_interleave(2)[::2]
    tensors = case(22, W, sequences=7)
    tensors["initial_state"] = tensors["initial_state"] if states else None
    options = {"backend": "triton", "cu_seqlens": borders, "activation": "silu"}
    agree(causal_conv, tensors, torch.float32, **options)


@pytest.mark.parametrize("cut", [1, 2, 8])
def test_a_split_is_the_whole(cut):
    tensors = {name: x.float() for name, x in case(10, 4).items()}
    x, state = tensors.pop("x"), tensors.pop("initial_state")
    y1, middle = causal_conv(x[:, :cut], **tensors, initial_state=state, backend="triton")
    y2, end = causal_conv(x[:, cut:], **tensors, initial_state=middle, backend="triton")
    y, want = causal_conv(x, **tensors, initial_state=state, backend="triton")
    torch.testing.assert_close((torch.cat([y1, y2], 1), end), (y, want), rtol=0, atol=0)


def test_strides_may_be_any(agree):
    """Channels of a wider tensor, and time before the batch."""
    tensors = case(9, 3, B=2)
    for x in (torch.randn(2, 9, 7)[:, :, 2:5], torch.randn(9, 2, 3).transpose(0, 1)):
        assert not x.is_contiguous()
        agree(causal_conv, {**tensors, "x": x}, torch.float32, backend="triton")


def gradients(tensors):
    leaves = {n: x.detach().float().requires_grad_() for n, x in tensors.items()}
    y, state = causal_conv(**leaves, activation="silu", backend="triton")
    (y.square().sum() + state.square().sum()).backward()
    return [y, state, *(x.grad for x in leaves.values())]


def test_runs_are_equal_bit_for_bit():
    tensors = case(10, 2)
    first = gradients(tensors)
    for _ in range(2):
        for a, b in zip(gradients(tensors), first, strict=True):
            assert torch.equal(a, b)


def test_the_length_of_parts_is_as_the_processors_need(monkeypatch):
    x = torch.empty(2, 256, 4)
    monkeypatch.setattr(module, "LONGEST", 64)
    lengths = {}
    for processors in (1, 4, 1000):
        device = Device("sm_90", processors)
        monkeypatch.setattr(module, "device_of", lambda _, device=device: device)
        lengths[processors] = module._parts(x, None, Tile(4, 1, 1))
    assert lengths == {1: (32, 16, 2), 4: (8, 64, 2), 1000: (8, 64, 2)}


def test_too_wide_a_filter_is_named():
    tensors = {name: x.float() for name, x in case(9, 9).items()}
    with pytest.raises(ValueError, match="causal_conv: backend 'triton' takes widths W <= 8; got"):
        causal_conv(**tensors, backend="triton")


def test_what_pytorch_is_owed():
    tensors = {name: x.float().requires_grad_() for name, x in case(2, 2).items()}
    x, weight, bias, state = tensors.values()
    arguments = (x, weight, bias, "silu", state, None)
    results = torch.library.opcheck(module.causal_conv_triton, arguments)
    assert set(results.values()) == {"SUCCESS"}
    flops = []
    for backend in ("chunked", "triton"):
        with FlopCounterMode(display=False) as counter:
            causal_conv(**tensors, activation="silu", backend=backend)[0].sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0
