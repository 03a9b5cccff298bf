"""SwiGLU channel mixer:  y = W_down (silu(W_gate x) * W_up x)    (Shazeer 2020, eq. 6)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .block import ChannelMixer, State, exact_expand, hidden_width, require_positive


class SwiGLU(ChannelMixer, name="swiglu"):
    """Gated feed-forward layer (Shazeer 2020).

    Args:
        expand: hidden width as a multiple of the model width.
    """

    def __init__(self, dim: int, *, expand: float = 2.0) -> None:
        super().__init__()
        require_positive("swiglu", expand=expand)
        hidden = hidden_width(expand, dim)
        self.up = nn.Linear(dim, 2 * hidden, bias=False)  # gate and value in one product
        self.down = nn.Linear(hidden, dim, bias=False)

    @classmethod
    def canonical(cls, options: dict[str, Any], *sizes: int) -> dict[str, Any]:
        return options | {"expand": exact_expand(options["expand"], sizes[0])}

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        gate, value = self.up(x).chunk(2, dim=-1)  # (B, T, hidden) each
        return self.down(F.silu(gate) * value), None
