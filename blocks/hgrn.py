"""HGRN, the gated linear recurrent net (Qin et al. 2023): a decay and a state for every channel.

    f_t = lower + (1 - lower) sigmoid(W_f x_t)
    h_t = f_t * h_{t-1} + (1 - f_t) * silu(W_i x_t)
    y_t = W_o (rms(h_t) * w * silu(W_g x_t))        norm and gate are options, see gate.py

Nothing but its own past moves a channel. With Delta = -log f the write strength 1 - f is what a
system h' = -h + u adds in a time Delta (zero-order hold), so that this is a selective scan with one
state a channel, A = -1 and B = (1 - f) / Delta.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.selective_scan import selective_scan
from .block import State, require_positive
from .gate import Gated, GateKind, NormKind
from .short_conv import conv_of

LEAST = 1e-6
"""Of Delta: a channel forgets at least so much a step, and (1 - f) / Delta stays a number."""


class HGRN(Gated, name="hgrn"):
    """Elementwise gated recurrence (Qin et al. 2023; real-valued, as in HGRN2's baseline).

    State: (h (B, D_in, 1) float32, the convolution's state or None).

    Args:
        expand: inner width D_in as a multiple of the model width.
        lower: least forget gate f; the paper lets it grow with depth, so that upper layers remember
            longer.
        conv: width of a causal convolution over the inputs of f and i; 0 is none.
        gate: output gate, silu (swish), sigmoid or none.
        norm: of all inner channels before the gate, rms, group (with a mean, too) or none.
    """

    A: Tensor
    one: Tensor

    def __init__(
        self,
        dim: int,
        *,
        expand: int = 1,
        lower: float = 0.0,
        conv: int = 0,
        gate: GateKind = "silu",
        norm: NormKind = "rms",
    ) -> None:
        super().__init__()
        require_positive("hgrn", expand=expand)
        if not 0 <= lower < 1:
            raise ValueError(f"hgrn: lower must be in [0, 1), got {lower}")
        inner = expand * dim
        self.lower = lower
        self.into = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = conv_of(self.name, 2 * inner, conv)
        self.read_by(dim, 1, inner, norm, gate)
        self.register_buffer("A", -torch.ones(inner, 1), persistent=False)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        h, window = state if state is not None else (None, None)
        into = self.into(x)
        if self.conv is not None:
            into, window = self.conv(into, window)
        forget, write = into.chunk(2, dim=-1)
        delta = F.softplus(-forget)  # -log sigmoid
        if self.lower > 0:
            delta = -torch.log(self.lower + (1 - self.lower) * torch.exp(-delta))
        delta = delta.clamp(min=LEAST)
        held = -torch.expm1(-delta) / delta  # B
        ones = x.new_ones(*x.shape[:2], 1)
        h_t, h = selective_scan(held * F.silu(write), delta, self.A, ones, ones, initial_state=h)
        return self.read(h_t[:, :, None], x), (h, window)
