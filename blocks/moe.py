"""Mixture of experts: a router sends every token to k of E small SwiGLU layers.

    p = softmax(W_r x_t)                        over E experts
    y_t = sum_{e in top-k(p)} w_e W_down,e (silu(W_gate,e x_t) * W_up,e x_t)
    w_e = p_e / sum_{top-k} p for k > 1, and p_e for k = 1, whose quotient would be 1 and leave the
    router without a gradient                       (Shazeer et al. 2017; k = 1 Fedus et al. 2022)

No token is dropped. A capacity, so many tokens an expert and no more, would let the tokens that
come first in a batch decide about the others: rows would see each other, and a stream would not
give what the whole sequence gives.

Experts stay in use by a second loss, E sum_e f_e P_e with f the share of the assignments that went
to e and P the mean of p (Fedus et al. 2022, eq. 4); its gradient to p_t is E f_e / tokens. The
block adds it by itself (auxiliary.py). Of a batch read in pieces f is each piece's own: what comes
is the mean of the pieces' losses, which is the batch's where their loads are equal, and asks for
more where they differ, as loads may be even in all and in no piece (Qiu et al. 2025).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.grouped_mm import grouped_mm
from .auxiliary import AuxiliaryLoss
from .block import ChannelMixer, State, exact_expand, hidden_width, require_positive


class MoE(ChannelMixer, AuxiliaryLoss, name="moe"):
    """Sparsely gated experts (Shazeer et al. 2017), each a SwiGLU, no token dropped.

    Args:
        experts: number of experts E.
        top_k: experts that see a token.
        expand: hidden width of one expert as a multiple of the model width; a token costs what a
            swiglu of top_k * expand does, and the router.
        balance: factor of the loss that keeps the experts' loads even, in training; 0 is none.
    """

    def __init__(
        self,
        dim: int,
        *,
        experts: int = 4,
        top_k: int = 2,
        expand: float = 1.0,
        balance: float = 0.01,
    ) -> None:
        super().__init__()
        require_positive("moe", experts=experts, expand=expand)
        if not 1 <= top_k <= experts:
            raise ValueError(f"moe: top_k must be from 1 to experts ({experts}), got {top_k}")
        if not balance >= 0:
            raise ValueError(f"moe: balance must not be negative, got {balance}")
        hidden = hidden_width(expand, dim)
        self.experts, self.top_k, self.balance = experts, top_k, balance
        self.router = nn.Linear(dim, experts, bias=False)
        # Linear maps in name, birth and weight decay; applied in slices, one for each expert.
        self.up = nn.Linear(dim, experts * 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, experts * dim, bias=False)

    @classmethod
    def canonical(cls, options: dict[str, Any], *sizes: int) -> dict[str, Any]:
        if options["top_k"] == options["experts"] and 0 <= options["balance"] < math.inf:
            options = options | {"balance": 0.0}  # all loads are equal: a loss without a gradient
        return options | {"expand": exact_expand(options["expand"], sizes[0])}

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        tokens = x.flatten(0, 1)  # (N, D)
        p, chosen, count = self.route(tokens)
        if self.training and self.balance > 0:
            share = count.to(p.dtype) / chosen.numel()  # f
            p = self.add_gradient(p, self.balance * self.experts / len(p) * share)
        weight = p.gather(-1, chosen)  # (N, k)
        if self.top_k > 1:
            weight = weight / weight.sum(-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)  # of the N k assignments, by expert
        ends = count.cumsum(0)
        up, down = (m.weight.unflatten(0, (self.experts, -1)) for m in (self.up, self.down))
        gate, value = grouped_mm(tokens[order // self.top_k], up, ends).chunk(2, dim=-1)
        sorted_y = grouped_mm(F.silu(gate) * value, down, ends)
        y = sorted_y[order.argsort()].unflatten(0, (-1, self.top_k))  # (N, k, D)
        y = (weight.to(y.dtype)[..., None] * y).sum(1)
        return y.unflatten(0, x.shape[:2]), None

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of tokens (N, D): p (N, E), the experts chosen (N, k), how often each was, (E,)."""
        p = torch.softmax(self.router(tokens), dim=-1)
        chosen = p.topk(self.top_k, dim=-1).indices
        experts = torch.arange(self.experts, device=p.device)
        return p, chosen, (chosen.flatten()[:, None] == experts).sum(0)
