"""Linear time-invariant state spaces, one a channel: the systems within S4, S4D and H3.

    h_t = A h_{t-1} + B x_t             h in R^N, discretised with the channel's step Delta
    y_t = C h_t + D x_t
        = sum_{s<=t} K_{t-s} x_s + C A^t (A h_{-1}) + D x_t         K_t = C A^t B

N states are N / 2 complex ones, whose conjugates are implied: of each the real part (N / 2 of
them first), then the imaginary part. Everything here is real, and works on columns (D, N, any).

Kernel and past are one thing, what C sees of a system that is left alone, started in B or in
A h_{-1}. Time is cut into n blocks of m steps: with the columns A^j B, j < m, and the rows
C A^(i m), i < n, reached by doubling, it is one product of (n, N) and (N, m) for all steps, and no
tensor (D, N, T) exists. The sum over s is a Fourier transform. The final state is the blocks'
inputs against the same columns, then added pairwise. For T = 1 all of this is the recurrence.

On a CPU the transform took .4 of the time of triangular matrices over blocks of 32 to 128 steps
with a state handed from each to the next (T = 256 and 2048; .8 at 8192, the final state aside):
a matrix for every channel meets too few columns, B T / m, to gain from being a matrix.

Source: Gu, Goel and Re 2022 (S4); the two-level products are from here.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.interface import accumulation_dtype, without_autocast
from ..kernels.long_conv import long_conv
from .block import require_positive
from .step import log_step

BLOCK = 6
"""Of m = 2^6 steps at most: about N, so that columns and block states are as large as x."""


class Transition(Protocol):
    """A of every channel; real (D, N, any) -> (D, N, any)."""

    def __call__(self, columns: Tensor) -> Tensor: ...
    def squared(self) -> "Transition": ...
    def transposed(self) -> "Transition": ...


class Diagonal:
    """Complex numbers, as what multiplies real parts and imaginary parts and what crosses over.

    own is (Re a, Re a) and other (-Im a, Im a), (D, N, 1) each: two operations, none complex.
    """

    def __init__(self, own: Tensor, other: Tensor) -> None:
        self.own, self.other = own, other

    def __call__(self, columns: Tensor) -> Tensor:
        return torch.addcmul(
            self.own * columns, self.other, columns.roll(columns.shape[1] // 2, dims=1)
        )

    def squared(self) -> Transition:
        return Diagonal(self.own.square() - self.other.square(), 2 * self.own * self.other)

    def transposed(self) -> Transition:
        return Diagonal(self.own, -self.other)


def stacked(z: Tensor) -> Tensor:
    """Complex (D, N / 2) as real (D, N)."""
    return torch.cat((z.real, z.imag), dim=1)


def diagonal(a: Tensor) -> Transition:
    """Multiplication with complex a (D, N / 2)."""
    own, other = torch.cat((a.real, a.real), dim=1), torch.cat((-a.imag, a.imag), dim=1)
    return Diagonal(own[..., None], other[..., None])


class Dense:
    """Real matrices (D, N, N)."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def __call__(self, columns: Tensor) -> Tensor:
        return torch.bmm(self.matrix, columns)

    def squared(self) -> Transition:
        return Dense(torch.bmm(self.matrix, self.matrix))

    def transposed(self) -> Transition:
        return Dense(self.matrix.mT)


class Powers:
    """A^(2^k) of a transition, by squaring, each made when first asked for."""

    def __init__(self, A: Transition) -> None:
        self.known = [A]

    def __getitem__(self, k: int) -> Transition:
        while k >= len(self.known):
            self.known.append(self.known[-1].squared())
        return self.known[k]


def orbit(start: Tensor, count: int, ahead: Callable[[int, Tensor], Tensor]) -> Tensor:
    """start, A start, .. A^(count-1) start, (D, N, count, columns); ahead(k, z) is A^(2^k) z."""
    width, reached, k = start.shape[2], start, 0
    while (missing := count * width - reached.shape[2]) > 0:
        reached = torch.cat((reached, ahead(k, reached[:, :, :missing])), dim=2)
        k += 1
    return reached.unflatten(2, (count, width))


