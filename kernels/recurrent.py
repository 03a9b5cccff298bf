"""PyTorch's recurrent nets (torch.rnn_tanh, torch.gru, torch.lstm) as an operator of one step.

Traced as they are, they fall into ten operations a time step: costs and compiled graphs would take
seconds to minutes to make. As an operator they have a shape, a FLOP count and a gradient. The
backward pass runs the net again, so that PyTorch's own (oneDNN, cuDNN) gradient is taken: kept are
the inputs, and training takes four passes instead of three.
"""

from collections.abc import Sequence

import torch
from torch import _C as C
from torch import Tensor

from .interface import NAMESPACE, register_flops, register_workspace

NETS = {"rnn": torch.rnn_tanh, "gru": torch.gru, "lstm": torch.lstm}
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
# Biases, one layer, no dropout, training (cuDNN then keeps what its gradient needs), one direction,
# (B, T, D).
LAYOUT = True, 1, 0.0, True, False, True


def recurrent(
    kind: str, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """All steps of one layer.

    Args:
        kind: "rnn" (tanh), "gru" or "lstm".
        x: input, (B, T, D).
        states: h, and of an LSTM c, (B, H) each.
        weights: W (gates H, D), U (gates H, H) and their biases (gates H,), in PyTorch's order.

    Returns:
        h of every step, (B, T, H), and the states after the last.
    """
    y, *states = getattr(torch.ops, NAMESPACE).recurrent(kind, x, list(states), list(weights))
    return y, states


def _run(kind: str, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    first = [state[None] for state in states]
    given = first if kind == "lstm" else first[0]
    y, *last = NETS[kind](x, given, weights, *LAYOUT)
    return [y.contiguous(), *(state[0].clone() for state in last)]


def _run_backward(
    gradients: list[Tensor], kind: str, x: Tensor, states: list[Tensor], weights: list[Tensor]
) -> list[Tensor]:
    # Under a dispatch mode, which counts FLOPs say, operators run with autograd left out.
    included, excluded = C._dispatch_tls_local_include_set(), C._dispatch_tls_local_exclude_set()
    excluded = excluded.remove(C.DispatchKey.AutogradCPU)  # which all devices share
    with torch.enable_grad(), C._ForceDispatchKeyGuard(included, excluded):
        leaves = [z.detach().requires_grad_() for z in (x, *states, *weights)]
        outputs = _run(kind, leaves[0], leaves[1 : 1 + len(states)], leaves[1 + len(states) :])
        return list(torch.autograd.grad(outputs, leaves, gradients))


def _fake(kind: str, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    y = x.new_empty(*x.shape[:2], states[0].shape[1])
    return [y, *(torch.empty_like(state) for state in states)]


def _fake_backward(gradients, kind, x, states, weights) -> list[Tensor]:
    return [torch.empty_like(z) for z in (x, *states, *weights)]


def _save(ctx, inputs, output) -> None:
    ctx.kind, x, states, weights = inputs
    ctx.states = len(states)
    ctx.save_for_backward(x, *states, *weights)


def _differentiate(ctx, gradients: list[Tensor]):
    x, *rest = ctx.saved_tensors
    states, weights = rest[: ctx.states], rest[ctx.states :]
    backward = getattr(torch.ops, NAMESPACE).recurrent_backward
    dx, *rest = backward(gradients, ctx.kind, x, states, weights)
    return None, dx, rest[: ctx.states], rest[ctx.states :]


def _flops(kind: str, x, states, weights, *_, **__) -> int:
    """2 B T gates H (D + H): the products; the gates themselves are left out."""
    (batch, T, D), H = x, states[0][1]
    return 2 * batch * T * GATES[kind] * H * (D + H)


def _backward_flops(gradients, kind: str, x, states, weights, *_, **__) -> int:
    """Three times that: once more forward, then for the inputs and for the weights."""
    return 3 * _flops(kind, x, states, weights)


def _sizes(x: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[int, int, int]:
    """Bytes of x, of y and of the weights."""
    x_bytes = x.numel() * x.itemsize
    return x_bytes, x_bytes // x.shape[2] * states[0].shape[1], sum(w.nbytes for w in weights)


def _held(kind: str, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> int:
    """Bytes held at a time on a CPU: the gates of all steps, oneDNN's LSTM its copies as well."""
    X, Y, W = _sizes(x, states, weights)
    return {"rnn": 3 * Y, "gru": 5 * Y, "lstm": X + 5 * Y + W}[kind]


def _held_backward(gradients, kind: str, x: Tensor, states, weights) -> int:
    """The same of the backward pass; oneDNN's LSTM as read off the allocator (torch 2.13)."""
    X, Y, W = _sizes(x, states, weights)
    if kind != "lstm":
        return X + 3 * Y + W if kind == "rnn" else X + 11 * Y
    H, steps = states[0].shape[1], x.shape[0] * x.shape[1]
    padding = 64 * steps * (9 if H % 256 == 0 else 1) + 20480  # rows of its workspace
    return 19 * Y + padding + max(6 * Y + W, 5 * Y + 2 * W)


# Not torch.library.custom_op, inside of which nothing can be differentiated.
_SCHEMA = "str kind, Tensor x, Tensor[] states, Tensor[] weights) -> Tensor[]"
for _name, _arguments, _function, _meta in (
    ("recurrent", f"({_SCHEMA}", _run, _fake),
    ("recurrent_backward", f"(Tensor[] gradients, {_SCHEMA}", _run_backward, _fake_backward),
):
    torch.library.define(f"{NAMESPACE}::{_name}", _arguments)
    torch.library.impl(f"{NAMESPACE}::{_name}", "CompositeExplicitAutograd", _function)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _meta)
torch.library.register_autograd(f"{NAMESPACE}::recurrent", _differentiate, setup_context=_save)
register_flops("recurrent", _flops)
register_flops("recurrent_backward", _backward_flops)
register_workspace("recurrent", _held)
register_workspace("recurrent_backward", _held_backward)
