"""A causal mixer run forward and backward in time (Schuster and Paliwal 1997), and a merge.

y = merge(x, f(x), reverse(b(reverse(x))))                        f and b with their own weights
"""

from typing import Any

from torch import Tensor

from .block import Mixer, Part, State, canonical, require_whole
from .mamba import Mamba
from .merge import Mean, Merge


class Bidirectional(Mixer, name="bidirectional"):
    """Two mixers of one kind, one from each end; sees the future.

    Args:
        mixer: any causal mixer.
        merge: how the two become one.
    """

    causal = False

    def __init__(self, dim: int, *, mixer: Part[Mixer] = Mamba, merge: Part[Merge] = Mean) -> None:
        super().__init__()
        self.onward, self.back = mixer(dim), mixer(dim)
        self.merge = merge(dim, 2)

    @classmethod
    def canonical(cls, options: dict[str, Any], *sizes: int) -> dict[str, Any]:
        mixer, merge = canonical(options["mixer"], *sizes), canonical(options["merge"], *sizes, 2)
        return options | {"mixer": mixer, "merge": merge}

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        require_whole("bidirectional", state)
        onward, _ = self.onward(x)
        back, _ = self.back(x.flip(1))
        return self.merge(x, onward, back.flip(1)), None
