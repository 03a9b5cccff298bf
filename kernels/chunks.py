"""Time in chunks: how the chunked operators lay out what comes by steps."""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

E = TypeVar("E")


def some(steps: list[E], like: Tensor) -> list[E]:
    """All steps of a loop; on meta tensors the first two and the last, of equal ones.

    Of a loop without values only its memory can be asked, and that does not grow after the second.
    """
    return [*steps[:2], *steps[-1:]] if like.is_meta and len(steps) > 3 else steps


def chunks(x: Tensor, C: int, dtype: torch.dtype) -> Tensor:
    """(B, T, H, X) -> (B, H, n, C, X), C steps each, perhaps a view of x.

    The padded steps are zero: they write nothing and do not decay.
    """
    B, T, H, X = x.shape
    x = x.to(dtype)
    if T % C:
        x = F.pad(x, (0, 0, 0, 0, 0, -T % C))
    return x.reshape(B, -1, C, H, X).permute(0, 3, 1, 2, 4).contiguous()


def steps(x: Tensor, T: int, dtype: torch.dtype) -> Tensor:
    """(B, H, n, C, X) -> (B, T, H, X): undoes chunks."""
    return x.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :T].to(dtype).contiguous()
