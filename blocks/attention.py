"""Softmax attention: grouped heads, positions, a pattern of what is seen, and a cache.

    o_t = sum_{s in W(t)} softmax_s(cap(K^(-1/2) q_t . k_s) + bias_{t-s}) v_s

W(t): all s <= t; or the window, every `dilation`-th of the last window * dilation tokens, t among
them; and the first `sinks` tokens. cap(z) = softcap * tanh(z / softcap), or z.

Vaswani et al. 2017; rotary positions Su et al. 2021; ALiBi Press et al. 2022; learned biases
Raffel et al. 2020 (T5); grouped queries Ainslie et al. 2023; norms of queries and keys Henry et al.
2020; capped scores Gemma 2, 2024; windows, dilated ones and global tokens Beltagy et al. 2020, the
first tokens Xiao et al. 2024.

There is no learned vector for each absolute position: a stream has no last one.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block import Mixer, State, null_if, require_divisor, require_positive, require_whole
from .rotary import rope_frequencies, rotate
from .short_conv import conv_of

NEAR, BUCKETS, FAR = 16, 32, 128
"""Learned biases: one for every distance < NEAR, then log-spaced ones; the last from FAR on."""


class Attention(Mixer, name="attention"):
    """Multi-head attention; the state is its cache and grows unless there is a window.

    State: (keys (B, G, S, K), values (B, G, S, K), the convolution's state or None, tokens seen
    ()), S the tokens kept: all, or the sinks and the last (window - 1) * dilation.

    Args:
        heads: query heads, each of width dim / heads (even, for the rotation).
        kv_heads: key and value heads, shared by groups of query heads; null is one per query head.
        window: tokens seen, the present one included; null is all of them.
        dilation: distance from one token of the window to the next.
        sinks: first tokens of the sequence, which are seen beside the window.
        positions: rope turns q and k by their position; alibi subtracts from a score in proportion
            to the distance; learned adds to it a number for the distance, one a head and bucket
            of distances; none leaves order to the mask alone.
        qk_norm: an RMS norm with a learned scale over every head of q and of k.
        softcap: bound of a score, approached by tanh; null is none.
        conv: width of a causal convolution over q, k and v; 0 is none.
        causal: false sees the tokens after t as well, in models with `causal: false`.
    """

    frequencies: Tensor
    slopes: Tensor
    bucket: Tensor

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        kv_heads: int | None = None,
        window: int | None = None,
        dilation: int = 1,
        sinks: int = 0,
        positions: Literal["rope", "alibi", "learned", "none"] = "rope",
        qk_norm: bool = False,
        softcap: float | None = None,
        conv: int = 0,
        causal: bool = True,
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
        if window is None and (dilation, sinks) != (1, 0):
            raise ValueError(
                f"attention: dilation ({dilation}) and sinks ({sinks}) belong to a window, and "
                "there is none: set window, or leave them at 1 and 0"
            )
        if window is not None and not causal:
            raise ValueError(
                f"attention: the window ({window}) is of the past; leave it at null, or set "
                "causal: true"
            )
        given = {"window": window, "dilation": dilation, "softcap": softcap}
        require_positive("attention", **{n: z for n, z in given.items() if z is not None})
        if sinks < 0:
            raise ValueError(f"attention: sinks must not be negative, got {sinks}")
        self.width, self.window, self.dilation, self.sinks = width, window, dilation, sinks
        self.positions, self.softcap = positions, softcap
        self.causal, self.grows = causal, causal and window is None
        self.widths = (dim, groups * width, groups * width)
        self.qkv = nn.Linear(dim, sum(self.widths), bias=False)
        self.conv = conv_of(self.name, sum(self.widths), conv)
        self.q_norm = nn.RMSNorm(width, eps=1e-6) if qk_norm else None
        self.k_norm = nn.RMSNorm(width, eps=1e-6) if qk_norm else None
        self.out = nn.Linear(dim, dim, bias=False)
        if positions == "learned":
            self.bias = nn.Parameter(torch.randn(heads, BUCKETS) * dim**-0.5)  # as released
        self.register_buffer("frequencies", rope_frequencies(width), persistent=False)
        self.register_buffer("slopes", alibi_slopes(heads), persistent=False)
        self.register_buffer("bucket", distance_buckets(), persistent=False)

    @classmethod
    def canonical(cls, options: dict[str, Any], *sizes: int) -> dict[str, Any]:
        if options["window"] == 1 and options["dilation"] > 0:  # no token is next to the first
            options = options | {"dilation": 1}
        return options | {"kv_heads": null_if(options["kv_heads"], options["heads"])}

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        if not self.causal:
            require_whole("attention", state)
        start = (None, None, None, x.new_zeros((), dtype=torch.long))
        keys, values, conv, seen = start if state is None else state
        qkv = self.qkv(x)
        if self.conv is not None:
            qkv, conv = self.conv(qkv, conv)
        q, k, v = (part.unflatten(-1, (-1, self.width)) for part in qkv.split(self.widths, dim=-1))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.positions == "rope":
            position = seen + torch.arange(x.shape[1], device=x.device)
            q, k = (rotate(part, position, self.frequencies) for part in (q, k))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H | G, T, K)
        if keys is not None and values is not None:
            k, v = torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)
        seen = seen + x.shape[1]
        o = self.attend(q, k, v, seen)
        k, v = (self.kept(part) for part in (k, v))
        after = (k, v, conv, seen) if self.causal else None
        return self.out(o.transpose(1, 2).flatten(-2)), after

    def kept(self, cached: Tensor) -> Tensor:
        """Without what no later token sees, (B, G, S, K)."""
        if self.window is None:
            return cached
        S, recent = cached.shape[2], (self.window - 1) * self.dilation
        first = cached[:, :, : min(self.sinks, S)]
        return torch.cat((first, cached[:, :, max(S - recent, first.shape[2]) :]), dim=2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        """Attention of the last T of `seen` tokens: q (B, H, T, K), k and v (B, G, S, K)."""
        T, S = q.shape[2], k.shape[2]
        grouped = q.shape[1] != k.shape[1]
        biased = self.positions in ("alibi", "learned")
        plain = self.window is None and not biased and self.softcap is None
        if plain and S == T:
            causal = self.causal
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
        distance = self.distances(T, S, seen)
        mask = self.sees(distance, S)
        if biased:
            mask = self.bias_of(distance).to(q.dtype).masked_fill(~mask, -torch.inf)  # (H, T, S)
        if self.softcap is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
        scores = self.softcap * torch.tanh(q @ k.mT * (self.width**-0.5 / self.softcap))
        bias = mask if biased else torch.zeros_like(scores).masked_fill(~mask, -torch.inf)
        return torch.softmax(scores + bias, dim=-1) @ v

    def bias_of(self, distance: Tensor) -> Tensor:
        """What a distance adds to a score, (H, T, S)."""
        if self.positions == "alibi":
            return -self.slopes[:, None, None] * distance
        return self.bias[:, self.bucket[distance.clamp(0, FAR)]]

    def distances(self, T: int, S: int, seen: Tensor) -> Tensor:
        """How far from each of the last T tokens each of the S known ones is, (T, S).

        Behind it; on either side where the future is seen.
        """
        index = torch.arange(S, device=seen.device)
        place = torch.where(index < self.sinks, index, seen - S + index)
        distance = seen - T + torch.arange(T, device=seen.device)[:, None] - place
        return distance if self.causal else distance.abs()

    def sees(self, distance: Tensor, S: int) -> Tensor:
        """Which of the S known tokens a token looks at, (T, S)."""
        past = distance >= 0
        if self.window is None:
            return past
        near = (distance < self.window * self.dilation) & (distance % self.dilation == 0)
        return past & (near | (torch.arange(S, device=distance.device) < self.sinks))


def alibi_slopes(heads: int) -> Tensor:
    """Slopes of ALiBi, 2^(-8 h / H), h = 1..H; for H no power of two as in the released code.

    There come first the slopes of the power of two below H, then every second one of its double.
    """
    whole = 2 ** math.floor(math.log2(heads))
    first = 2.0 ** (-8.0 * torch.arange(1, whole + 1) / whole)
    between = 2.0 ** (-4.0 * torch.arange(1, 2 * whole + 1, 2) / whole)
    return torch.cat((first, between[: heads - whole]))


def distance_buckets() -> Tensor:
    """Which of T5's learned biases a distance has, for distances 0..FAR, (FAR + 1,) integers."""
    distance = torch.arange(FAR + 1, dtype=torch.float64)
    far = NEAR + (distance / NEAR).log() / math.log(FAR / NEAR) * (BUCKETS - NEAR)
    return torch.where(distance < NEAR, distance, far).clamp(max=BUCKETS - 1).long()
