"""S4D (Gu, Gupta, Goel and Re 2022), a diagonal state space for every channel.

    h' = Lambda h + B x,  y = 2 Re(C h) + D x        h in C^(N/2), Lambda diagonal, per channel
    out = W_o glu(gelu(y))

Discretised with a step Delta, zoh:       A = exp(Delta Lambda),     B = (A - 1) / Lambda
                               bilinear:  A = (1 + Delta Lambda / 2) / (1 - Delta Lambda / 2),
                                          B = Delta / (1 - Delta Lambda / 2)
Continuous B is one, for only its product with C is seen. Re Lambda = -exp(.) stays negative.

Birth: Delta log-uniform in [1e-3, 1e-1]; C complex normal, D normal; Lambda_n, n = 0..N/2-1,
    lin    -1/2 + i pi n
    inv    -1/2 + i N / pi (N / (2 n + 1) - 1)
    real   -(n + 1)
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from .block import Mixer, State
from .state_space import StateSpace, Transition, diagonal, mixed, stacked

Init = Literal["lin", "inv", "real"]
Discretisation = Literal["zoh", "bilinear"]


class DiagonalSSM(StateSpace):
    """The systems alone: y (B, T, D), state (B, D, N), real parts first."""

    def __init__(
        self, block: str, channels: int, *, state: int, init: str, step: str, discretisation: str
    ) -> None:
        super().__init__(block, channels, state, step)
        self.discretisation = discretisation
        n = torch.arange(state // 2)
        rate = n + 1.0 if init == "real" else torch.full((state // 2,), 0.5)
        frequency = {
            "lin": math.pi * n,
            "inv": state / math.pi * (state / (2 * n + 1) - 1),
            "real": 0.0 * n,
        }[init]
        self.log_rate = nn.Parameter(rate.log().repeat(channels, 1))
        self.frequency = nn.Parameter(frequency.repeat(channels, 1))

    def discretised(self, dtype: torch.dtype) -> tuple[Transition, Tensor, Tensor]:
        rate = torch.complex(-self.log_rate.to(dtype).exp(), self.frequency.to(dtype))
        delta = self.log_step.to(dtype).exp()[:, None]
        if self.discretisation == "zoh":
            drift = torch.expm1(delta * rate)  # no 1 - 1 where Delta is small
            A, B = drift + 1, drift / rate
        else:
            half = delta / 2 * rate
            A, B = (1 + half) / (1 - half), delta / (1 - half)
        return diagonal(A), stacked(B), self.reading(dtype)


class S4D(Mixer, name="s4d"):
    """Diagonal state spaces (Gu, Gupta, Goel and Re 2022).

    State: (B, D, N) float32.

    Args:
        state: state size N per channel, even.
        init: eigenvalues at birth.
        discretisation: zero-order hold or bilinear.
        step: a learned step for every channel, or one for the layer.
        mix: mixing of channels behind the GELU, gated or plain.
    """

    def __init__(
        self,
        dim: int,
        *,
        state: int = 64,
        init: Init = "lin",
        discretisation: Discretisation = "zoh",
        step: Literal["channel", "layer"] = "channel",
        mix: Literal["glu", "linear"] = "glu",
    ) -> None:
        super().__init__()
        self.ssm = DiagonalSSM(
            "s4d", dim, state=state, init=init, step=step, discretisation=discretisation
        )
        self.out = mixed(dim, mix)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        y, state = self.ssm(x, state)
        return self.out(y), state
