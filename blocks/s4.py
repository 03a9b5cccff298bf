"""S4 (Gu, Goel and Re 2022), a state space that remembers its past as polynomials.

    h' = (Lambda - P P*) h + B x,  y = 2 Re(C h) + D x      per channel, h in C^(N/2)
    out = W_o glu(gelu(y))

P* h is over the states and their implied conjugates, 2 Re(sum conj(P_n) h_n). Discretised by the
bilinear rule with a step Delta,

    A = 2 R - 1,  B = Delta R B         R = (1 - Delta / 2 (Lambda - P P*))^-1

of which R is the inverse of a diagonal but for one direction (Woodbury): a step takes O(N).
Re Lambda = -exp(.) is negative and P P* is not, so that no A makes a state longer.

Birth: HiPPO-LegS, A_nk = -((2n+1)(2k+1))^1/2 for n > k, -(n+1) for n = k, 0 above, and
B_n = (2n+1)^1/2, n = 0..N-1. With P_n = (n + 1/2)^1/2, A + P P^T is -1/2 plus a skew matrix, whose
eigenvectors give Lambda, P and B. Delta log-uniform in [1e-3, 1e-1]; C complex normal, D normal.

The paper takes the kernel from its generating function at the T-th roots of unity, Cauchy products
for each of T points, and needs A^T for it; here A is squared as a real matrix (D, N, N), log2 T
times in all, which the final state needs anyway (state_space.py). The one P (not P and Q) is of
Goel et al. 2022 (SaShiMi, section 4.1).
"""

from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from .block import Mixer, State
from .state_space import Dense, StateSpace, Transition, diagonal, mixed, stacked


def hippo_legs(N: int) -> tuple[Tensor, Tensor]:
    """A (N, N) and B (N,) of HiPPO-LegS, float64."""
    root = (2 * torch.arange(N, dtype=torch.float64) + 1).sqrt()
    below = torch.outer(root, root).tril(-1)
    return -below - (torch.arange(N, dtype=torch.float64) + 1).diag(), root


@cache
def diagonalised(N: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lambda, P and B of HiPPO-LegS (N / 2,), complex: of each pair the one that turns forward."""
    with torch.device("cpu"):
        A, B = hippo_legs(N)
        P = B / 2**0.5
        skew = A + torch.outer(P, P) + 0.5 * torch.eye(N, dtype=torch.float64)
        frequency, V = torch.linalg.eigh(torch.complex(torch.zeros_like(skew), -skew))
        V = V[:, N // 2 :]  # ascending, and symmetric about zero
        P, B = (V.mH @ z.to(V.dtype) for z in (P, B))
        phase = B / B.abs()  # an eigenvector's own is arbitrary: B is real and positive
        frequency = frequency[N // 2 :]
        return torch.complex(torch.full_like(frequency, -0.5), frequency), P / phase, B / phase


class LowRank:
    """A diagonal less one direction: turn - into (D, N, 1) along (D, 1, N)."""

    def __init__(self, turn: Transition, into: Tensor, along: Tensor) -> None:
        self.turn, self.into, self.along = turn, into, along

    def __call__(self, columns: Tensor) -> Tensor:
        along = torch.bmm(self.along, columns)
        return torch.baddbmm(self.turn(columns), self.into, along, alpha=-1)

    def squared(self) -> Transition:
        D, N, _ = self.into.shape
        one = torch.eye(N, dtype=self.into.dtype, device=self.into.device).expand(D, N, N)
        return Dense(self(one)).squared()

    def transposed(self) -> Transition:
        return LowRank(self.turn.transposed(), self.along.mT, self.into.mT)


def bilinear(rate: Tensor, P: Tensor, delta: Tensor) -> Transition:
    """A = 2 (1 - Delta / 2 (Lambda - P P*))^-1 - 1 of Lambda, P (D, N / 2) and Delta (D or 1, 1).

    With d = 1 - Delta Lambda / 2 (Woodbury):
    (d + P P* Delta / 2)^-1 = 1/d - (P / d) (P* / d) / (2 / Delta + P* P / d)
    """
    own = 1 / (1 - delta / 2 * rate)
    size = 2 * (P.abs().square() * own.real).sum(1, keepdim=True)
    into = stacked(own * P) * 2 / (2 / delta + size)
    along = 2 * stacked((P.conj() * own).conj())
    return LowRank(diagonal(2 * own - 1), into[..., None], along[:, None])


class LowRankSSM(StateSpace):
    """The systems alone: y (B, T, D), state (B, D, N), real parts first."""

    def __init__(self, block: str, channels: int, *, state: int, step: str) -> None:
        super().__init__(block, channels, state, step)
        rate, P, B = (z.to(torch.get_default_device()) for z in diagonalised(state))
        self.log_rate = nn.Parameter((-rate.real).log().float().repeat(channels, 1))
        self.frequency = nn.Parameter(rate.imag.float().repeat(channels, 1))
        self.P = nn.Parameter(torch.view_as_real(P).float().repeat(channels, 1, 1))
        self.B = nn.Parameter(torch.view_as_real(B).float().repeat(channels, 1, 1))

    def discretised(self, dtype: torch.dtype) -> tuple[Transition, Tensor, Tensor]:
        rate = torch.complex(-self.log_rate.to(dtype).exp(), self.frequency.to(dtype))
        P, B = (torch.complex(*z.to(dtype).unbind(-1)) for z in (self.P, self.B))
        delta = self.log_step.to(dtype).exp()[:, None]
        A, B = bilinear(rate, P, delta), stacked(B)
        B = delta / 2 * (A(B[..., None])[..., 0] + B)
        return A, B, self.reading(dtype)


class S4(Mixer, name="s4"):
    """Structured state spaces, S4-LegS (Gu, Goel and Re 2022).

    State: (B, D, N) float32. A forward pass of many tokens also holds D N^2 numbers, A squared.

    Args:
        state: state size N per channel, even.
        step: a learned step for every channel, or one for the layer.
        mix: mixing of channels behind the GELU, gated or plain.
    """

    def __init__(
        self,
        dim: int,
        *,
        state: int = 64,
        step: Literal["channel", "layer"] = "channel",
        mix: Literal["glu", "linear"] = "glu",
    ) -> None:
        super().__init__()
        self.ssm = LowRankSSM("s4", dim, state=state, step=step)
        self.out = mixed(dim, mix)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        y, state = self.ssm(x, state)
        return self.out(y), state
