"""Causal convolution as long as the sequence, one kernel per channel.

    y_t[d] = sum_{s <= t} kernel[d, t-s] x_s[d]

B batch, T time, D channels. It is what a linear time-invariant system is from a zero state, with
the kernel C A^t B. A filter of a few taps is causal_conv's.

Source: Gu, Goel and Re 2022 (S4, section 2.3).
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from .interface import Arguments, accumulation_dtype
from .long_conv_fft import long_conv_fft

Way = Literal["auto", "reference", "fft"]


def long_conv_reference(x: Tensor, kernel: Tensor) -> Tensor:
    """The line above, one output at a time, by ordinary autograd: the specification."""
    dtype = accumulation_dtype(x)
    now, latest_first = x.to(dtype), kernel.to(dtype).flip(1).mT  # (B, T, D), (T, D)
    T = x.shape[1]
    outputs = [(now[:, : t + 1] * latest_first[T - t - 1 :]).sum(1) for t in range(T)]
    return torch.stack(outputs, 1).to(x.dtype)


def long_conv(x: Tensor, kernel: Tensor, *, backend: Way = "auto") -> Tensor:
    """Convolve every channel with its own kernel, which reaches back to the first step.

        y_t[d] = sum_{s <= t} kernel[d, t-s] x_s[d]

    Sums are taken in float32 whatever the inputs' dtype (float64 when x is float64). The Fourier
    transform spreads its rounding error, about 1e-7 of the largest output in float32, over all
    steps, earlier ones too.

    Args:
        x: input, (B, T, D), T >= 1.
        kernel: (D, T); the first column is the present step's weight.
        backend: "reference" (sums over the past), "fft" (any device), "auto": fft.

    Returns:
        y (B, T, D) in x's dtype.

    Raises:
        ValueError: a shape, dtype, device or backend is not as said above.
    """
    arguments = Arguments("long_conv")
    arguments.tensor("x", x, "B T D")
    arguments.tensor("kernel", kernel, "D T")
    if backend not in get_args(Way):
        allowed = ", ".join(map(repr, get_args(Way)))
        raise arguments.error(f"backend must be one of {allowed}; got {backend!r}")
    return (long_conv_reference if backend == "reference" else long_conv_fft)(x, kernel)
