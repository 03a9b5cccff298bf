"""Norms over the width.

rmsnorm    y = x / sqrt(mean(x^2) + eps) * w                 (Zhang and Sennrich 2019)
layernorm  y = (x - mean(x)) / sqrt(var(x) + eps) * w + b    (Ba et al. 2016)
"""

from torch import nn

from .block import Family


class Norm(nn.Module, Family):
    """A map of each token's vector, (B, T, D) -> (B, T, D). Built as Norm(dim, **options)."""


class RMSNorm(nn.RMSNorm, Norm, name="rmsnorm"):
    """Root-mean-square norm with a learned scale (Zhang and Sennrich 2019).

    Args:
        eps: added to the mean square.
    """

    def __init__(self, dim: int, *, eps: float = 1e-6) -> None:
        super().__init__(dim, eps=eps)


class LayerNorm(nn.LayerNorm, Norm, name="layernorm"):
    """Layer norm with learned scale and shift (Ba et al. 2016).

    Args:
        eps: added to the variance.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__(dim, eps=eps)
