"""Parts, layers, nodes and decisions in words; of a part only what differs from its defaults."""

from typing import Any

import networkx as nx

from archsearch.catalogue import PartSpec
from archsearch.domains import decision_key
from archsearch.layers import Branches, Planned
from archsearch.topologies import INPUT


def scalar(value: Any) -> str:
    """Plain data as YAML writes it on a line, numbers in at most six digits."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(scalar, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {scalar(child)}' for key, child in value.items())}}}"
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
    """What mixes time in a layer, and how often: `conv 3, gla | mamba; merge sum`."""
    layer = planned.layer
    if isinstance(layer, Branches):
        text = " | ".join(map(told, layer.branches))
        text += f"; {merging(layer)}" if len(layer.branches) > 1 else ""
    else:
        parts = zip(layer.shares, layer.parts, strict=True)
        text = " + ".join(f"{share:g} {told(part)}" for share, part in parts)
        text += f" over {layer.over}"
    text = f"conv {planned.conv}, {text}" if planned.conv else text
    return text if planned.rate == 1 else f"{text} at 1/{planned.rate} of the tokens"


def reading(planned: Planned) -> str:
    """What a layer of a graph reads: `reads input and layer 0, join mean`."""
    names = [INPUT if i < 0 else f"layer {i}" for i in planned.reads]
    join = f", join {told(planned.join)}" if len(names) > 1 else ""
    return f"reads {' and '.join(names)}{join}"


def node(graph: nx.DiGraph, name: str) -> str:
    """What a node of a graph is called: its part, or what it does to which sizes."""
    data = graph.nodes[name]
    op, sizes, dim = data["op"], data["sizes"], data["dim"]
    if data["part"] is not None:
        return data["part"].type
    if op == "slice":
        return f"channels {sizes[0]} to {sizes[0] + dim - 1}"
    said = {"add": "+", "embed": f"embed, {dim} wide", "project": f"project to {dim}"}
    return said.get(op) or " ".join([op, *map(str, sizes)])


def domain(node: dict[str, Any]) -> str:
    """What a decision may be: `one of 2, 4`, `2 to 256, log`."""
    key = str(decision_key(node))
    if key in ("choice", "choose"):
        return f"one of {', '.join(map(scalar, node[key]))}"
    if key == "composition":
        return f"{node[key]} as a sum of {', '.join(node['parts'])}"
    if key == "simplex":
        return f"{node[key]} fractions of one, in steps of {scalar(node.get('step', 0.125))}"
    if key == "fraction":
        return "0 to 1"
    step = f", in steps of {scalar(node['step'])}" if node.get("step", 1) != 1 else ""
    log = ", log" if node.get("log") else ""
    return f"{' to '.join(map(scalar, node[key]))}{step}{log}"


def beside(node: dict[str, Any]) -> str:
    """What is told beside a decision: `default 4, prior [1, 2]`."""
    return ", ".join(f"{key} {scalar(node[key])}" for key in ("default", "prior") if key in node)
