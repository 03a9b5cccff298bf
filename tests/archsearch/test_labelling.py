"""The hash of a graph is equal exactly for isomorphic graphs."""

import itertools
import random
from collections.abc import Iterator
from unittest import mock

import networkx as nx
import pytest

from archsearch import labelling
from archsearch.labelling import canonical_hash, order

Edges = dict[tuple[int, int], str]


def graph(labels: str, edges: Edges, names: list[int] | None = None) -> nx.DiGraph:
    """Nodes with a letter each, from one that reads nothing to one that nobody reads."""
    made = nx.DiGraph(causal=True)
    names = names or list(range(len(labels)))
    for i in sorted(range(len(labels)), key=names.__getitem__):  # listed in another order as well
        made.add_node(f"n{names[i]}", op=labels[i], part=None, sizes=(), dim=1)
    for a, b in sorted(edges, key=lambda edge: names[edge[0]]):
        made.add_edge(f"n{names[a]}", f"n{names[b]}", role=edges[a, b])
    return made


def same(a: nx.DiGraph, b: nx.DiGraph) -> bool:
    """What networkx says."""
    return nx.is_isomorphic(a, b, node_match=dict.__eq__, edge_match=dict.__eq__)


def between_ends(inner: int) -> Iterator[list[tuple[int, int]]]:
    """Every set of edges by which each of the inner nodes is on a way from the first to the last"""
    last = inner + 1
    pairs = list(itertools.combinations(range(last + 1), 2))
    for bits in itertools.product((False, True), repeat=len(pairs)):
        edges = list(itertools.compress(pairs, bits))
        if {a for a, _ in edges} == {*range(last)} and {b for _, b in edges} == {
            *range(1, last + 1)
        }:
            yield edges


@pytest.mark.parametrize(("inner", "letters"), [(1, "ab"), (2, "ab"), (3, "ab"), (4, "a")])
def test_all_small_graphs(inner: int, letters: str) -> None:
    """As many hashes as classes, which here are told by trying all orders of the inner nodes.

    Of 4 nodes of one kind a Merkle hash tells 1858 of the 1960 classes.
    """
    n, found = inner + 2, set()
    orders = [(0, *(1 + i for i in p), n - 1) for p in itertools.permutations(range(inner))]
    for edges in between_ends(inner):
        for kinds in itertools.product(letters, repeat=inner):
            labels = f"<{''.join(kinds)}>"
            least = min(
                (
                    *(labels[i] for i in by),
                    sum(1 << n * by.index(a) + by.index(b) for a, b in edges),
                )
                for by in orders
            )
            found.add((least, canonical_hash(graph(labels, dict.fromkeys(edges, "branch")))))
    assert len(found) == len({least for least, _ in found}) == len({told for _, told in found})


def drawn(rng: random.Random) -> tuple[str, Edges]:
    """A graph of few labels, in layers, so that many of its nodes look alike."""
    rows = [[0]]
    for width in rng.choices((1, 2, 3, 3), k=rng.randint(2, 4)):
        rows.append([rows[-1][-1] + 1 + i for i in range(width)])
    last = rows[-1][-1] + 1
    edges = {}
    for row, above in itertools.pairwise([*rows, [last]]):
        for node in above:
            for source in rng.sample(row, rng.randint(1, min(2, len(row)))):
                edges[source, node] = rng.choice(("branch", "branch", "x"))
        unread = [node for node in row if not any((node, b) in edges for b in above)]
        edges |= {(node, rng.choice(above)): "branch" for node in unread}
    return "<" + "".join(rng.choices("aab", k=last - 1)) + ">", edges


def test_names_and_listing_do_not_enter() -> None:
    """And the order puts the nodes of two such graphs onto each other."""
    rng = random.Random(0)
    for _ in range(150):
        labels, edges = drawn(rng)
        names = rng.sample(range(len(labels)), len(labels))
        one, other = graph(labels, edges), graph(labels, edges, names)
        assert canonical_hash(one) == canonical_hash(other)
        onto = dict(zip(order(one), order(other), strict=True))
        assert {(onto[a], onto[b], r) for a, b, r in one.edges.data("role")} == {
            *other.edges.data("role")
        }
        assert all(one.nodes[a] == other.nodes[b] for a, b in onto.items())


def test_an_edge_moved() -> None:
    """Equal hashes exactly where networkx finds an isomorphism."""
    rng, verdicts = random.Random(1), []
    while len(verdicts) < 300:
        labels, edges = drawn(rng)
        (a, b), role = rng.choice(list(edges.items()))
        moved = {edge: r for edge, r in edges.items() if edge != (a, b)}
        moved[rng.choice([c for c in range(b) if (c, b) not in moved]), b] = role
        if {a for a, _ in moved} != {*range(len(labels) - 1)}:
            continue
        one, other = graph(labels, edges), graph(labels, moved)
        verdicts.append(same(one, other))
        assert (canonical_hash(one) == canonical_hash(other)) == verdicts[-1]
    assert 30 < sum(verdicts) < 270


def rings(*sizes: int) -> nx.DiGraph:
    """Nodes a in rings, each two neighbours read by a b: all of a kind have equal neighbourhoods."""
    edges, first, n = {}, 1, sum(sizes)
    for size in sizes:
        for i in range(size):
            for j in (i, (i + 1) % size):
                edges[first + j, n + first + i] = "branch"
        first += size
    edges |= {(0, i): "branch" for i in range(1, n + 1)}
    edges |= {(i, 2 * n + 1): "branch" for i in range(n + 1, 2 * n + 1)}
    return graph("<" + "a" * n + "b" * n + ">", edges)


def test_where_neighbourhoods_tell_nothing() -> None:
    hashes = {
        sizes: canonical_hash(rings(*sizes)) for sizes in [(6,), (3, 3), (8,), (4, 4), (3, 5)]
    }
    assert len({*hashes.values()}) == len(hashes)
    assert canonical_hash(rings(5, 3)) == hashes[3, 5]


def test_a_stack_of_equal_branches_is_soon_ordered() -> None:
    """60 layers of 3 equal branches have 6^60 orders; each layer is looked at by itself, once."""
    made, top = nx.DiGraph(causal=True), "in"
    made.add_node("in", op="<", part=None, sizes=(), dim=1)
    for layer in range(60):
        for name in ("b0", "b1", "b2", "add"):
            op = name[0]
            made.add_node(f"{layer}{name}", op=op, part=None, sizes=(), dim=1)
        for branch in ("b0", "b1", "b2"):
            made.add_edge(top, f"{layer}{branch}", role="x")
            made.add_edge(f"{layer}{branch}", f"{layer}add", role="branch")
        made.add_edge(top, f"{layer}add", role="x")
        top = f"{layer}add"
    labelling._places.cache_clear()
    with mock.patch.object(
        labelling._Piece, "refined", autospec=True, side_effect=labelling._Piece.refined
    ) as refined:
        assert len(order(made)) == len(made)
    assert refined.call_count < 30
