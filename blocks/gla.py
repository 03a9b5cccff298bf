"""Gated linear attention (Yang et al. 2024), a decay for every key channel.

g_t = log sigmoid(W_2 W_1 x_t + b) / 16             W_1 (16, D): gates of low rank
S_t = Diag(exp(g_t)) S_{t-1} + k_t v_t^T            per head, S in R^{K x V}
o_t = K^(-1/2) S_t^T q_t
y_t = W_o (rms(o_t) * w * silu(W_r x_t))        norm per head; see gate.py for the options
"""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.scan import scan
from .block import State, require_divisor, require_positive
from .gate import Gated, GateKind, NormKind, born_small
from .short_conv import conv_of

RANK = 16
TEMPERATURE = 16.0
"""Of the gates: a decay of sigmoid(0) is 0.5^(1/16), half a head's content in 16 tokens."""


class GLA(Gated, name="gla"):
    """Gated linear attention (Yang et al. 2024, section 4).

    State: (S (B, H, K, V) float32, the convolution's state or None).

    Args:
        heads: number of heads.
        expand_k: all heads' key width as a multiple of the model width.
        expand: all heads' value width as a multiple of the model width.
        conv: width of a causal convolution over q, k and v; 0 is none.
        gate: output gate, silu (swish), sigmoid or none.
        norm: of every head before the gate, rms, group or none.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        expand_k: float = 0.5,
        expand: int = 1,
        conv: int = 0,
        gate: GateKind = "silu",
        norm: NormKind = "rms",
    ) -> None:
        super().__init__()
        require_positive("gla", expand_k=expand_k, expand=expand)
        keys, values = round(expand_k * dim), expand * dim
        if not keys:
            raise ValueError(
                f"gla: expand_k ({expand_k}) times dim ({dim}) is less than one key channel; raise "
                "one of them"
            )
        require_divisor("gla", "heads", heads, keys, "expand_k * dim")
        require_divisor("gla", "heads", heads, values, "expand * dim")
        self.heads, self.widths = heads, (keys, keys, values)
        self.qkv = nn.Linear(dim, sum(self.widths), bias=False)
        self.conv = conv_of(self.name, sum(self.widths), conv)
        self.forget = nn.Sequential(nn.Linear(dim, RANK, bias=False), nn.Linear(RANK, keys))
        self.read_by(dim, heads, values, norm, gate, eps=1e-5)
        born_small(self.qkv, self.widths, self.gate, self.out)

    @classmethod
    def canonical(cls, options: dict[str, Any], *sizes: int) -> dict[str, Any]:
        (dim,), expand = sizes, options["expand_k"]
        keys = round(expand * dim) if 0 < expand < math.inf else 0
        return options | {"expand_k": keys / dim if keys else expand}

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        S, window = state if state is not None else (None, None)
        qkv = self.qkv(x)
        if self.conv is not None:
            qkv, window = self.conv(qkv, window)
        per_head = (self.heads, -1)
        q, k, v = (part.unflatten(-1, per_head) for part in qkv.split(self.widths, dim=-1))
        log_decay = F.logsigmoid(self.forget(x)).unflatten(-1, per_head) / TEMPERATURE
        o, S = scan(q, k, v, log_decay, initial_state=S)  # (B, T, H, V)
        return self.read(o, x), (S, window)
