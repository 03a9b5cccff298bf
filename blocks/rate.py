"""A stretch of layers at a lower rate: groups of r tokens pooled into one, and spread out again.

    u_j = mean(x_{jr}, ..., x_{jr+r-1})               one of r tokens, once the group is whole
    y_t = x_t + (h_j - u_j),  j = floor((t + 1) / r) - 1          the last whole group at time t

h is what the layers between make of u, so that layers that add nothing change nothing. Causal: a
group is used from its last token on; before the first is whole, y = x. (Nawrot et al. 2022 shift by
r - 1 for the same end.)
"""

import torch
from torch import Tensor, nn

from .block import State


class Pool(nn.Module):
    """u (B, floor(T / r), D), state = pool(x (B, T, D), state).

    State: the tokens of a group that is not whole yet, (B, less than r, D).
    """

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        if state is not None:
            x = torch.cat((state, x), dim=1)
        whole = x.shape[1] // self.rate * self.rate
        return x[:, :whole].unflatten(1, (-1, self.rate)).mean(2), x[:, whole:]


class Unpool(nn.Module):
    """y (B, T, D), state = unpool(x (B, T, D), u, h, state), u and h (B, groups, D).

    State: (the last h - u, (B, 1, D); how many tokens the pool holds).
    """

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, u: Tensor, h: Tensor, state: State = None) -> tuple[Tensor, State]:
        held, rest = state if state is not None else (torch.zeros_like(x[:, :1]), 0)
        added = torch.cat((held, h - u), dim=1)
        T = x.shape[1]
        group = (torch.arange(1, T + 1, device=x.device) + rest) // self.rate
        return x + added[:, group], (added[:, -1:], (rest + T) % self.rate)