def left_alone(A: Powers, C: Tensor, starts: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """C A^t start for t < T, (D, T, starts), and A^j start for the steps j of a block."""
    b = block(T)
    columns = orbit(starts, 1 << b, lambda k, z: A[k](z))
    rows = orbit(C[..., None], blocks(T), lambda k, z: A[b + k].transposed()(z))
    seen = torch.bmm(rows.flatten(2).mT, columns.flatten(2))  # (D, n, m starts)
    return seen.unflatten(2, (1 << b, -1)).flatten(1, 2)[:, :T], columns


def final_state(A: Powers, columns: Tensor, x: Tensor) -> Tensor:
    """A^T h_{-1} + sum_s A^(T-1-s) B x_s, (D, N, B), from the columns of B and of A h_{-1}."""
    batch, T, _ = x.shape
    b, n = block(T), blocks(T)
    inputs = F.pad(x, (0, 0, (n << b) - T, 0)).unflatten(1, (n, -1)).permute(3, 2, 1, 0)
    states = torch.bmm(columns[..., 0].flip(2), inputs.flatten(2))  # at the end of each block
    states = states.unflatten(2, (n, batch))
    if columns.shape[3] > 1:  # the first block takes the past along, over as many steps as it has
        past = columns[:, :, T - ((n - 1) << b) - 1, None, 1:]
        states = torch.cat((states[:, :, :1] + past, states[:, :, 1:]), dim=2)
    while n > 1:
        early, late = F.pad(states, (0, 0, n % 2, 0)).unflatten(2, (-1, 2)).unbind(3)
        n = early.shape[2]
        states = (A[b](early.flatten(2)) + late.flatten(2)).unflatten(2, (n, batch))
        b += 1
    return states[:, :, 0]


def block(T: int) -> int:
    """The binary logarithm of m."""
    return min(BLOCK, (T - 1).bit_length())


def blocks(T: int) -> int:
    """How many blocks n cover T steps."""
    return -(-T >> block(T))


def mixed(dim: int, mix: str) -> nn.Sequential:
    """What follows the systems: GELU, and a mixing of channels, "glu" or "linear"."""
    if mix == "glu":
        return nn.Sequential(nn.GELU(), nn.Linear(dim, 2 * dim), nn.GLU())
    return nn.Sequential(nn.GELU(), nn.Linear(dim, dim))


class StateSpace(nn.Module):
    """One system for every channel, with its skip D: x and y (.., T, D), state (.., D, N).

    A subclass has the parameters of A and B, and discretises them. C is complex normal at birth.
    """

    def __init__(self, block: str, channels: int, state: int, step: str) -> None:
        super().__init__()
        require_positive(block, state=state)
        if state % 2:
            raise ValueError(f"{block}: state must be even (conjugate pairs), got {state}")
        self.log_step = nn.Parameter(log_step(channels if step == "channel" else 1))
        self.C = nn.Parameter(torch.randn(channels, state // 2, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(channels))

    @abstractmethod
    def discretised(self, dtype: torch.dtype) -> tuple[Transition, Tensor, Tensor]:
        """A, B (D, N) and C (D, N), computed in a real dtype of at least float32."""

    def reading(self, dtype: torch.dtype) -> Tensor:
        """C as real (D, N): 2 Re(C h) is real part by real part, less imaginary by imaginary."""
        real, imag = (2 * self.C.to(dtype)).unbind(-1)
        return torch.cat((real, -imag), dim=1)

    def kernel(self, T: int) -> Tensor:
        """K_t = C A^t B for t < T, (D, T)."""
        with without_autocast(self.D):
            A, B, C = self.discretised(accumulation_dtype(self.D))
            return left_alone(Powers(A), C, B[..., None], T)[0][..., 0]

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with without_autocast(x):
            (*batch, T, _), dtype = x.shape, accumulation_dtype(x)
            A, B, C = self.discretised(dtype)
            inputs, starts = x.to(dtype).flatten(0, -3), B[..., None]
            if state is not None:
                past = A(state.to(dtype).flatten(0, -3).permute(1, 2, 0))
                starts = torch.cat((starts, past), dim=2)
            powers = Powers(A)
            seen, columns = left_alone(powers, C, starts, T)
            kernel = seen[..., 0]
            y = inputs * kernel.mT if T == 1 else long_conv(inputs, kernel)
            if state is not None:
                y = y + seen[..., 1:].permute(2, 1, 0)
            y = (y + self.D.to(dtype) * inputs).to(x.dtype)
            h = final_state(powers, columns, inputs).permute(2, 0, 1).contiguous()
            return y.unflatten(0, batch), h.unflatten(0, batch)
