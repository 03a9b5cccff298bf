"""The one form of an architecture, however it was written.

Layers with their parts in canonical form and their branches sorted, in an order that the graph
alone decides: isomorphic architectures have one plan, and so one module with one set of weight
names, which the same seed fills with the same numbers.

Two layers, branches or heads of one kind stay two: each has weights of its own, and the mean of two
equal branches is no branch. A split by channels keeps its order, as its parts are told apart by the
channels that they have.
"""

from dataclasses import replace

import networkx as nx

from archsearch.catalogue import PartSpec, canonical
from archsearch.graph import Around, lower
from archsearch.labelling import order
from archsearch.layers import Branches, Layer, Planned, is_chain


def canonical_around(around: Around) -> Around:
    """The norm and the channel mixer in canonical form."""
    mlp = None if around.mlp is None else canonical(around.mlp, around.dim)
    return replace(around, norm=canonical(around.norm, around.dim), mlp=mlp)


def canonical_plan(plan: list[Planned], around: Around) -> list[Planned]:
    """The plan that all architectures isomorphic to this one have.

    ValueError where a division leaves a part without a channel.
    """
    plan = [replace(p, layer=_layer(p.layer, around.dim), join=_join(p, around.dim)) for p in plan]
    return plan if is_chain(plan) else _arranged(plan, around)


def _join(planned: Planned, dim: int) -> PartSpec | None:
    if planned.join is None or len(planned.reads) == 1:
        return None
    return canonical(planned.join, dim, len(planned.reads))


def _layer(layer: Layer, dim: int) -> Layer:
    if isinstance(layer, Branches):
        branches = sorted((canonical(m, dim) for m in layer.branches), key=_text)
        if len(branches) == 1:  # nothing is merged, and nothing normed before
            return Branches(branches=branches)
        merge = canonical(layer.merge, dim, len(branches))
        return layer.model_copy(update={"branches": branches, "merge": merge})
    parts = [(canonical(m, w), w) for m, w in zip(layer.parts, layer.widths(dim), strict=True)]
    if len(parts) == 1 and layer.over == "channels":  # nothing is divided
        return Branches(branches=[parts[0][0]])
    if layer.over == "heads":  # all read all channels, and one projection reads them
        parts.sort(key=lambda part: (_text(part[0]), part[1]))
    shares = [width / dim for _, width in parts]
    ratio = shares[0] if len(parts) == 2 else shares
    return layer.model_copy(update={"parts": [part for part, _ in parts], "ratio": ratio})


def _text(part: PartSpec) -> str:
    return part.type + part.model_dump_json()


def _arranged(plan: list[Planned], around: Around) -> list[Planned]:
    """The layers as the canonical order of their graph has them, each after those that it reads."""
    place = {node: i for i, node in enumerate(order(lower(plan, around)))}
    reads = nx.DiGraph((j, i) for i, planned in enumerate(plan) for j in planned.reads)
    layers = nx.lexicographical_topological_sort(
        reads, key=lambda i: -1 if i < 0 else place[f"layer{i}_norm"]
    )
    index = {layer: i - 1 for i, layer in enumerate(layers)}  # begins with the embedding, -1
    return [
        replace(plan[layer], reads=tuple(sorted(index[j] for j in plan[layer].reads)))
        for layer in index
        if layer >= 0
    ]
