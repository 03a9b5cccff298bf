"""Synthesizer: attention whose weights no key has a say in.

    y_t = W_o sum_s softmax_s(a_ts) v_s                                    per head, s = 1..T

dense    a_t = W_2 relu(W_1 x_t + b_1) + b_2, one entry for every place up to L
random   a = R, learned, (L, L); with a rank r, R_1 R_2^T                     (Tay et al. 2021)

Weights fall on places after t as well: for models with `causal: false`. They belong to places, so
no sequence is longer than L.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from .block import Mixer, State, require_divisor, require_length, require_positive, require_whole


class Synthesizer(Mixer, name="synthesizer"):
    """Synthetic attention (Tay et al. 2021); sees the future.

    Args:
        heads: number of heads, each of width dim / heads.
        weights: dense reads them from the token; random learns them, the same for all sequences.
        rank: of the random weights; null is a full matrix.
        length: the longest sequence L.
    """

    causal = False

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        weights: Literal["dense", "random"] = "dense",
        rank: int | None = None,
        length: int = 256,
    ) -> None:
        super().__init__()
        require_divisor("synthesizer", "heads", heads, dim, "dim")
        require_positive("synthesizer", length=length)
        if rank is not None:
            require_positive("synthesizer", rank=rank)
            if weights == "dense":
                raise ValueError(
                    f"synthesizer: rank ({rank}) is of random weights; leave it at null for dense "
                    "ones, or set weights: random"
                )
        self.heads, self.weights = heads, weights
        self.length = self.longest = length
        width = dim // heads
        self.values = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        if weights == "dense":
            self.hidden = nn.Linear(dim, dim)
            self.scores = nn.Parameter(torch.randn(heads, width, length) * width**-0.5)
            self.bias = nn.Parameter(torch.zeros(heads, 1, length))
        else:
            sizes = [(heads, length, length)] if rank is None else 2 * [(heads, length, rank)]
            std = 1.0 if rank is None else rank**-0.25  # so that scores have unit variance
            self.R = nn.ParameterList(std * torch.randn(size) for size in sizes)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        require_whole("synthesizer", state)
        T = require_length("synthesizer", x, self.length)
        v = self.per_head(self.values(x))
        if self.weights == "dense":
            hidden = self.per_head(torch.relu(self.hidden(x)))
            a = hidden @ self.scores[..., :T] + self.bias[..., :T]  # (B, H, T, T)
        elif len(self.R) == 1:
            a = self.R[0][:, :T, :T]
        else:
            a = self.R[0][:, :T] @ self.R[1][:, :T].mT
        y = torch.softmax(a, dim=-1).to(v.dtype) @ v
        return self.out(y.transpose(1, 2).flatten(-2)), None

    def per_head(self, z: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, K)."""
        return z.unflatten(-1, (self.heads, -1)).transpose(1, 2)
