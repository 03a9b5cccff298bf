"""Parts and layers in a line of words: only what differs from the defaults is said."""

from typing import Any

from archsearch.catalogue import PartSpec
from archsearch.topologies import Branches, Planned


def scalar(value: Any) -> str:
    """A plain value as YAML writes it, numbers in at most six digits."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(scalar, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def changed(part: PartSpec) -> dict[str, str]:
    """The options of a part that are not at their defaults, in words."""
    fields = type(part).model_fields
    return {
        name: told(value) for name, value in part.options().items() if value != fields[name].default
    }


def options(part: PartSpec) -> str:
    """`heads 8, decay selective (per channel)`; nothing where all are at their defaults."""
    return ", ".join(f"{name} {value}" for name, value in changed(part).items())


def told(value: Any) -> str:
    """A part as `retention (heads 8)`, anything else as it is."""
    if not isinstance(value, PartSpec):
        return scalar(value)
    return f"{value.type} ({options(value)})" if options(value) else value.type


def merging(layer: Branches) -> str:
    """How branches are joined: `merge gate (per channel), branch_norm none`."""
    norm = "" if layer.branch_norm == "rms" else f", branch_norm {layer.branch_norm}"
    return f"merge {told(layer.merge)}{norm}"


def mixing(planned: Planned) -> str:
    """What mixes time in a layer: `conv 3, retention (heads 8) | mamba; merge gate`."""
    layer = planned.layer
    if isinstance(layer, Branches):
        text = " | ".join(map(told, layer.branches))
        if len(layer.branches) > 1:
            text += f"; {merging(layer)}"
    else:
        first, second = layer.parts
        share = f"{layer.ratio:g} {told(first)} + {1 - layer.ratio:g} {told(second)}"
        text = f"{share} over {layer.over}"
    return f"conv {planned.conv}, {text}" if planned.conv else text
