"""Tuning changes which tiles run, and nothing else: scan, measured on its first call."""

import pytest
import torch

from archsearch.kernels import scan, tuning
from archsearch.kernels import scan_triton as module
from archsearch.kernels.launch import INTERPRETED, Device


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU every candidate would be compiled")
def test_results_are_those_without_tuning(agree, monkeypatch, tmp_path):
    """Cut into segments, whose states go from forward to backward while rows change."""
    B, T, H, K, V = 1, 130, 1, 20, 20
    for role in ("o", "dq", "dk", "dv"):
        monkeypatch.setitem(tuning.CANDIDATES, (f"scan {role} scalar", 4), [(16, 4, 1)])
    ran = []

    def launch(kernel, programs, tile, *arguments, **constants):
        ran.append(tile.block)
        return launching(kernel, programs, tile, *arguments, **constants)

    def clock(call):
        """The narrower, the faster."""
        ran.clear()
        call()
        return float(sum(ran))

    launching = module.launch
    monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(module, "device_of", lambda tensor: Device("sm_90", 64))
    monkeypatch.setattr(tuning, "TUNER", tuning.Tuner(tmp_path / "tiles.json", clock))
    tensors = {
        "q": torch.randn(B, T, H, K),
        "k": torch.randn(B, T, H, K),
        "v": torch.randn(B, T, H, V),
        "log_decay": -torch.rand(B, T, H),
        "initial_state": torch.randn(B, H, K, V),
    }
    agree(scan, tensors, torch.float32, backend="triton")
    rows = tuning.read(tmp_path / "tiles.json")
    assert {row.kernel.split()[1] for row in rows} == {"o", "dq", "dk", "dv"}
    assert set(ran) == {16}  # which dk has from dq, if not from its row
