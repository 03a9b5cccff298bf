"""What is built of planned layers: a directed graph of named nodes (networkx).

Nodes carry `op`, `part` (what fills it, or None), `sizes` (of ops without a part) and `dim`, the
width that they give; edges run with the data, and `role` tells the inputs of an op apart.

    embed, norm, mixer, merge, mlp, add, head         the residual stack
    join                                              a merge of layers; its x is their mean
    slice (start), project, concat                    a width divided between mixers
    pool (rate), unpool (rate)                        a stretch of layers at a lower rate
"""

import itertools
from dataclasses import dataclass

import networkx as nx

from archsearch.blocks.norm import RMSNorm
from archsearch.blocks.short_conv import ShortConv
from archsearch.catalogue import PartSpec, schema
from archsearch.layers import Branches, Division, Layer, Planned, is_chain

STATEFUL = ("mixer", "pool", "unpool")
"""The ops that carry a state from one piece of a sequence to the next."""
ROLES = {"unpool": ("x", "u", "h"), "merge": ("x",)}
"""Of the inputs whose place means something; of a merge the others are its branches."""


@dataclass(frozen=True)
class Around:
    """What all layers have in common: their width, norm and channel mixer, if any."""

    dim: int
    norm: PartSpec
    mlp: PartSpec | None
    causal: bool


def lower(plan: list[Planned], around: Around) -> nx.DiGraph:
    """The graph of planned layers; node names are the module names."""
    graph = nx.DiGraph(dim=around.dim, causal=around.causal)
    tops = [_node(graph, "embed", "embed", dim=around.dim)]  # of the stream, after each layer
    for rate, run in itertools.groupby(enumerate(plan), key=lambda placed: placed[1].rate):
        layers = list(run)
        first = layers[0][0]
        x, u = tops[-1], ""
        if rate > 1:
            tops[-1] = u = _node(graph, f"layer{first}_pool", "pool", None, x, sizes=(rate,))
        for i, planned in layers:
            tops.append(_layer(graph, around, i, planned, [tops[j + 1] for j in planned.reads]))
        if rate > 1:
            name = f"layer{len(tops) - 2}_unpool"
            tops[-1] = _node(graph, name, "unpool", None, x, u, tops[-1], sizes=(rate,))
    _node(graph, "norm", "norm", around.norm, tops[-1])
    _node(graph, "head", "head", None, "norm")
    return graph


def _node(
    graph: nx.DiGraph,
    name: str,
    op: str,
    part: PartSpec | None = None,
    *inputs: str,
    sizes: tuple[int, ...] = (),
    dim: int | None = None,
) -> str:
    """A node after those that it reads, as wide as the first of them unless told."""
    dim = graph.nodes[inputs[0]]["dim"] if dim is None else dim
    graph.add_node(name, op=op, part=part, sizes=sizes, dim=dim)
    for i, source in enumerate(inputs):
        roles = ROLES.get(op, ())
        graph.add_edge(source, name, role=roles[i] if i < len(roles) else "branch")
    return name


def _layer(graph: nx.DiGraph, around: Around, i: int, planned: Planned, sources: list[str]) -> str:
    """A residual layer: mixing, then channel mixing; gives the top of the stream."""
    name, top = f"layer{i}", sources[0]
    if len(sources) > 1:
        top = _node(graph, f"{name}_join", "join", planned.join, *sources)
    x = _node(graph, f"{name}_norm", "norm", around.norm, top)
    if planned.conv:
        conv = schema(ShortConv).model_validate({"width": planned.conv})
        x = _node(graph, f"{name}_conv", "mixer", conv, x)
    top = _node(graph, f"{name}_add", "add", None, top, _mixing(graph, x, planned.layer, name))
    if around.mlp is None:
        return top
    x = _node(graph, f"{name}_mlp_norm", "norm", around.norm, top)
    mlp = _node(graph, f"{name}_mlp", "mlp", around.mlp, x)
    return _node(graph, f"{name}_mlp_add", "add", None, top, mlp)


def _mixing(graph: nx.DiGraph, x: str, layer: Layer, name: str) -> str:
    """What mixes time in a layer: a mixer, branches and their merge, or two that divide x."""
    if isinstance(layer, Division):
        return _division(graph, x, layer, name)
    if len(layer.branches) == 1:
        return _node(graph, f"{name}_mixer", "mixer", layer.branches[0], x)
    ends = []
    for j, mixer in enumerate(layer.branches):
        end = _node(graph, f"{name}_branch{j}", "mixer", mixer, x)
        if layer.branch_norm == "rms":
            end = _node(graph, f"{name}_branch{j}_norm", "norm", schema(RMSNorm)(), end)
        ends.append(end)
    return _node(graph, f"{name}_merge", "merge", layer.merge, x, *ends)


def _division(graph: nx.DiGraph, x: str, layer: Division, name: str) -> str:
    dim, ends, start = graph.nodes[x]["dim"], [], 0
    for j, (mixer, width) in enumerate(zip(layer.parts, layer.widths(dim), strict=True)):
        own = f"{name}_part{j}"
        if layer.over == "channels":
            part = _node(graph, f"{own}_slice", "slice", None, x, sizes=(start,), dim=width)
        else:
            part = _node(graph, f"{own}_read", "project", None, x, dim=width)
        ends.append(_node(graph, own, "mixer", mixer, part))
        start += width
    both = _node(graph, f"{name}_concat", "concat", None, *ends, dim=dim)
    return (
        both if layer.over == "channels" else _node(graph, f"{name}_write", "project", None, both)
    )


def inputs(graph: nx.DiGraph, node: str) -> list[str]:
    """The sources of a node, in the order in which it takes them."""
    return list(graph.predecessors(node))


def period(graph: nx.DiGraph) -> int:
    """Tokens after which every rate of the graph is in step again; rates are powers of two."""
    return max((n["sizes"][0] for n in graph.nodes.values() if n["op"] == "pool"), default=1)


def summarise(plan: list[Planned]) -> str:
    """One line that tells an architecture, equal neighbours counted: `3 x mamba, attention`."""
    if not is_chain(plan):
        return ", ".join(f"{i}: {tell(p)} of {_sources(p)}" for i, p in enumerate(plan))
    runs = [(name, len(list(run))) for name, run in itertools.groupby(plan, key=tell)]
    return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in runs)


def _sources(planned: Planned) -> str:
    names = ["input" if i < 0 else str(i) for i in planned.reads]
    join = f"; {planned.join.type}" if planned.join is not None and len(names) > 1 else ""
    return f"({' | '.join(names)}{join})"


def tell(planned: Planned) -> str:
    """A layer in a few words."""
    layer = planned.layer
    if isinstance(layer, Branches):
        names = [mixer.type for mixer in layer.branches]
        text = names[0] if len(names) == 1 else f"({' | '.join(names)}; {layer.merge.type})"
    else:
        parts = zip(layer.shares, layer.parts, strict=True)
        text = f"({' + '.join(f'{share:g} {mixer.type}' for share, mixer in parts)})"
    text = f"conv {planned.conv} {text}" if planned.conv else text
    return text if planned.rate == 1 else f"{text} at 1/{planned.rate}"
