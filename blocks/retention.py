"""Multi-scale retention (Sun et al. 2023), with the decay as a part.

    S_t = exp(g_t) S_{t-1} + (s_t * k_t) v_t^T          per head, S in R^{K x V}
    o_t = K^(-1/2) S_t^T q_t
    y_t = W_o (rms(o_t) * silu(W_g x_t))                norm and gate are options, see gate.py

q and k are rotated by RetNet's angles; the decay gives g_t (log-decay) and s_t (write gate). The
norm rms is without affine parameters, so a positive scale of a whole row of o is free (the paper
writes a group norm, the released code has rms). With a selective decay this is selective retention:
a RetNet at birth, a gated one when trained.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..kernels.scan import scan
from .block import Part, State, canonical, null_if, require_divisor, require_positive
from .decay import Decay, FixedDecay
from .gate import Gated, GateKind, NormKind, born_small
from .rotary import retnet_frequencies, rotate
from .short_conv import conv_of


class Retention(Gated, name="retention"):
    """Retention over heads that forget at different speeds (Sun et al. 2023, section 2).

    State: (S (B, H, K, V) float32, the convolution's state or None, tokens seen ()).

    Args:
        heads: number of heads, each of key width dim / heads (even, for the rotation).
        key_heads: heads of queries and keys, shared by groups of heads; null is one per head.
        expand: value width as a multiple of the key width.
        decay: how the heads forget.
        initial: the state before the first token: zeros, or learned, and at birth zeros.
        gate: output gate, silu (swish) as in the paper, sigmoid or none.
        norm: of every head before the gate, rms as released, group as in the paper, or none.
        conv: width of a causal convolution over q, k and v; 0 is none.
    """

    frequencies: Tensor

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        key_heads: int | None = None,
        expand: int = 1,
        decay: Part[Decay] = FixedDecay,
        initial: Literal["zeros", "learned"] = "zeros",
        gate: GateKind = "silu",
        norm: NormKind = "rms",
        conv: int = 0,
    ) -> None:
        super().__init__()
        require_divisor("retention", "heads", heads, dim, "dim")
        require_positive("retention", expand=expand)
        if dim // heads % 2:
            raise ValueError(
                f"retention: the key width of a head, dim / heads = {dim // heads}, must be even "
                "because q and k are rotated in pairs; change heads or dim"
            )
        groups, width = heads if key_heads is None else key_heads, dim // heads
        require_divisor("retention", "key_heads", groups, heads, "heads")
        self.heads = (groups, groups, heads)
        self.widths = (groups * width, groups * width, expand * dim)
        self.qkv = nn.Linear(dim, sum(self.widths), bias=False)
        self.conv = conv_of(self.name, sum(self.widths), conv)
        self.decay = decay(dim, heads, width)
        start = torch.zeros(heads, width, expand * width)
        self.start = nn.Parameter(start) if initial == "learned" else None
        self.read_by(dim, heads, expand * dim, norm, gate, affine=False)
        born_small(self.qkv, self.widths, self.gate)
        nn.init.xavier_uniform_(self.out.weight)
        self.register_buffer("frequencies", retnet_frequencies(dim // heads), persistent=False)

    @classmethod
    def canonical(cls, options: dict[str, Any], *sizes: int) -> dict[str, Any]:
        (dim,), heads, decay = sizes, options["heads"], options["decay"]
        if heads > 0:
            decay = canonical(decay, dim, heads, dim // heads)
        return options | {"key_heads": null_if(options["key_heads"], heads), "decay": decay}

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        S, window, seen = (
            state if state is not None else (None, None, x.new_zeros((), dtype=torch.long))
        )
        qkv = self.qkv(x)
        if self.conv is not None:
            qkv, window = self.conv(qkv, window)
        parts = zip(qkv.split(self.widths, dim=-1), self.heads, strict=True)
        q, k, v = (part.unflatten(-1, (heads, -1)) for part, heads in parts)
        if S is None and self.start is not None:
            S = self.start.expand(len(x), -1, -1, -1)
        position = seen + torch.arange(x.shape[1], device=x.device)
        q, k = (rotate(part, position, self.frequencies) for part in (q, k))  # (B, T, H, K)
        log_decay, write = self.decay(x)
        if write is not None:  # a head's own, so that keys are shared no longer
            q, k = (part.repeat_interleave(v.shape[2] // part.shape[2], dim=2) for part in (q, k))
            k = k * write
        o, S = scan(q, k, v, log_decay, initial_state=S)  # (B, T, H, V)
        return self.read(o, x), (S, window, seen + x.shape[1])
