"""Equal neighbouring layers, counted and drawn as one."""

import itertools
from dataclasses import dataclass, replace

import networkx as nx

from archsearch.layers import Planned, is_chain
from archsearch.spec import ModelSpec

RATES = ("pool", "unpool")


@dataclass(frozen=True)
class Run:
    """`count` equal layers on top of each other; `planned` is the lowest, layer `first`."""

    planned: Planned
    first: int
    count: int

    @property
    def title(self) -> str:
        """Which layers these are."""
        last = self.first + self.count - 1
        several = f"layers {self.first} to {last}, equal"
        return several if self.count > 1 else f"layer {self.first}"


def runs(plan: list[Planned]) -> list[Run]:
    """The layers of a plan, equal neighbours as one; where not all are a chain, one by one."""
    if not is_chain(plan):
        return [Run(planned, i, 1) for i, planned in enumerate(plan)]
    found = []
    for _, equal in itertools.groupby(enumerate(plan), lambda placed: _alone(placed[1])):
        layers = list(equal)
        found.append(Run(layers[0][1], layers[0][0], len(layers)))
    return found


def _alone(planned: Planned) -> Planned:
    """A layer of a chain without its place."""
    return replace(planned, reads=())


def folded(spec: ModelSpec) -> tuple[nx.DiGraph, list[Run]]:
    """The graph of a spec with every run drawn once, its nodes named after the run's first layer.

    Layers that are no chain stay as they are.
    """
    plan = spec.plan()
    found = runs(plan)
    if not is_chain(plan):
        return spec.graph(plan), found
    graph = spec.graph([replace(run.planned, reads=(i - 1,)) for i, run in enumerate(found)])
    names = {f"layer{i}": f"layer{run.first}" for i, run in enumerate(found)}
    return nx.relabel_nodes(graph, {node: _renamed(node, names) for node in graph}), found


def _renamed(node: str, names: dict[str, str]) -> str:
    layer = layer_of(node)
    return names.get(layer, layer) + node.removeprefix(layer)


def within(graph: nx.DiGraph, run: Run) -> list[str]:
    """The nodes of a run. A change of rate is none: it stands once around equal layers."""
    return [
        node
        for node in graph
        if layer_of(node) == f"layer{run.first}" and graph.nodes[node]["op"] not in RATES
    ]


def layer_of(node: str) -> str:
    """The layer that a node of a graph belongs to by its name: `layer3`."""
    return node.partition("_")[0]
