"""The searched thing in canonical form: a directed graph of named nodes (networkx).

Nodes carry `op` (embed, norm, mixer, merge, mlp, add, head) and `part` (what fills it, or None);
edges run with the data, and `role` tells a merge's own input x from its branches. However fusions
were written in YAML, equal computations give isomorphic graphs, and isomorphic graphs one hash.
"""

import hashlib
import itertools
from typing import TYPE_CHECKING

import networkx as nx

from archsearch.blocks.norm import RMSNorm
from archsearch.catalogue import PartSpec, schema

if TYPE_CHECKING:
    from archsearch.spec import Layer, ModelSpec


def lower(spec: "ModelSpec") -> nx.DiGraph:
    """The graph of a spec; node names are the module names, in topological order."""
    graph = nx.DiGraph(dim=spec.dim)
    graph.add_node("embed", op="embed", part=None)
    top = "embed"
    for i, layer in enumerate(spec.plan()):
        top = _residual(graph, top, _mixing(graph, top, layer, spec.norm, f"layer{i}"), f"layer{i}")
        if spec.mlp is not None:
            name = f"layer{i}_mlp"
            norm = _node(graph, f"{name}_norm", "norm", spec.norm, top)
            top = _residual(graph, top, _node(graph, name, "mlp", spec.mlp, norm), name)
    norm = _node(graph, "norm", "norm", spec.norm, top)
    _node(graph, "head", "head", None, norm)
    return graph


def _node(graph: nx.DiGraph, name: str, op: str, part: PartSpec | None, *inputs: str) -> str:
    graph.add_node(name, op=op, part=part)
    for i, source in enumerate(inputs):
        graph.add_edge(source, name, role="branch" if op == "merge" and i else "x")
    return name


def _residual(graph: nx.DiGraph, skip: str, branch: str, name: str) -> str:
    return _node(graph, f"{name}_add", "add", None, skip, branch)


def _mixing(graph: nx.DiGraph, top: str, layer: "Layer", norm: PartSpec, name: str) -> str:
    """The time-mixing part of a layer: a mixer, or branches and their merge."""
    x = _node(graph, f"{name}_norm", "norm", norm, top)
    if len(layer.branches) == 1:
        return _node(graph, f"{name}_mixer", "mixer", layer.branches[0], x)
    ends = []
    for j, mixer in enumerate(layer.branches):
        end = _node(graph, f"{name}_branch{j}", "mixer", mixer, x)
        if layer.branch_norm == "rms":
            end = _node(graph, f"{name}_branch{j}_norm", "norm", schema(RMSNorm)(), end)
        ends.append(end)
    return _node(graph, f"{name}_merge", "merge", layer.merge, x, *ends)


def inputs(graph: nx.DiGraph, node: str) -> list[str]:
    """The sources of a node, in the order in which it takes them."""
    return list(graph.predecessors(node))


def canonical_hash(graph: nx.DiGraph) -> str:
    """SHA-256 over all nodes, each named by its part and by the hashes of what it reads.

    Names and the order of branches do not enter: a merge is symmetric up to whose weights are
    whose.
    """
    digest: dict[str, str] = {}
    for node in nx.topological_sort(graph):
        part = graph.nodes[node]["part"]
        label = part.model_dump_json() if part is not None else ""
        sources = sorted(
            f"{graph.edges[source, node]['role']}:{digest[source]}"
            for source in graph.predecessors(node)
        )
        text = "\n".join((graph.nodes[node]["op"], label, *sources))
        digest[node] = hashlib.sha256(text.encode()).hexdigest()
    whole = "\n".join((str(graph.graph["dim"]), *sorted(digest.values())))
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def summarise(spec: "ModelSpec") -> str:
    """One line that tells an architecture, equal neighbours counted: `3 x mamba, attention`."""

    def tell(layer: "Layer") -> str:
        names = [mixer.type for mixer in layer.branches]
        return names[0] if len(names) == 1 else f"({' | '.join(names)}; {layer.merge.type})"

    runs = [(name, len(list(run))) for name, run in itertools.groupby(spec.plan(), key=tell)]
    return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in runs)
