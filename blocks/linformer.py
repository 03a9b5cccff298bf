"""Linformer: softmax attention over r summaries of the sequence instead of its T tokens.

    k', v' = E k, F v                                    E, F (r, L) learned, their first T columns
    y_t    = W_o sum_{i<r} softmax_i(K^(-1/2) q_t . k'_i) v'_i                  (Wang et al. 2020)

Every summary holds every token, so y_t sees the future: for models with `causal: false`. The
columns of E and F belong to places, so no sequence is longer than L.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .block import Mixer, State, require_divisor, require_length, require_positive, require_whole
from .short_conv import conv_of


class Linformer(Mixer, name="linformer"):
    """Attention over low-rank keys and values (Wang et al. 2020); sees the future.

    Args:
        heads: number of heads, each of width dim / heads.
        summaries: their number r; the heads share them.
        length: the longest sequence L.
        conv: width of a causal convolution over q, k and v; 0 is none.
    """

    causal = False

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        summaries: int = 32,
        length: int = 256,
        conv: int = 0,
    ) -> None:
        super().__init__()
        require_divisor("linformer", "heads", heads, dim, "dim")
        require_positive("linformer", summaries=summaries, length=length)
        self.heads, self.longest = heads, length
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.conv = conv_of(self.name, 3 * dim, conv)
        self.summarise = nn.Linear(length, 2 * summaries, bias=False)  # E over F
        nn.init.normal_(self.summarise.weight, std=length**-0.5)  # whole sequences keep their size
        self.out = nn.Linear(dim, dim, bias=False)

    @classmethod
    def canonical(cls, options: dict[str, Any], *sizes: int) -> dict[str, Any]:
        (dim,), heads = sizes, options["heads"]
        if options["summaries"] == 1 and heads > 0 and dim % heads == 0:  # whose softmax is 1
            return options | {"heads": 1}
        return options

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        require_whole("linformer", state)
        T = require_length("linformer", x, self.summarise.in_features)
        qkv = self.qkv(x)
        if self.conv is not None:
            qkv, _ = self.conv(qkv)
        q, k, v = qkv.chunk(3, dim=-1)  # (B, T, D) each
        of_keys, of_values = self.summarise.weight[:, :T].chunk(2)  # E and F, (r, T)
        parts = (q, of_keys @ k, of_values @ v)
        heads = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(*heads)
        return self.out(y.transpose(1, 2).flatten(-2)), None
