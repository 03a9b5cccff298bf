"""Decays: how fast each head forgets, carried as natural logarithms (log_decay <= 0).

fixed      log gamma_h, never trained                               (Sun et al. 2023, RetNet)
learned    log gamma_h = -exp(a_h)
selective  log alpha_t = -exp(a_h) softplus(w_h x_t + b_h) + log r_t,   r_t = sigmoid(w_r x_t + b_r)
           and a write gate s_t on the key: none, sigmoid(W x), softplus(W x) or tied, 1 - alpha_t

A half-life of n tokens is log gamma = -ln 2 / n. RetNet's gamma_h = 1 - 2^(-5-h) has half-lives of
about 22, 44, 89, ... tokens: each head remembers twice as long as the one before. `half_life` keeps
that ladder and moves its first rung.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block import Family, null_if, require_divisor, require_positive

OPEN = 6.0
"""Bias of a reset gate at birth: sigmoid(6) = 0.9975, open."""


class Decay(nn.Module, Family):
    """Built by its mixer as Decay(dim, heads, width, **options), width the key width of a head.

    forward(x (B, T, D)) -> (log_decay (H,) | (B, T, H) | (B, T, H, K),
                             write None | (B, T, H, 1) | (B, T, H, K), a factor on the key)
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


def decays_of(kind: str, heads: int, groups: int | None) -> tuple[int, int]:
    """How many decays there are, and how many heads share each."""
    groups = heads if groups is None else groups
    require_divisor(kind, "groups", groups, heads, "heads")
    return groups, heads // groups


def retnet_decay(heads: int) -> Tensor:
    """log(1 - 2^(-5-h)), (H,) (Sun et al. 2023, eq. 8)."""
    return torch.log1p(-(2.0 ** (-5.0 - torch.arange(heads, dtype=torch.float64)))).float()


def ladder(kind: str, heads: int, half_life: float | None) -> Tensor:
    """Initial log-decays (H,): RetNet's, or half-lives half_life * 2^h tokens."""
    if half_life is None:
        return retnet_decay(heads)
    require_positive(kind, half_life=half_life)
    return -math.log(2.0) / (half_life * 2.0 ** torch.arange(heads, dtype=torch.float32))


class FixedDecay(Decay, name="fixed"):
    """One constant decay per head (Sun et al. 2023).

    Args:
        schedule: retnet is 1 - 2^(-5-h); log_spaced is 1 - exp(linspace(ln 1/32, ln 1/512, H)).
        groups: different decays, each shared by heads that lie together; null is one per head.
    """

    log_decay: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        width: int,
        *,
        schedule: Literal["retnet", "log_spaced"] = "retnet",
        groups: int | None = None,
    ) -> None:
        super().__init__()
        groups, share = decays_of("fixed decay", heads, groups)
        if schedule == "retnet":
            log_decay = retnet_decay(groups)
        else:
            rate = torch.linspace(math.log(1 / 32), math.log(1 / 512), groups).exp()
            log_decay = torch.log1p(-rate)
        self.register_buffer("log_decay", log_decay.repeat_interleave(share), persistent=False)

    @classmethod
    def canonical(cls, options: dict[str, Any], *sizes: int) -> dict[str, Any]:
        heads, groups = sizes[1], options["groups"]
        if (heads if groups is None else groups) in (1, 5):  # from 1/32 down; and 1/512 is 2^-9
            options = options | {"schedule": "retnet"}
        return options | {"groups": null_if(groups, heads)}

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.log_decay, None


class LearnedDecay(Decay, name="learned"):
    """One trained decay per head, log gamma_h = -exp(a_h).

    Args:
        half_life: tokens, of the first decay at birth, doubling to the next; null is RetNet's.
        groups: different decays, each shared by heads that lie together; null is one per head.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        width: int,
        *,
        half_life: float | None = None,
        groups: int | None = None,
    ) -> None:
        super().__init__()
        groups, self.share = decays_of("learned decay", heads, groups)
        self.a = nn.Parameter((-ladder("learned decay", groups, half_life)).log())

    @classmethod
    def canonical(cls, options: dict[str, Any], *sizes: int) -> dict[str, Any]:
        return options | {"groups": null_if(options["groups"], sizes[1])}

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return -self.a.exp().repeat_interleave(self.share), None


class SelectiveDecay(Decay, name="selective"):
    """Decay and write strength read from the content; at birth exactly a constant decay.

    The weights w start at zero and b at softplus^-1(-log gamma_h), so that an untrained selective
    retention is a RetNet with the same half-lives; training moves it away from there.

    Args:
        per: one decay per head, or one per key channel.
        half_life: tokens, of the first decay at birth, doubling to the next; null is RetNet's.
        spread: every head its own range: at birth its channels' half-lives go from the head's to
            `spread` times that, evenly in the logarithm; per channel only.
        groups: different decays, each shared by heads that lie together; null is one per head.
        write: factor s_t on the key; tied is 1 - alpha_t.
        reset: a second gate r_t, open at birth, that can wipe a head's state in one step.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        width: int,
        *,
        per: Literal["head", "channel"] = "head",
        half_life: float | None = None,
        spread: float = 1.0,
        groups: int | None = None,
        write: Literal["none", "sigmoid", "softplus", "tied"] = "none",
        reset: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.width, self.write_gate = heads, 1 if per == "head" else width, write
        groups, self.share = decays_of("selective decay", heads, groups)
        if spread < 1 or (spread > 1 and per == "head"):
            raise ValueError(
                f"selective decay: spread must be at least 1, and is of channels; got {spread} per "
                f"{per}: set per: channel, or leave it at 1"
            )
        shorter = spread ** -torch.linspace(0.0, 1.0, self.width)
        rate = -ladder("selective decay", groups, half_life)[:, None] * shorter
        self.a = nn.Parameter(torch.zeros(groups))
        self.select = nn.Linear(dim, groups * self.width)
        nn.init.zeros_(self.select.weight)
        self.select.bias = nn.Parameter(torch.expm1(rate).log().flatten())  # softplus^-1
        if write in ("sigmoid", "softplus"):
            self.write = nn.Linear(dim, heads * self.width)
        if reset:
            self.reset = nn.Linear(dim, heads)
            nn.init.constant_(self.reset.bias, OPEN)
        self.has_reset = reset

    @classmethod
    def canonical(cls, options: dict[str, Any], *sizes: int) -> dict[str, Any]:
        _, heads, width = sizes
        if width == 1 and options["per"] == "channel" and options["spread"] >= 1:
            options = options | {"per": "head", "spread": 1.0}
        return options | {"groups": null_if(options["groups"], heads)}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        per = (self.heads, self.width)
        step = F.softplus(self.select(x).unflatten(-1, (-1, self.width)))
        rate = self.a.exp()[:, None] * step
        log_decay = -rate.repeat_interleave(self.share, dim=-2)  # (B, T, H, 1 | K)
        if self.has_reset:
            log_decay = log_decay + F.logsigmoid(self.reset(x))[..., None]
        write = None
        if self.write_gate == "sigmoid":
            write = torch.sigmoid(self.write(x)).unflatten(-1, per)
        elif self.write_gate == "softplus":
            write = F.softplus(self.write(x)).unflatten(-1, per)
        elif self.write_gate == "tied":
            write = -torch.expm1(log_decay)
        return (log_decay if self.width > 1 else log_decay.squeeze(-1)), write
