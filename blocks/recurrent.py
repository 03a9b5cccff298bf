"""Recurrent nets: a vector of state, squeezed through a nonlinearity at every step.

rnn    h_t = tanh(W x_t + U h_{t-1} + b)                                             (Elman 1990)
lstm   i, f, o = sigmoid(W x_t + U h_{t-1} + b),   g = tanh(W x_t + U h_{t-1} + b)
       c_t = f * c_{t-1} + i * g,   h_t = o * tanh(c_t)          (Hochreiter and Schmidhuber 1997;
                                                                 forget gate Gers et al. 2000)
gru    r, z = sigmoid(W x_t + U h_{t-1} + b),   n = tanh(W x_t + b + r * (U h_{t-1} + b))
       h_t = (1 - z) * n + z * h_{t-1}                                        (Cho et al. 2014)

and y_t = W_o h_t. Cells and their births are PyTorch's. Nothing here runs in parallel over time.
"""

from torch import Tensor, nn

from ..kernels.recurrent import recurrent
from .block import Mixer, State, require_positive


class _Recurrent(Mixer):
    """One layer of one of PyTorch's recurrent nets, and a projection."""

    net: type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]
    states: int = 1

    def __init__(self, dim: int, *, expand: int = 1) -> None:
        super().__init__()
        require_positive(self.name, expand=expand)
        self.weights = nn.ParameterList(self.net(dim, expand * dim).parameters())  # W, U, biases
        self.out = nn.Linear(expand * dim, dim, bias=False)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        if state is None:
            state = [x.new_zeros(len(x), self.out.in_features) for _ in range(self.states)]
        y, state = recurrent(self.name, x, state, list(self.weights))
        return self.out(y), tuple(state)


class Rnn(_Recurrent, name="rnn"):
    """Elman's recurrent net (Elman 1990).

    State: (h (B, expand D),).

    Args:
        expand: width of the state as a multiple of the model width.
    """

    net = nn.RNN


class Gru(_Recurrent, name="gru"):
    """Gated recurrent unit (Cho et al. 2014).

    State: (h (B, expand D),).

    Args:
        expand: width of the state as a multiple of the model width.
    """

    net = nn.GRU


class Lstm(_Recurrent, name="lstm"):
    """Long short-term memory (Hochreiter and Schmidhuber 1997).

    State: (h (B, expand D), c (B, expand D)).

    Args:
        expand: width of the state as a multiple of the model width.
    """

    net, states = nn.LSTM, 2
