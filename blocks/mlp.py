"""Feed-forward channel mixer:  y = W_down act(W_up x + b) + c        (Vaswani et al. 2017, eq. 2).

act   relu (Vaswani et al. 2017), gelu (Hendrycks and Gimpel 2016), relu2, relu squared (So et al.
      2021)
"""

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from .block import ChannelMixer, State, exact_expand, hidden_width, require_positive


class MLP(ChannelMixer, name="mlp"):
    """Two layers with a nonlinearity between (Vaswani et al. 2017).

    Args:
        expand: hidden width as a multiple of the model width.
        activation: of the hidden layer.
    """

    def __init__(
        self,
        dim: int,
        *,
        expand: float = 4.0,
        activation: Literal["gelu", "relu", "relu2"] = "gelu",
    ) -> None:
        super().__init__()
        require_positive("mlp", expand=expand)
        hidden = hidden_width(expand, dim)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        self.activation = activation

    @classmethod
    def canonical(cls, options: dict[str, Any], *sizes: int) -> dict[str, Any]:
        return options | {"expand": exact_expand(options["expand"], sizes[0])}

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        h = self.up(x)
        h = F.gelu(h) if self.activation == "gelu" else F.relu(h)
        return self.down(h.square() if self.activation == "relu2" else h), None
