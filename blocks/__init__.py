"""The catalogue of blocks. A file here is a block: importing the package finds them all.

Mixer         mixes over time         retention, gla, linear_attention, performer, mamba, mamba2,
                                      s4, s4d, h3, delta_net, gated_delta_net, hgrn, attention,
                                      short_conv, rnn, gru, lstm; not causal: bidirectional,
                                      linformer, synthesizer
ChannelMixer  works on each token     swiglu, mlp, moe
Decay         how retention forgets   fixed, learned, selective
Merge         joins branches          sum, mean, concat, gate, route
Norm          over the width          rmsnorm, layernorm
"""

import importlib
import pkgutil

from .block import Block, ChannelMixer, Family, Mixer, Part, State
from .decay import Decay
from .merge import Merge
from .norm import Norm

__all__ = [
    "Block",
    "ChannelMixer",
    "Decay",
    "Family",
    "Merge",
    "Mixer",
    "Norm",
    "Part",
    "State",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
