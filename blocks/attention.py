"""Softmax attention with rotary positions, grouped key heads, a window and a cache.

    o_t = sum_{s in W(t)} softmax_s(K^(-1/2) R(t) q_t . R(s) k_s) v_s,   W(t) = {t-window+1, ..., t}

Vaswani et al. 2017; rotary positions Su et al. 2021; grouped queries Ainslie et al. 2023; sliding
window Beltagy et al. 2020.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block import Mixer, State, require_divisor, require_positive
from .rotary import rope_frequencies, rotate
from .short_conv import ShortConv


class Attention(Mixer, name="attention"):
    """Causal multi-head attention; the state is its cache and grows unless there is a window.

    State: (keys (B, G, S, K), values (B, G, S, K), the convolution's state or None, tokens seen
    ()), S the tokens kept: all, or the last window - 1.

    Args:
        heads: query heads, each of width dim / heads (even, for the rotation).
        kv_heads: key and value heads, shared by groups of query heads; null is one per query head.
        window: tokens seen, the present one included; null is all of them.
        positions: rope turns q and k by their position; none leaves order to the mask alone.
        conv: width of a causal convolution over q, k and v; 0 is none.
    """

    frequencies: Tensor

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        kv_heads: int | None = None,
        window: int | None = None,
        positions: Literal["rope", "none"] = "rope",
        conv: int = 0,
    ) -> None:
        super().__init__()
        require_divisor("attention", "heads", heads, dim, "dim")
        groups = heads if kv_heads is None else kv_heads
        require_divisor("attention", "kv_heads", groups, heads, "heads")
        width = dim // heads
        if positions == "rope" and width % 2:
            raise ValueError(
                f"attention: the width of a head, dim / heads = {width}, must be even because rope "
                "turns pairs; change heads or dim, or set positions: none"
            )
        if window is not None:
            require_positive("attention", window=window)
        self.width, self.window, self.rope = width, window, positions == "rope"
        self.grows = window is None
        self.widths = (dim, groups * width, groups * width)
        self.qkv = nn.Linear(dim, sum(self.widths), bias=False)
        self.conv = ShortConv(sum(self.widths), width=conv) if conv else None
        self.out = nn.Linear(dim, dim, bias=False)
        self.register_buffer("frequencies", rope_frequencies(width), persistent=False)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        start = (None, None, None, x.new_zeros((), dtype=torch.long))
        keys, values, window, seen = start if state is None else state
        qkv = self.qkv(x)
        if self.conv is not None:
            qkv, window = self.conv(qkv, window)
        q, k, v = (part.unflatten(-1, (-1, self.width)) for part in qkv.split(self.widths, dim=-1))
        if self.rope:
            position = seen + torch.arange(x.shape[1], device=x.device)
            q, k = (rotate(part, position, self.frequencies) for part in (q, k))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H | G, T, K)
        if keys is not None and values is not None:
            k, v = torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)
        o = self.attend(q, k, v)
        if self.window is not None:  # what no later token sees is dropped
            kept = min(self.window - 1, k.shape[2])
            k, v = (part[:, :, part.shape[2] - kept :] for part in (k, v))
        return self.out(o.transpose(1, 2).flatten(-2)), (k, v, window, seen + x.shape[1])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the last T of S tokens: q (B, H, T, K), k and v (B, G, S, K)."""
        T, S = q.shape[2], k.shape[2]
        grouped = q.shape[1] != k.shape[1]
        if S == T and self.window is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        ahead = torch.arange(S, device=q.device) - torch.arange(S - T, S, device=q.device)[:, None]
        mask = ahead <= 0  # (T, S), True where token S - T + i may look at token j
        if self.window is not None:
            mask = mask & (ahead > -self.window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
