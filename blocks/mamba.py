"""Mamba (Gu and Dao 2023), a selective state-space mixer.

    x, z     = split(W_in u)                            D_in = expand * D channels each
    x        = silu(conv(x))                            causal, depthwise
    r, B, C  = split(W_x x)                             step of low rank, N and N
    Delta    = softplus(W_dt r + b_dt)
    h_t[d,n] = exp(Delta_t[d] A[d,n]) h_{t-1}[d,n] + Delta_t[d] B_t[n] x_t[d]
    y        = W_out ((sum_n C_t[n] h_t[.,n] + D x_t) * silu(z))

Birth: A[d,n] = -n for n = 1..N (S4D-Real), D = 1, b_dt such that Delta is log-uniform in
[1e-3, 1e-1], not below 1e-4.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.selective_scan import selective_scan
from .block import Mixer, State, require_positive
from .short_conv import conv_of
from .step import step_bias


class Mamba(Mixer, name="mamba"):
    """Selective state-space mixer, Mamba-1 (Gu and Dao 2023, section 3).

    State: (h (B, D_in, N) float32, the convolution's state or None).

    Args:
        state: state size N per channel.
        expand: inner width D_in as a multiple of the model width.
        conv: width of the causal convolution before the scan; 0 is none.
    """

    def __init__(self, dim: int, *, state: int = 16, expand: int = 2, conv: int = 4) -> None:
        super().__init__()
        require_positive("mamba", state=state, expand=expand)
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.sizes = (rank, state, state)
        self.into = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = conv_of(self.name, inner, conv, "silu")
        self.select = nn.Linear(inner, sum(self.sizes), bias=False)
        self.step = nn.Linear(rank, inner)
        nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
        self.step.bias = nn.Parameter(step_bias(inner))
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        h, window = state if state is not None else (None, None)
        x, z = self.into(x).chunk(2, dim=-1)  # (B, T, D_in) each
        if self.conv is not None:
            x, window = self.conv(x, window)
        rank, B, C = self.select(x).split(self.sizes, dim=-1)
        delta = F.softplus(self.step(rank))
        y, h = selective_scan(x, delta, -self.A_log.exp(), B, C, self.D, initial_state=h)
        return self.out(y * F.silu(z)), (h, window)
