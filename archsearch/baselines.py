"""The published designs that every study is compared with, at 12 D^2 parameters a layer."""

from archsearch.reading import nearest
from archsearch.spec import ModelSpec

# One layer of each is 12 D^2, D the model width, mixer + MLP: what a Mamba has no MLP for, it has
# twice. (Steps, gates of low rank, convolutions, and A, B and C of N states come on top.)
DESIGNS = {
    "retnet": {"mixer": {"type": "retention", "expand": 2}, "mlp": 4 / 3},  # 8 + 4
    "mamba": {"mixer": "mamba", "mlp": None},  # 6, twice
    "transformer": {"mixer": "attention", "mlp": 8 / 3},  # 4 + 8
    "mamba2": {"mixer": "mamba2", "mlp": None},  # 6, twice
    "gla": {"mixer": "gla", "mlp": 8 / 3},  # 4 + 8
    "linear_transformer": {"mixer": "linear_attention", "mlp": 8 / 3},  # 4 + 8
    "delta_net": {"mixer": "delta_net", "mlp": 8 / 3},  # 4 + 8
    "gated_delta_net": {"mixer": {"type": "gated_delta_net", "expand": 2}, "mlp": 4 / 3},  # 8 + 4
    "s4": {"mixer": "s4", "mlp": 10 / 3},  # 2 + 10
    "h3": {"mixer": "h3", "mlp": 8 / 3},  # 4 + 8
    "hgrn": {"mixer": "hgrn", "mlp": 8 / 3},  # 4 + 8
    "lstm": {"mixer": "lstm", "mlp": 1.0},  # 9 + 3
}


def reference(name: str, *, dim: int, layers: int) -> ModelSpec:
    """A pure architecture by name, as published but for the SwiGLU MLP and RMSNorm.

    retnet              Sun et al. 2023: retention with value width 2 D, fixed decays, MLP
    mamba               Gu and Dao 2023: Mamba blocks alone, two for each layer of the others
    transformer         Touvron et al. 2023: attention with rotary positions, SwiGLU MLP
    mamba2              Dao and Gu 2024: Mamba-2 blocks alone, two for each layer
    gla                 Yang et al. 2024: gated linear attention, MLP
    linear_transformer  Katharopoulos et al. 2020: elu + 1 with its normaliser, MLP
    delta_net           Yang et al. 2024: the delta rule behind short convolutions, MLP
    gated_delta_net     Yang et al. 2025: the same with decay and gate, value width 2 D, MLP
    s4                  Gu, Goel and Re 2022: S4-LegS with GELU and GLU, 64 states a channel, MLP
    h3                  Fu et al. 2023: shift and diagonal state spaces with products, MLP
    hgrn                Qin et al. 2023: elementwise gated recurrence, MLP
    lstm                Hochreiter and Schmidhuber 1997: an LSTM a layer, in a residual stack, MLP
    """
    if name not in DESIGNS:
        raise ValueError(f"no reference architecture {name!r}; {nearest(name, DESIGNS)}")
    mixer, expand = DESIGNS[name]["mixer"], DESIGNS[name]["mlp"]
    return ModelSpec.model_validate(
        {
            "dim": dim,
            "layers": layers if expand else 2 * layers,
            "mlp": {"type": "swiglu", "expand": expand} if expand else None,
            "topology": {"type": "interleave", "major": mixer},
        }
    )
