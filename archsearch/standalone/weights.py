"""Reads a safetensors file with torch alone.

Format: 8 bytes, the header's length, little-endian; the header, JSON with the dtype, shape and
place of each tensor; then the tensors' bytes (https://github.com/huggingface/safetensors).
"""

import json
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. ValueError when it was cut short."""
    data = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    if len(data) < start:
        raise ValueError(f"{path}: {len(data)} bytes, its header alone says {start}; cut short")
    header = json.loads(data[8:start])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = (start + offset for offset in entry["data_offsets"])
        if len(data) < last:
            raise ValueError(f"{path}: {name} ends at byte {last} of {len(data)}; cut short")
        tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        if last > first:
            flat = torch.frombuffer(data, dtype=torch.uint8, count=last - first, offset=first)
            tensor.copy_(flat.view(tensor.dtype).view_as(tensor))
        tensors[name] = tensor
    return tensors
