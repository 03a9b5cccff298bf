"""The six-line safetensors reader agrees with the library."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from archsearch.standalone.weights import DTYPES, load_weights


def test_it_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {
        f"{name}_{i}": torch.randn(shape).to(dtype)
        for name, dtype in DTYPES.items()
        for i, shape in enumerate([(), (1,), (3, 5), (2, 0, 4)])
    }
    save_file(tensors, tmp_path / "w.safetensors", metadata={"a": "b"})
    read = load_weights(tmp_path / "w.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name], tensor)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(100)}, tmp_path / "w")
    whole = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"a ends at byte .* cut short"):
        load_weights(tmp_path / "w")
    (tmp_path / "w").write_bytes(whole[:20])
    with pytest.raises(ValueError, match=r"its header alone says .* cut short"):
        load_weights(tmp_path / "w")
