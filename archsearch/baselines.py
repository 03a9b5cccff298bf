"""The published designs that every study is compared with, at 12 D^2 parameters a layer."""

from archsearch.reading import nearest
from archsearch.spec import ModelSpec

# One layer of each is 12 D^2: the transformer 4 + 8, the RetNet 8 + 4, Mamba twice 6 and no MLP.
DESIGNS = {
    "retnet": {
        "mixer": {"type": "retention", "expand": 2},
        "mlp": {"type": "swiglu", "expand": 4 / 3},
        "depth": 1,
    },
    "mamba": {"mixer": {"type": "mamba"}, "mlp": None, "depth": 2},
    "transformer": {
        "mixer": {"type": "attention"},
        "mlp": {"type": "swiglu", "expand": 8 / 3},
        "depth": 1,
    },
}


def reference(name: str, *, dim: int, layers: int) -> ModelSpec:
    """A pure architecture by name, as published but for the SwiGLU MLP and RMSNorm.

    retnet       Sun et al. 2023: retention with value width 2 D, fixed decays, MLP
    mamba        Gu and Dao 2023: Mamba blocks alone, two for each layer of the others
    transformer  Touvron et al. 2023: attention with rotary positions, SwiGLU MLP
    """
    if name not in DESIGNS:
        raise ValueError(f"no reference architecture {name!r}; {nearest(name, DESIGNS)}")
    design = DESIGNS[name]
    return ModelSpec.model_validate(
        {
            "dim": dim,
            "layers": layers * design["depth"],
            "mlp": design["mlp"],
            "topology": {"type": "interleave", "major": design["mixer"]},
        }
    )
