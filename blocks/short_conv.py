"""Causal depthwise convolution over a few tokens:  y_t = act(b + sum_{w<W} f_w * x_{t-W+1+w}).

It looks back only: a window around t would leak the future. Each channel has its own filter f.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from ..kernels.causal_conv import WIDEST, causal_conv
from .block import Mixer, State

Activation = Literal["none", "silu"]


class ShortConv(Mixer, name="short_conv"):
    """Short causal convolution; a mixer by itself, and a part of others before q, k and v.

    State: the last width - 1 inputs, (B, D, width - 1).

    Args:
        width: tokens seen, the present one included; 8 at most.
        activation: applied to the output.
    """

    def __init__(self, dim: int, *, width: int = 4, activation: Activation = "none") -> None:
        super().__init__()
        if not 1 <= width <= WIDEST:
            raise ValueError(f"short_conv: width must be from 1 to {WIDEST}, got {width}")
        bound = width**-0.5  # as torch.nn.Conv1d: uniform in +- fan_in ** -0.5
        self.filter = nn.Parameter(torch.empty(dim, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.activation: Literal["silu"] | None = None if activation == "none" else activation

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        return causal_conv(
            x, self.filter, self.bias, activation=self.activation, initial_state=state
        )


def conv_of(
    mixer: str, channels: int, width: int, activation: Activation = "none"
) -> ShortConv | None:
    """What a mixer's option `conv` asks for; None for a width of 0."""
    if not 0 <= width <= WIDEST:
        raise ValueError(f"{mixer}: conv must be from 1 to {WIDEST}, or 0 for none; got {width}")
    return ShortConv(channels, width=width, activation=activation) if width else None
