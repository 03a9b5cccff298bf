"""Births: an untrained block neither explodes nor vanishes, over the catalogue at its defaults.

The stack is the default residual one, x + mix(norm(x)), then x + mlp(norm(x)). Variance is that of
the residual stream relative to its input. A block's own output may be small: births as published
have retention start at 0.008 of its input's variance and GLA at 0.0003. The skip carries the
stream, and that the first block learns as the last does is what the gradients say.
"""

import pytest
import torch
from torch import nn

from archsearch.blocks import Block, ChannelMixer, Mixer
from archsearch.blocks.norm import RMSNorm
from archsearch.blocks.short_conv import ShortConv
from archsearch.blocks.swiglu import SwiGLU

DIM, LAYERS = 32, 24
LONG = 4096
MOST = {"short_conv": 12}
"""Of the variance after 24 layers, instead of 10: a third of its input's a layer by Conv1d's birth."""
LOOPS = {"rnn": 1024, "gru": 1024}  # their gradient, a step at a time, takes a minute over LONG


def gradient_norm(part: nn.Module) -> float:
    """Over all parameters."""
    gradients = [p.grad.norm() for p in part.parameters() if p.grad is not None]
    return torch.stack(gradients).norm().item()


def check(mixer: type[Mixer], mlp: type[Block], batch: int, T: int) -> None:
    parts = [(RMSNorm(DIM), kind(DIM)) for _ in range(LAYERS) for kind in (mixer, mlp)]
    stream = [torch.randn(batch, T, DIM)]
    for norm, block in parts:
        stream.append(stream[-1] + block(norm(stream[-1]))[0])
    for after in (1, 2, 2 * LAYERS):  # the first mixer, the first layer, the stack
        assert 0.1 <= (stream[after].var() / stream[0].var()).item() <= MOST.get(mixer.name, 10)
    (stream[-1] * torch.randn_like(stream[0])).sum().backward()
    for kind in (0, 1):
        first, last = (gradient_norm(parts[i][1]) for i in (kind, kind - 2))
        assert 0.01 <= first / last <= 100, kind


each_mixer = pytest.mark.parametrize("mixer", Mixer.members.values(), ids=lambda c: c.name)


@each_mixer
def test_a_mixer_is_born_well(mixer: type[Mixer]) -> None:
    check(mixer, SwiGLU, batch=4, T=64)


@pytest.mark.parametrize("mlp", ChannelMixer.members.values(), ids=lambda c: c.name)
def test_a_channel_mixer_is_born_well(mlp: type[ChannelMixer]) -> None:
    check(ShortConv, mlp, batch=4, T=64)


@pytest.mark.slow
@each_mixer
def test_a_mixer_is_born_well_for_long_sequences(mixer: type[Mixer]) -> None:
    longest = mixer(DIM).longest or LONG
    check(mixer, SwiGLU, batch=1, T=LOOPS.get(mixer.name, min(longest, LONG)))
