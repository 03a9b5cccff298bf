"""Published designs by name and size, all at 12 D^2 parameters a layer: a study's yardsticks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from archsearch.reading import nearest
from archsearch.spec import ModelSpec


class Shape(NamedTuple):
    """Width, depth, and heads of what has heads."""

    dim: int
    layers: int
    heads: int


Size = Literal["tiny", "small", "medium", "large"]
SIZES: dict[Size, Shape] = {
    "tiny": Shape(64, 4, 4),
    "small": Shape(256, 8, 4),
    "medium": Shape(512, 12, 8),
    "large": Shape(1024, 24, 16),
}


@dataclass(frozen=True)
class Design:
    """A named architecture.

    Attributes:
        source: who published it, and what it is.
        topology: of the layers, given a shape.
        mlp: its width over D, for 12 D^2 parameters a layer with the mixer's; None is none, and
            twice the layers. (Steps, gates of low rank, convolutions, A, B and C come on top.)
    """

    source: str
    topology: Callable[[Shape], dict[str, Any]]
    mlp: float | None


def pure(mixer: str, *, heads: bool = True, **options: Any) -> Callable[[Shape], dict[str, Any]]:
    """One mixer in every layer."""
    return lambda shape: {"type": "interleave", "major": part(mixer, shape, heads, options)}


def among(major: str, minor: str, period: int, **options: Any) -> Callable[[Shape], dict[str, Any]]:
    """One minor in the middle of every `period` layers; of all layers where there are fewer."""

    def topology(shape: Shape) -> dict[str, Any]:
        mixers = {
            "major": part(major, shape, major != "mamba", {}),
            "minor": part(minor, shape, True, options),
        }
        every = max(2, min(period, shape.layers))
        return {"type": "interleave", **mixers, "period": every, "phase": 0.5}

    return topology


def part(name: str, shape: Shape, heads: bool, options: dict[str, Any]) -> dict[str, Any]:
    return {"type": name, **({"heads": shape.heads} if heads else {}), **options}


def hymba(shape: Shape) -> dict[str, Any]:
    """Heads of both kinds on one input, each kind normed, their mean."""
    attention = part("attention", shape, True, {"window": 128, "sinks": 4})
    mamba = {"type": "mamba", "expand": 1}
    return {"type": "parallel", "branches": [attention, mamba], "merge": "mean"}


DESIGNS: dict[str, Design] = {
    "retnet": Design(
        "Sun et al. 2023: retention with fixed decays", pure("retention", expand=2), 4 / 3
    ),
    "mamba": Design("Gu and Dao 2023: Mamba blocks alone", pure("mamba", heads=False), None),
    "transformer": Design(
        "Touvron et al. 2023: attention with rotary positions", pure("attention"), 8 / 3
    ),
    "primer": Design(
        "after So et al. 2021: attention with a convolution over q, k and v, of four tokens",
        pure("attention", conv=4),
        8 / 3,
    ),
    "mamba2": Design("Dao and Gu 2024: Mamba-2 blocks alone", pure("mamba2"), None),
    "gla": Design("Yang et al. 2024: gated linear attention", pure("gla"), 8 / 3),
    "linear_transformer": Design(
        "Katharopoulos et al. 2020: elu + 1 with its normaliser", pure("linear_attention"), 8 / 3
    ),
    "delta_net": Design(
        "Yang et al. 2024: the delta rule behind short convolutions", pure("delta_net"), 8 / 3
    ),
    "gated_delta_net": Design(
        "Yang et al. 2025: the same with decay and gate", pure("gated_delta_net", expand=2), 4 / 3
    ),
    "s4d": Design(
        "Gu et al. 2022: diagonal state spaces, the same at all times",
        pure("s4d", heads=False),
        10 / 3,
    ),
    "s4": Design(
        "Gu, Goel and Re 2022: S4-LegS, 64 states a channel", pure("s4", heads=False), 10 / 3
    ),
    "h3": Design(
        "Fu et al. 2023: shift and diagonal state spaces with products",
        pure("h3", heads=False),
        8 / 3,
    ),
    "hgrn": Design(
        "Qin et al. 2023: elementwise gated recurrence", pure("hgrn", heads=False), 8 / 3
    ),
    "lstm": Design(
        "Hochreiter and Schmidhuber 1997: an LSTM a layer, in a residual stack",
        pure("lstm", heads=False),
        1.0,
    ),
    "hymba": Design(
        "after Dong et al. 2024: attention and Mamba side by side, on 128 tokens and 4 sinks for "
        "its meta tokens",
        hymba,
        5 / 3,
    ),
    "jamba": Design(
        "after Lieber et al. 2024: one attention layer to seven of Mamba, without its experts",
        among("mamba", "attention", 8, positions="none"),
        2.0,
    ),
    "samba": Design(
        "after Ren et al. 2024: Mamba and sliding-window attention in turns",
        among("mamba", "attention", 2, window=128),
        2.0,
    ),
    "linear_softmax": Design(
        "four layers of linear attention to one of softmax attention, the 80/20 hybrid",
        among("linear_attention", "attention", 5),
        8 / 3,
    ),
}


def reference(
    name: str,
    *,
    size: Size | None = None,
    dim: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
) -> ModelSpec:
    """A named architecture, as published but for the SwiGLU MLP and RMSNorm.

    Args:
        name: one of DESIGNS: `archsearch reference` lists them.
        size: tiny (D 64, 4 layers, 4 heads), small (256, 8, 4), medium (512, 12, 8) or large
            (1024, 24, 16); or give dim and layers.
        dim: model width D, instead of the size's.
        layers: of 12 D^2 parameters each, instead of the size's.
        heads: of mixers with heads, instead of the size's; 4 without a size.

    Raises:
        ValueError: an unknown name or size, or neither size nor dim and layers.
    """
    if name not in DESIGNS:
        raise ValueError(f"no reference architecture {name!r}; {nearest(name, DESIGNS)}")
    if size is not None and size not in SIZES:
        raise ValueError(f"no size {size!r}; {nearest(size, get_args(Size))}")
    preset = SIZES[size] if size else None
    if preset is None and (dim is None or layers is None):
        raise ValueError(f"{name}: give a size, one of {', '.join(SIZES)}, or both dim and layers")
    shape = Shape(
        dim or (preset.dim if preset else 0),
        layers or (preset.layers if preset else 0),
        heads or (preset.heads if preset else 4),
    )
    design = DESIGNS[name]
    mlp = {"type": "swiglu", "expand": design.mlp} if design.mlp else None
    depth = shape.layers if mlp else 2 * shape.layers
    return ModelSpec.model_validate(
        {"dim": shape.dim, "layers": depth, "mlp": mlp, "topology": design.topology(shape)}
    )
