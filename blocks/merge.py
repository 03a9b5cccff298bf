"""Merges: several branches y_1..y_n that read the same x become one sequence.

sum     y = sum_i c_i y_i,                 c_i = 1, fixed or learned
mean    y = sum_i y_i / n
concat  y = W [y_1; ...; y_n]
gate    y = sum_i g_i * y_i,               g_i = sigmoid(theta_i) per channel, or sigmoid(W_i x_t)
route   y_t = sum_i p_i(x_t) y_i,          p = softmax(W x_t / temperature), one weight per branch;
                                           or 1 for the largest and 0 for the others, whose gradient
                                           is taken for that of p (Bengio et al. 2013)

The two that choose may have an auxiliary loss (auxiliary.py), lambda times the mean entropy of what
they choose, in nats, over all tokens (and channels):

gate    H = sum_i -g_i ln g_i - (1 - g_i) ln(1 - g_i)        dH/dz_i = -g_i (1 - g_i) z_i
route   H = sum_i -p_i ln p_i                                dH/dz_i = -p_i (ln p_i + H)

with z what the sigmoid or the softmax reads. lambda > 0 asks for decisions (entropy minimisation,
Grandvalet and Bengio 2005), lambda < 0 keeps choices open (confidence penalty, Pereyra et al.
2017).
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from .auxiliary import AuxiliaryLoss
from .block import Family, require_positive


class Merge(nn.Module, Family):
    """Built as Merge(dim, branches, **options).

    forward(x (B, T, D), *branches, each (B, T, D)) -> (B, T, D). The order of the branches has no
    meaning beyond which weights are theirs.
    """

    def forward(self, x: Tensor, *branches: Tensor) -> Tensor:
        raise NotImplementedError


class Sum(Merge, name="sum"):
    """Weighted sum, at birth the plain one.

    Args:
        scale: fixed weights 1, or one learned weight per branch.
    """

    weight: Tensor

    def __init__(
        self, dim: int, branches: int, *, scale: Literal["fixed", "learned"] = "fixed"
    ) -> None:
        super().__init__()
        weight = torch.ones(branches)
        if scale == "learned":
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor, *branches: Tensor) -> Tensor:
        return torch.einsum("n,nbtd->btd", self.weight, torch.stack(branches))


class Mean(Merge, name="mean"):
    """The mean of the branches."""

    def __init__(self, dim: int, branches: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, *branches: Tensor) -> Tensor:
        return torch.stack(branches).mean(0)


class Concat(Merge, name="concat"):
    """Concatenation along the width, projected back."""

    def __init__(self, dim: int, branches: int) -> None:
        super().__init__()
        self.project = nn.Linear(branches * dim, dim, bias=False)

    def forward(self, x: Tensor, *branches: Tensor) -> Tensor:
        return self.project(torch.cat(branches, dim=-1))


class Gate(Merge, AuxiliaryLoss, name="gate"):
    """A sigmoid gate on every channel of every branch.

    Args:
        per: channel is a learned constant; token reads the gate from x_t.
        entropy: factor of the mean entropy of the gates as a loss, in training: above 0 they are
            driven to 0 or 1, below 0 to one half; 0 is none.
    """

    def __init__(
        self,
        dim: int,
        branches: int,
        *,
        per: Literal["token", "channel"] = "token",
        entropy: float = 0.0,
    ) -> None:
        super().__init__()
        _require_finite("gate", entropy)
        self.shape = (branches, dim)
        self.per, self.entropy = per, entropy
        if per == "token":
            self.read = nn.Linear(dim, branches * dim)
        else:
            self.theta = nn.Parameter(torch.zeros(branches, dim))

    def forward(self, x: Tensor, *branches: Tensor) -> Tensor:
        token = self.per == "token"
        logits = self.read(x).unflatten(-1, self.shape) if token else self.theta
        if self.training and self.entropy:
            z = logits.detach()
            g, chosen = torch.sigmoid(z), z.numel() // len(branches)
            logits = self.add_gradient(logits, -self.entropy / chosen * g * (1 - g) * z)
        return (torch.sigmoid(logits) * torch.stack(branches, dim=-2)).sum(-2)  # over n


class Route(Merge, AuxiliaryLoss, name="route"):
    """A router: per token, one probability per branch.

    Args:
        temperature: divides the logits; small is decided, large is even.
        hard: the likeliest branch alone, with the gradient of the probabilities straight through.
            All branches are computed all the same.
        entropy: factor of the mean entropy of p as a loss, in training: above 0 a token is driven
            to one branch, below 0 to all of them; 0 is none.
    """

    def __init__(
        self,
        dim: int,
        branches: int,
        *,
        temperature: float = 1.0,
        hard: bool = False,
        entropy: float = 0.0,
    ) -> None:
        super().__init__()
        require_positive("route", temperature=temperature)
        _require_finite("route", entropy)
        self.read = nn.Linear(dim, branches)
        self.temperature, self.hard, self.entropy = temperature, hard, entropy

    def forward(self, x: Tensor, *branches: Tensor) -> Tensor:
        logits = self.read(x) / self.temperature  # (B, T, n)
        if self.training and self.entropy:
            log_p = torch.log_softmax(logits.detach(), dim=-1)
            p = log_p.exp()
            above = log_p - (p * log_p).sum(-1, keepdim=True)  # ln p + H
            chosen = logits.numel() // len(branches)
            logits = self.add_gradient(logits, -self.entropy / chosen * p * above)
        p = torch.softmax(logits, dim=-1)
        if self.hard:
            chosen = torch.zeros_like(p).scatter(-1, p.argmax(-1, keepdim=True), 1.0)
            p = chosen + p - p.detach()
        return torch.einsum("btn,btnd->btd", p, torch.stack(branches, dim=-2))


def _require_finite(merge: str, entropy: float) -> None:
    if not math.isfinite(entropy):
        raise ValueError(f"{merge}: entropy must be a finite number, got {entropy}")
