"""The canonical order of a graph's nodes, and the hash that goes by it.

Two graphs have one hash exactly if they are isomorphic: ops, parts, sizes and roles equal, names
and the order of branches whatever they are. A hash of each node over the hashes of what it reads
(Merkle) is less than that: of two equal nodes that read the same it cannot tell which one a third
node reads, and each has weights of its own.

Colours are refined until equal ones have equal neighbours (Weisfeiler and Leman 1968). Where nodes
still share a colour, each of them is tried as the first, and the order with the least certificate
is taken (McKay and Piperno 2014). Two tries with one certificate are an automorphism, and one of
them is enough. A stack is cut at the nodes that all paths pass, so that what its layers leave open
adds up and does not multiply.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator

import networkx as nx

Label = tuple[str, tuple[int, ...], int, str]
Colours = list[int]
"""Of every node how many nodes have a smaller colour: a colour that one node has is its place."""
Edges = tuple[tuple[int, int, str], ...]
"""Source, reader and role. By the places of an order they are its certificate."""


def canonical_hash(graph: nx.DiGraph) -> str:
    """16 hex digits of SHA-256, equal exactly for isomorphic graphs."""
    labels = _labels(graph)
    nodes = _order(graph, labels)
    edges = _edges(graph, nodes)
    text = repr((graph.graph["causal"], [labels[node] for node in nodes], sorted(edges)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def order(graph: nx.DiGraph) -> list[str]:
    """All nodes, in an order that maps isomorphic graphs onto each other place by place.

    One node reads nothing, and one is read by nobody.
    """
    return _order(graph, _labels(graph))


def _labels(graph: nx.DiGraph) -> dict[str, Label]:
    """What each node is, whatever its name."""
    return {
        node: (
            n["op"],
            n["sizes"],
            n["dim"],
            "" if n["part"] is None else n["part"].model_dump_json(),
        )
        for node, n in graph.nodes.items()
    }


def _order(graph: nx.DiGraph, labels: dict[str, Label]) -> list[str]:
    found: list[str] = []
    for piece in _pieces(graph):
        ranks = _ranked([labels[node] for node in piece])
        places = _places(tuple(ranks), tuple(_edges(graph, piece)))
        found[-1:] = [piece[i] for i in places]  # it begins with the end of the last one
    return found


def _edges(graph: nx.DiGraph, nodes: list[str]) -> Iterator[tuple[int, int, str]]:
    """The edges between nodes of a list, by their places in it."""
    place = {node: i for i, node in enumerate(nodes)}
    for source in nodes:
        for reader, edge in graph.succ[source].items():
            if reader in place:
                yield place[source], place[reader], edge["role"]


def _pieces(graph: nx.DiGraph) -> Iterator[list[str]]:
    """The nodes from each node that all paths pass to the next such, both ends included."""
    nodes = list(nx.topological_sort(graph))
    place = {node: i for i, node in enumerate(nodes)}
    start = furthest = 0
    for i, node in enumerate(nodes):
        if i > start and furthest <= i:
            yield nodes[start : i + 1]
            start = i
        furthest = max([furthest, *(place[reader] for reader in graph.succ[node])])


@functools.lru_cache(4096)
def _places(ranks: tuple[int, ...], edges: Edges) -> list[int]:
    """The canonical order of the nodes of a piece, its first one first and its last one last.

    `ranks` are those of the labels among each other; the layers of a stack share most pieces.
    """
    ends = [0] + [1] * (len(ranks) - 2) + [2]
    return _sorted(_Piece(edges).least(_ranked(list(zip(ends, ranks, strict=True))))[1])


class _Piece:
    """The search for the least certificate of a graph whose nodes are numbers."""

    def __init__(self, edges: Edges) -> None:
        self.edges = edges

    def least(self, colours: Colours) -> tuple[Edges, Colours]:
        """The least certificate of all orders that go by the colours, and such an order."""
        colours = self.refined(colours)
        tried: set[Edges] = set()
        found = []
        for node in _first_shared(colours):
            before = _before(colours, node)
            if (glance := self.glance(before)) not in tried:
                tried.add(glance)
                found.append(self.least(before))
        return min(found) if found else (self.certificate(colours), colours)

    def glance(self, colours: Colours) -> Edges:
        """The certificate of one of these orders."""
        colours = self.refined(colours)
        while shared := _first_shared(colours):
            colours = self.refined(_before(colours, shared[0]))
        return self.certificate(colours)

    def refined(self, colours: Colours) -> Colours:
        """Colours told apart by those of what a node reads and of what reads it, to the end."""
        while True:
            near: list[list[tuple[bool, str, int]]] = [[] for _ in colours]
            for source, reader, role in self.edges:
                near[source].append((True, role, colours[reader]))
                near[reader].append((False, role, colours[source]))
            after = _ranked([(c, sorted(n)) for c, n in zip(colours, near, strict=True)])
            if after == colours:
                return colours
            colours = after

    def certificate(self, colours: Colours) -> Edges:
        """The edges by places; what stands there goes by the colours."""
        return tuple(sorted((colours[a], colours[b], role) for a, b, role in self.edges))


def _ranked(values: list) -> Colours:
    """Of each value how many are smaller."""
    ranks = [0] * len(values)
    for _, equal in itertools.groupby(enumerate(_sorted(values)), lambda at: values[at[1]]):
        place, first = next(equal)
        for i in [first, *(i for _, i in equal)]:
            ranks[i] = place
    return ranks


def _sorted(values: list) -> list[int]:
    return sorted(range(len(values)), key=values.__getitem__)


def _first_shared(colours: Colours) -> list[int]:
    """The nodes of the first colour that several have, none if each has its own."""
    for _, alike in itertools.groupby(_sorted(colours), key=colours.__getitem__):
        if len(nodes := list(alike)) > 1:
            return nodes
    return []


def _before(colours: Colours, node: int) -> Colours:
    """The colours with one node put before the others of its colour."""
    return [c + (c == colours[node] and i != node) for i, c in enumerate(colours)]
