"""Steps Delta of a discretised state space at birth (Gu and Dao 2023, section 3.6)."""

import math

import torch
from torch import Tensor


def log_step(count: int) -> Tensor:
    """The logarithm of steps (count,), which is uniform: Delta in [1e-3, 1e-1]."""
    return torch.empty(count).uniform_(math.log(1e-3), math.log(1e-1))


def step_bias(count: int) -> Tensor:
    """Biases (count,) with softplus(b) = Delta, log-uniform in [1e-3, 1e-1], at least 1e-4."""
    delta = log_step(count).exp().clamp(min=1e-4)
    return delta + (-torch.expm1(-delta)).log()  # softplus^-1
