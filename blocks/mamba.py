"""Mamba (Gu and Dao 2023), a selective state-space mixer.

    x, z     = split(W_in u)                            D_in = expand * D channels each
    x        = silu(conv(x))                            causal, depthwise
    r, B, C  = split(W_x x)                             step of low rank, N and N
    Delta    = softplus(W_dt r + b_dt)
    h_t[d,n] = a h_{t-1}[d,n] + b B_t[n] x_t[d]         of Delta_t[d] and A[d,n],
                                                            with r = Delta A:
               euler      a = exp(r)                    b = Delta           the paper's
               zoh        a = exp(r)                    b = (exp(r) - 1) / A
               bilinear   a = (1 + r/2) / (1 - r/2)     b = Delta / (1 - r/2)
    y        = W_out ((sum_n C_t[n] h_t[.,n] + D x_t) * silu(z))

Birth: A[d,n] = -n for n = 1..N (S4D-Real), D = 1, b_dt such that Delta is log-uniform in
[1e-3, 1e-1], not below 1e-4.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.interface import accumulation_dtype, without_autocast
from ..kernels.selective_scan import selective_scan
from .block import Mixer, State, require_positive
from .short_conv import conv_of
from .step import step_bias

LEAST = 1e-6
"""Of |r| or -log |a|, which is divided by; and of |1 + r/2|, whose logarithm is taken."""


class Mamba(Mixer, name="mamba"):
    """Selective state-space mixer, Mamba-1 (Gu and Dao 2023, section 3).

    State: (h (B, D_in, N) float32, the convolution's state or None).

    Args:
        state: state size N per channel.
        expand: inner width D_in as a multiple of the model width.
        conv: width of the causal convolution before the scan; 0 is none.
        discretisation: euler is the paper's, zero-order hold for A and Euler for B. Under zoh and
            bilinear every state has a write strength of its own, and training keeps 8 and 14
            tensors (B, T, D_in, N), where euler keeps none, and takes 6 to 8 times as long.
    """

    def __init__(
        self,
        dim: int,
        *,
        state: int = 16,
        expand: int = 2,
        conv: int = 4,
        discretisation: Literal["euler", "zoh", "bilinear"] = "euler",
    ) -> None:
        super().__init__()
        require_positive("mamba", state=state, expand=expand)
        self.discretisation = discretisation
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
        A = -self.A_log.exp()
        if self.discretisation == "euler":
            y, h = selective_scan(x, delta, A, B, C, self.D, initial_state=h)
        else:
            bilinear = self.discretisation == "bilinear"
            y, h = held_scan(x, delta, A, B, C, h, bilinear)
            y = y.to(x.dtype) + self.D * x
        return self.out(y * F.silu(z)), (h, window)


def held_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor | None, bilinear: bool
) -> tuple[Tensor, Tensor]:
    """The scan with the a and b of zoh or bilinear: y (B, T, D) and the state (B, D, N).

    b differs per (d, n), for which selective_scan has no room: it runs over D N channels of one
    state each, for which it takes a step's `time` and `rate`, and writes time * x. Where r < -2 the
    bilinear a is negative: with s_t the product of the signs so far, s_t h_t has the decays |a|.
    """
    dtype, (batch, T, D), N = accumulation_dtype(x), x.shape, A.shape[1]
    with without_autocast(x):
        x, delta, A, B, C = (z.to(dtype) for z in (x, delta, A, B, C))
        r = delta[..., None] * A  # (B, T, D, N), negative
        if bilinear:
            signs = torch.where(r < -2, -1.0, 1.0).to(dtype).cumprod(1)
            less = torch.where(r < -2, -2 - r / 2, r / 2)  # |1 + r/2| - 1
            time = torch.log1p(r / -2) - torch.log1p(less.clamp(min=LEAST - 1))  # -log |a|
            time, rate = time.clamp(min=LEAST), -torch.ones_like(A)
            strength = signs * delta[..., None] / (1 - r / 2) / time
        else:
            signs, rate, time = None, A, delta[..., None].expand_as(r)
            r = r.clamp(max=-LEAST)
            strength = torch.expm1(r) / r
        write = strength * (B[:, :, None] * x[..., None])
        h = None if h is None else h.view(batch, D * N, 1)
        ones, rate = x.new_ones(batch, T, 1), rate.view(D * N, 1)
        states, h = selective_scan(
            write.flatten(2), time.flatten(2), rate, ones, ones, initial_state=h
        )
        states, h = states.view(batch, T, D, N), h.view(batch, D, N)
        if signs is not None:
            states, h = signs * states, signs[:, -1] * h
        return (states @ C[..., None])[..., 0], h
