"""Rotary positions (Su et al. 2021): pairs of channels turn by an angle that grows with position.

With x = (x_1, x_2) a pair and p its position, R(p) x = (x_1 cos pw - x_2 sin pw, x_2 cos pw +
x_1 sin pw), so that R(p) q . R(s) k depends on p - s alone. The last axis is split in halves:
channel i pairs with channel i + K/2.
"""

import torch
from torch import Tensor


def rope_frequencies(width: int) -> Tensor:
    """w_i = 10000^(-2i/K), i < K/2, in radians per token (Su et al. 2021, section 3.2.2)."""
    return 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)


def retnet_frequencies(width: int) -> Tensor:
    """W = 10000^-linspace(0, 1, K/2), the end point included (RetNet's released code)."""
    return 10000.0 ** -torch.linspace(0.0, 1.0, width // 2)


def rotate(x: Tensor, position: Tensor, frequencies: Tensor) -> Tensor:
    """Turns x (B, T, H, K) at positions (T,) by frequencies (K/2,); float32 angles."""
    angle = position.to(frequencies.dtype)[:, None] * frequencies  # (T, K/2)
    cos, sin = (f(angle)[:, None, :].to(x.dtype) for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
