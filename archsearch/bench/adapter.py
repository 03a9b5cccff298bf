"""How one peer computes one operator."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from archsearch.bench.cases import Tensors


def _same(x: Tensor) -> Tensor:
    return x


def _as_they_are(inputs: Tensors) -> Tensors:
    return inputs


@dataclass(frozen=True)
class Adapter:
    """From our inputs to a peer's arguments, its call, and back; only the call is timed.

    Attributes:
        call: arguments -> output, in the peer's own layout.
        arrange: our inputs -> arguments. Differentiable: gradients are checked through it, and the
            arguments that depend on an input with a gradient get one when timed.
        restore: the peer's output -> ours, (B, T, ...). Differentiable.
        truth: our float64 inputs -> output, where it is another function on purpose.
        compare: what is compared of both outputs, where a peer's is defined up to a factor.
        refuse: our inputs -> why it cannot run on them, or None.
    """

    call: Callable[[Tensors], Tensor]
    arrange: Callable[[Tensors], Tensors] = _as_they_are
    restore: Callable[[Tensor], Tensor] = _same
    truth: Callable[[Tensors], Tensor] | None = None
    compare: Callable[[Tensor], Tensor] = _same
    refuse: Callable[[Tensors], str | None] = lambda inputs: None

    def output(self, inputs: Tensors) -> Tensor:
        """The whole way, differentiable: what is compared with the truth."""
        return self.compare(self.restore(self.call(self.arrange(inputs))))
