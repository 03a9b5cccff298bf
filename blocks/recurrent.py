"""Recurrent nets: a vector of state, squeezed through a nonlinearity at every step.

rnn    h_t = tanh(W x_t + U h_{t-1} + b)                                             (Elman 1990)
lstm   i, f, o = sigmoid(W x_t + U h_{t-1} + b),   g = tanh(W x_t + U h_{t-1} + b)
       c_t = f * c_{t-1} + i * g,   h_t = o * tanh(c_t)          (Hochreiter and Schmidhuber 1997;
                                                                 forget gate Gers et al. 2000)
gru    r, z = sigmoid(W x_t + U h_{t-1} + b),   n = tanh(W x_t + b + r * (U h_{t-1} + b))
       h_t = (1 - z) * n + z * h_{t-1}                                        (Cho et al. 2014)

and y_t = W_o h_t. Cells and their births are PyTorch's. Nothing here runs in parallel over time.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from .block import Mixer, State, require_positive


# Biases, one layer, no dropout, training (cuDNN then keeps what the backward pass needs), one
# direction, (B, T, D).
LAYOUT = True, 1, 0.0, True, False, True


class _Recurrent(Mixer):
    """One layer of one of torch.nn's recurrent nets, and a projection."""

    net: ClassVar[type[nn.RNNBase]]

    def __init__(self, dim: int, *, expand: int = 1) -> None:
        super().__init__()
        require_positive(self.name, expand=expand)
        self.width = expand * dim
        # W, U and their biases; torch.compile takes the function that torch.nn's module calls, and
        # not the module.
        self.weights = nn.ParameterList(self.net(dim, self.width).parameters())
        self.out = nn.Linear(self.width, dim, bias=False)

    def start(self, x: Tensor) -> Tensor:
        """The state before the first step, (1, B, expand D)."""
        return x.new_zeros(1, len(x), self.width)


class Rnn(_Recurrent, name="rnn"):
    """Elman's recurrent net (Elman 1990).

    State: h (B, expand D).

    Args:
        expand: width of the state as a multiple of the model width.
    """

    net = nn.RNN

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        h = self.start(x) if state is None else state[None]
        y, h = torch.rnn_tanh(x, h, list(self.weights), *LAYOUT)
        return self.out(y), h[0]


class Gru(_Recurrent, name="gru"):
    """Gated recurrent unit (Cho et al. 2014).

    State: h (B, expand D).

    Args:
        expand: width of the state as a multiple of the model width.
    """

    net = nn.GRU

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        h = self.start(x) if state is None else state[None]
        y, h = torch.gru(x, h, list(self.weights), *LAYOUT)
        return self.out(y), h[0]


class Lstm(_Recurrent, name="lstm"):
    """Long short-term memory (Hochreiter and Schmidhuber 1997).

    State: (h (B, expand D), c (B, expand D)).

    Args:
        expand: width of the state as a multiple of the model width.
    """

    net = nn.LSTM

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        h, c = (self.start(x), self.start(x)) if state is None else (state[0][None], state[1][None])
        y, h, c = torch.lstm(x, (h, c), list(self.weights), *LAYOUT)
        return self.out(y), (h[0], c[0])
