"""The output stage that gated mixers share: a norm of every head, and a gate read from the input.

    y_t = W_o (norm(o_t) * act(W_g x_t))

norm  rms      o / sqrt(mean(o^2) + eps) over a head's channels, times w or bare
      group    (o - mean(o)) / sqrt(var(o) + eps) over a head's channels, * w + b, each channel its
               own (a group norm with a group for every head; Wu and He 2018)
      none     o
act   silu     z sigmoid(z), which is swish by another name (Hendrycks and Gimpel 2016; Ramachandran
               et al. 2017)
      sigmoid
      none     no gate, and no W_g

Mamba's gate has its own place: a part of the first projection, and in Mamba-2 before the norm.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block import Mixer

GateKind = Literal["silu", "sigmoid", "none"]
NormKind = Literal["rms", "group", "none"]


class Gated(Mixer):
    """A mixer whose heads are normed, gated and projected."""

    def read_by(
        self,
        dim: int,
        heads: int,
        inner: int,
        norm: NormKind,
        gate: GateKind,
        *,
        affine: bool = True,
        eps: float = 1e-6,
    ) -> None:
        """Makes the stage for `inner` channels of all heads; affine is whether rms has a w."""
        if norm == "rms":
            self.norm = nn.RMSNorm(inner // heads, eps=eps, elementwise_affine=affine)
        else:
            self.norm = _HeadNorm(heads, inner, eps) if norm == "group" else nn.Identity()
        self.gate = None if gate == "none" else nn.Linear(dim, inner, bias=False)
        self.activation = torch.sigmoid if gate == "sigmoid" else F.silu
        self.out = nn.Linear(inner, dim, bias=False)

    def read(self, o: Tensor, x: Tensor) -> Tensor:
        """Of o (B, T, H, V) and the mixer's input x, y; both (B, T, D)."""
        o = self.norm(o).flatten(-2)
        if self.gate is not None:
            o = o * self.activation(self.gate(x))
        return self.out(o)


@torch.no_grad()
def born_small(qkv: nn.Linear, widths: Sequence[int], *others: nn.Linear | None) -> None:
    """Glorot and Bengio's birth times 2^(-5/2), as RetNet, GLA and the delta rule are released.

    A norm blows an output near zero up, as where the first query is nearly orthogonal to its key,
    and the gradient with it: a thousandfold in 24 layers. Small outputs leave that to its eps.
    """
    for weight in (*qkv.weight.split(list(widths)), *(m.weight for m in others if m is not None)):
        nn.init.xavier_uniform_(weight, gain=2**-2.5)


class _HeadNorm(nn.GroupNorm):
    """A group norm of every token by itself, (B, T, H, V)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(-2).flatten(0, 1)).view_as(input)
