"""Attention without the softmax: a positive feature map phi, and sums that fit a fixed state.

    S_t = S_{t-1} + phi(k_t) v_t^T      z_t = z_{t-1} + phi(k_t)       per head
    y_t = W_o (S_t^T phi(q_t) / z_t . phi(q_t))

linear_attention   phi(x) = elu(x) + 1                              (Katharopoulos et al. 2020)
performer          phi(x)_m = exp(w_m . x / K^1/4 - |x|^2 / (2 K^1/2)) / M^1/2, w_m normal and in
                   blocks of K orthogonal, so that E phi(q) . phi(k) = exp(q . k / K^1/2): softmax
                   attention's weights on average              (Choromanski et al. 2021, FAVOR+)

The normaliser z is one more value channel, the constant 1.

Performer's exponents need a maximum taken off. Of a query's own features that is free: it cancels.
Of keys it is the largest exponent so far, m_t, and is a decay: S and z are held in units of
exp(m_t), and a new maximum shrinks what is in them by exp(m_{t-1} - m_t). (The released code takes
the maximum over the whole sequence, which looks ahead.)
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.scan import scan
from .block import Mixer, State, null_if, require_divisor, require_positive
from .short_conv import conv_of

EPS = 1e-6
"""Added to every feature of a performer, as released; the least denominator of linear attention."""


class LinearAttention(Mixer, name="linear_attention"):
    """Linear attention with elu + 1 and its normaliser (Katharopoulos et al. 2020).

    State: (S and z (B, H, K, V + 1) float32, the convolution's state or None).

    Args:
        heads: number of heads, each of width dim / heads.
        conv: width of a causal convolution over q, k and v; 0 is none.
    """

    def __init__(self, dim: int, *, heads: int = 4, conv: int = 0) -> None:
        super().__init__()
        require_divisor("linear_attention", "heads", heads, dim, "dim")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.conv = conv_of(self.name, 3 * dim, conv)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        S, window = state if state is not None else (None, None)
        qkv = self.qkv(x)
        if self.conv is not None:
            qkv, window = self.conv(qkv, window)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in qkv.chunk(3, dim=-1))
        o, S = normalised(F.elu(q) + 1, F.elu(k) + 1, v, None, S)
        return self.out(o.flatten(-2)), (S, window)


class Performer(Mixer, name="performer"):
    """Softmax attention approximated by random features, FAVOR+ (Choromanski et al. 2021).

    State: (S and z (B, H, M, V + 1) float32, the largest exponent (B, H), the convolution's state
    or None).

    Args:
        heads: number of heads, each of width K = dim / heads.
        features: random features M per head; null is 2 K.
        seed: of the features, which are drawn once and not trained.
        conv: width of a causal convolution over q, k and v; 0 is none.
    """

    directions: Tensor

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        features: int | None = None,
        seed: int = 0,
        conv: int = 0,
    ) -> None:
        super().__init__()
        require_divisor("performer", "heads", heads, dim, "dim")
        width = dim // heads
        features = 2 * width if features is None else features
        require_positive("performer", features=features)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.conv = conv_of(self.name, 3 * dim, conv)
        self.out = nn.Linear(dim, dim, bias=False)
        self.register_buffer("directions", orthogonal_directions(features, width, seed))

    @classmethod
    def canonical(cls, options: dict[str, Any], *sizes: int) -> dict[str, Any]:
        (dim,), heads = sizes, options["heads"]
        meant = 2 * (dim // heads) if heads > 0 else None
        return options | {"features": null_if(options["features"], meant)}

    def exponents(self, x: Tensor) -> Tensor:
        """w_m . x / K^1/4 - |x|^2 / (2 K^1/2), (B, T, H, M)."""
        x = x * x.shape[-1] ** -0.25
        return x @ self.directions.mT.to(x.dtype) - x.square().sum(-1, keepdim=True) / 2

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        S, before, window = state if state is not None else (None, None, None)
        qkv = self.qkv(x)
        if self.conv is not None:
            qkv, window = self.conv(qkv, window)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in qkv.chunk(3, dim=-1))
        q, k = self.exponents(q), self.exponents(k)
        with torch.no_grad():  # no output depends on it but by EPS
            most = k.amax(-1)
            first = most[:, 0] if before is None else before
            most = torch.cat((first[:, None], most), dim=1).cummax(1).values  # (B, 1 + T, H)
        phi_q = (q - q.amax(-1, keepdim=True).detach()).exp() + EPS
        phi_k = (k - most[:, 1:, :, None]).exp() + EPS
        o, S = normalised(phi_q, phi_k, v, most[:, :-1] - most[:, 1:], S)
        return self.out(o.flatten(-2)), (S, most[:, -1], window)


def normalised(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The scan of v and of ones, and the quotient: o (B, T, H, V), state (B, H, K, V + 1)."""
    values = torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)
    o, state = scan(q, k, values, log_decay, scale=1.0, initial_state=state)
    return o[..., :-1] / o[..., -1:].clamp(min=EPS), state


def orthogonal_directions(features: int, width: int, seed: int) -> Tensor:
    """Rows of normal length whose blocks of `width` are orthogonal, (features, width)."""
    generator = torch.Generator().manual_seed(seed)
    blocks = math.ceil(features / width)
    normal = torch.randn(blocks, width, width, generator=generator, dtype=torch.float64)
    Q, R = torch.linalg.qr(normal)
    Q = Q * R.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # or all would point into one half-space
    rows = Q.mT.flatten(0, 1)[:features]
    lengths = torch.randn(features, width, generator=generator, dtype=torch.float64).norm(dim=-1)
    return (lengths[:, None] * rows).float()
