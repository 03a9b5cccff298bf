"""long_conv by fast Fourier transforms, padded so that no step comes round to an earlier one.

Memory: kept for the backward pass are the inputs alone, which are transformed again there: two more
transforms, where their spectra would take four times the room of x.
"""

import math

import torch
from torch import Tensor
from torch.fft import irfft, rfft

from .interface import NAMESPACE, accumulation_dtype, register_flops, without_autocast


def _length(T: int) -> int:
    """The least 1, 3 or 5 times a power of two that holds 2 T - 1 steps: quick to transform."""
    return min(f << (-(-(2 * T - 1) // f) - 1).bit_length() for f in (1, 3, 5))


def _spectrum(x: Tensor, n: int) -> Tensor:
    """(B, T, D) -> (B, D, frequencies), or (D, T) -> (D, frequencies)."""
    return rfft(x.to(accumulation_dtype(x)), n)


@torch.library.custom_op(f"{NAMESPACE}::long_conv_fft", mutates_args=())
def long_conv_fft(x: Tensor, kernel: Tensor) -> Tensor:
    """The sums y, (B, T, D)."""
    with without_autocast(x):
        T, n = x.shape[1], _length(x.shape[1])
        spectrum = _spectrum(x.mT, n).mul_(_spectrum(kernel.to(accumulation_dtype(x)), n))
        return irfft(spectrum, n)[..., :T].mT.to(x.dtype).contiguous()


@torch.library.custom_op(f"{NAMESPACE}::long_conv_fft_backward", mutates_args=())
def _long_conv_backward(dy: Tensor, x: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients to x and kernel: correlations, whose spectra are conjugate products."""
    with without_autocast(x):
        T, n = x.shape[1], _length(x.shape[1])
        dY = _spectrum(dy.mT, n)
        d_kernel = _spectrum(x.mT, n).conj_physical_().mul_(dY).sum(0)
        d_kernel = irfft(d_kernel, n)[..., :T].to(kernel.dtype).contiguous()
        dY.mul_(_spectrum(kernel.to(accumulation_dtype(x)), n).conj_physical_())
        dx = irfft(dY, n)[..., :T].mT.to(x.dtype).contiguous()
        return dx, d_kernel


@long_conv_fft.register_fake
def _(x, kernel):
    return x.new_empty(x.shape)


@_long_conv_backward.register_fake
def _(dy, x, kernel):
    return x.new_empty(x.shape), kernel.new_empty(kernel.shape)


def _differentiate(ctx, dy: Tensor):
    return _long_conv_backward(dy, *ctx.saved_tensors)


long_conv_fft.register_autograd(
    _differentiate, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


def _flops(x, transforms: int, products: int) -> int:
    """Real transforms of n steps at 2.5 n log2 n, and products of spectra at 6 n / 2."""
    n = _length(x[1])
    return round(transforms * 2.5 * n * math.log2(n)) + products * 3 * n


def _forward_flops(x, kernel, *_, **__) -> int:
    """Transforms of x and kernel and back to y, one product; n is _length(T)."""
    B, _, D = x
    return _flops(x, D * (2 * B + 1), D * B)


def _backward_flops(dy, x, *_, **__) -> int:
    """Transforms of dy, x and kernel and back to both gradients, two products."""
    B, _, D = x
    return _flops(x, D * (3 * B + 2), D * 2 * B)


register_flops("long_conv_fft", _forward_flops)
register_flops("long_conv_fft_backward", _backward_flops)
