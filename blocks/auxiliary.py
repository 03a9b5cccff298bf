"""Auxiliary losses: those that a block adds to the task's by itself.

    L = L_task + L_aux(z),   z a tensor within the block:   dL/dz = dL_task/dz + dL_aux/dz

The second term is written out by the block and joins the gradient of z in the backward pass, in
training mode only. A block and its trainer then need no second channel beside y, and any training
loop has the loss, a user's own as well. It does not show in the loss that a loop prints.

It is added once for every backward pass, and a factor on the task's loss is none on it. A loop that
has such a factor, as each piece of an accumulated batch or float16 has, says so around both passes:

    with scaled_losses(model, len(piece) / len(batch)):
        (weight * loss(model(piece)[0])).backward()
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AuxiliaryLoss:
    """A module with an auxiliary loss. `loss_scale` is the factor on it in the passes to come."""

    loss_scale: float = 1.0

    def add_gradient(self, z: Tensor, gradient: Tensor) -> Tensor:
        """The identity on z, whose gradient has dL_aux/dz, of a shape that broadcasts to z's."""
        return _AddGradient.apply(z, (self.loss_scale * gradient).to(z.dtype))


@contextmanager
def scaled_losses(model: nn.Module, scale: float) -> Iterator[None]:
    """Within it, the auxiliary losses of a model's blocks have this factor."""
    modules = [module for module in model.modules() if isinstance(module, AuxiliaryLoss)]
    for module in modules:
        module.loss_scale = scale
    try:
        yield
    finally:
        for module in modules:
            module.loss_scale = 1.0


class _AddGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return z.view_as(z)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] + ctx.saved_tensors[0], None
