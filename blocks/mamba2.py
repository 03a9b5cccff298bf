"""Mamba-2 (Dao and Gu 2024), a scan with one decay a head and step.

    z, x, B, C, d = split(W_in u)                        D_in = expand * D channels each of z and x
    x, B, C  = silu(conv(x, B, C))                       causal, depthwise
    Delta    = softplus(d + b_dt)                        per head
    S_t      = exp(-Delta_t exp(a)) S_{t-1} + B_t (Delta_t x_t)^T       per head, S in R^{N x P}
    o_t      = S_t^T C_t + D x_t
    y_t      = W_out (rms(o_t * silu(z_t)) * w)

B and C are shared by groups of heads, and the norm is over a group's channels. Birth: exp(a)
uniform in [1, 16], D = 1, b_dt such that Delta is log-uniform in [1e-3, 1e-1], not below 1e-4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.scan import scan
from .block import Mixer, State, require_divisor, require_positive
from .short_conv import conv_of
from .step import step_bias


class Mamba2(Mixer, name="mamba2"):
    """Structured state-space duality, Mamba-2 (Dao and Gu 2024, section 7).

    State: (S (B, H, N, P) float32, the convolution's state or None).

    Args:
        heads: number of heads, each of expand * dim / heads channels.
        state: state size N per channel.
        expand: inner width D_in as a multiple of the model width.
        groups: groups of heads that share B and C.
        conv: width of the causal convolution over x, B and C; 0 is none, and SiLU alone.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        state: int = 64,
        expand: int = 2,
        groups: int = 1,
        conv: int = 4,
    ) -> None:
        super().__init__()
        require_positive("mamba2", state=state, expand=expand)
        inner = expand * dim
        require_divisor("mamba2", "heads", heads, inner, "expand * dim")
        require_divisor("mamba2", "groups", groups, heads, "heads")
        self.heads, self.groups = heads, groups
        self.widths = (inner, groups * state, groups * state)  # of x, B, C
        self.into = nn.Linear(dim, inner + sum(self.widths) + heads, bias=False)
        self.conv = conv_of(self.name, sum(self.widths), conv)
        self.step = nn.Parameter(step_bias(heads))  # b_dt
        self.a = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        S, window = state if state is not None else (None, None)
        inner = self.widths[0]
        z, xBC, step = self.into(x).split((inner, sum(self.widths), self.heads), dim=-1)
        if self.conv is not None:
            xBC, window = self.conv(xBC, window)
        v, B, C = F.silu(xBC).split(self.widths, dim=-1)
        v = v.unflatten(-1, (self.heads, -1))
        B, C = (part.unflatten(-1, (self.groups, -1)) for part in (B, C))
        delta = F.softplus(step + self.step)  # (B, T, H)
        written = v * delta[..., None]
        o, S = scan(C, B, written, -self.a.exp() * delta, scale=1.0, initial_state=S)
        o = (o + self.D[:, None] * v).flatten(-2) * F.silu(z)
        o = F.rms_norm(o.unflatten(-1, (self.groups, -1)), (inner // self.groups,), eps=1e-5)
        return self.out(o.flatten(-2) * self.norm), (S, window)
