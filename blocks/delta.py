"""The delta rule: a key's old value is taken out before the new one is written.

    S_t = alpha_t S_{t-1} + beta_t k_t (v_t - alpha_t S_{t-1}^T k_t)^T     per head, S in R^{K x V}
    o_t = K^(-1/2) S_t^T q_t
    q, k = l2(silu(conv(W x))),   v = silu(conv(W_v x)),   beta_t = sigmoid(W_beta x_t)

delta_net         alpha_t = 1,                 y_t = W_o (rms(o_t) * w)         (Yang et al. 2024)
gated_delta_net   alpha_t = exp(-exp(a_h) softplus(W_a x_t + b_h))
                  y_t = W_o (rms(o_t) * w * silu(W_g x_t))                      (Yang et al. 2025)

The norms are per head; norm and gate are options, see gate.py. Birth of the gated one is Mamba-2's:
exp(a) uniform in (0, 16), softplus(b) log-uniform in [1e-3, 1e-1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.delta_scan import delta_scan
from .block import State, require_divisor, require_positive
from .gate import Gated, GateKind, NormKind, born_small
from .short_conv import conv_of
from .step import step_bias


class DeltaNet(Gated, name="delta_net"):
    """Linear attention with the delta rule (Schlag et al. 2021; Yang et al. 2024).

    State: (S (B, H, K, V) float32, the convolution's state or None).

    Args:
        heads: number of heads, each of key width dim / heads.
        expand: value width as a multiple of the key width.
        conv: width of the causal convolution over q, k and v; 0 is none.
        gate: output gate, silu (swish), sigmoid or none.
        norm: of every head before the gate, rms, group or none.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        expand: int = 1,
        conv: int = 4,
        gate: GateKind = "none",
        norm: NormKind = "rms",
    ) -> None:
        super().__init__()
        require_divisor(self.name, "heads", heads, dim, "dim")
        require_positive(self.name, expand=expand)
        self.heads, self.widths = heads, (dim, dim, expand * dim)
        self.qkv = nn.Linear(dim, sum(self.widths), bias=False)
        self.conv = conv_of(self.name, sum(self.widths), conv)
        self.beta = nn.Linear(dim, heads, bias=False)
        self.read_by(dim, heads, expand * dim, norm, gate)
        born_small(self.qkv, self.widths, self.beta, self.gate, self.out)

    def log_decay(self, x: Tensor) -> Tensor | None:
        """Log alpha_t, (B, T, H), or None where nothing is forgotten."""
        return None

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        S, window = state if state is not None else (None, None)
        qkv = self.qkv(x)
        if self.conv is not None:
            qkv, window = self.conv(qkv, window)
        qkv = F.silu(qkv)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in qkv.split(self.widths, dim=-1))
        q, k = (F.normalize(part, dim=-1, eps=1e-6) for part in (q, k))
        beta = torch.sigmoid(self.beta(x))
        o, S = delta_scan(q, k, v, beta, self.log_decay(x), initial_state=S)
        return self.read(o, x), (S, window)


class GatedDeltaNet(DeltaNet, name="gated_delta_net"):
    """The delta rule with a decay per head and step, and an output gate (Yang et al. 2025).

    State: (S (B, H, K, V) float32, the convolution's state or None).

    Args:
        heads: number of heads, each of key width dim / heads.
        expand: value width as a multiple of the key width.
        conv: width of the causal convolution over q, k and v; 0 is none.
        gate: output gate, silu (swish), sigmoid or none.
        norm: of every head before the gate, rms, group or none.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        expand: int = 1,
        conv: int = 4,
        gate: GateKind = "silu",
        norm: NormKind = "rms",
    ) -> None:
        super().__init__(dim, heads=heads, expand=expand, conv=conv, gate=gate, norm=norm)
        self.a = nn.Parameter(torch.empty(heads).uniform_(1e-3, 16).log())
        self.step = nn.Linear(dim, heads)
        self.step.bias = nn.Parameter(step_bias(heads))

    def log_decay(self, x: Tensor) -> Tensor:
        return -self.a.exp() * F.softplus(self.step(x))
