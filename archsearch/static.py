"""What is wrong with a document before anything in it is decided: every problem, with its path.

Names that lead nowhere or in circles, domains without a value, expressions that cannot be read,
repeats that say too much; and, as warnings, names that nobody uses.
"""

from collections.abc import Callable, Iterator
from typing import Any

import networkx as nx

from archsearch import domains, expressions
from archsearch.reading import Key, nearest
from archsearch.resolving import REPEAT, Sections, places

SECTIONS = ("model", "shared", "define")
SOLVE = {"solve", "step"}
Trouble = tuple[Key, str]
"""A path in the file, and what is wrong there."""


def troubles(sections: Sections) -> list[Trouble]:
    """All that is wrong in the sections that hold decisions."""
    return [*_Static(sections).all(), *_circles(sections)]


def unused(sections: Sections) -> list[Trouble]:
    """The shared and defined names that the model never comes to."""
    edges = nx.DiGraph()
    edges.add_node("model")
    for section in SECTIONS:
        body = getattr(sections, section)
        for name, node in {"": body}.items() if section == "model" else body.items():
            edges.add_edges_from((name or "model", used) for used in _names(node, sections))
    reached = nx.descendants(edges, "model")
    return [
        ((section, name), f"{name} is never used; write ${name} somewhere, or drop it")
        for section in ("shared", "define")
        for name in getattr(sections, section)
        if name not in reached
    ]


def has_prior(sections: Sections) -> bool:
    """Whether a decision has a `prior`."""
    nodes: list[Any] = [getattr(sections, section) for section in SECTIONS]
    while nodes:
        node = nodes.pop()
        if domains.decision_key(node) and "prior" in node:
            return True
        if isinstance(node, dict | list):
            nodes += node.values() if isinstance(node, dict) else node
    return False


def _circles(sections: Sections) -> Iterator[Trouble]:
    """Fragments that hold themselves, each circle once."""
    edges = nx.DiGraph(
        (name, used)
        for name, node in sections.define.items()
        for used in _names(node, sections)
        if used in sections.define
    )
    for component in nx.strongly_connected_components(edges):
        loop = edges.subgraph(component)
        if loop.number_of_edges():
            around = [source for source, _ in nx.find_cycle(loop)]
            path = " -> ".join(f"${name}" for name in [*around, around[0]])
            yield ("define", around[0]), f"{path} never ends"


def _names(node: Any, sections: Sections) -> Iterator[str]:
    """The shared and defined names that a node uses."""
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _names(child, sections)
    elif isinstance(node, str) and node.startswith("$"):
        yield node[1:]
    elif expressions.is_expression(node):
        try:
            yield from expressions.parse(node[1:]).names
        except ValueError:
            return


class _Static:
    """Walks every node of the sections once."""

    def __init__(self, sections: Sections) -> None:
        self.sections = sections

    def all(self) -> Iterator[Trouble]:
        yield from self.clashes()
        for section in SECTIONS:
            if word := _is_said(getattr(self.sections, section)):
                yield (section,), f"{word!r}: not {section} as a whole, but its values are decided"
                return
            for key, node in getattr(self.sections, section).items():
                yield from self.node(node, (section, key))

    def clashes(self) -> Iterator[Trouble]:
        """Names that could be meant twice."""
        for name in self.sections.shared:
            if name in self.sections.define:
                yield ("define", name), f"{name} is also a shared name; give one of them another"
            elif name in ("dim", "layers"):
                yield ("shared", name), f"{name} is a number of the model; give it another name"

    def node(self, node: Any, source: Key) -> Iterator[Trouble]:
        if isinstance(node, str):
            yield from self.text(node, source)
        elif isinstance(node, list):
            for i, child in enumerate(node):
                yield from self.node(child, (*source, i))
        elif isinstance(node, dict):
            yield from self.mapping(node, source)

    def text(self, node: str, source: Key) -> Iterator[Trouble]:
        if node.startswith("$"):
            known = [*self.sections.shared, *self.sections.define]
            if node[1:] not in known:
                yield source, f"{node} is not defined; {nearest(node[1:], known)}"
            elif source[0] == "shared":
                yield source, f"{node}: a shared decision stands alone; move it to define:"
        elif node.startswith("="):
            yield from _tried(source, lambda: self.expression(node))

    def expression(self, node: str) -> None:
        known = self.sections.numbers()
        for name in expressions.parse(node[1:]).names:
            if name not in known:
                self.sections.unknown(name)

    def mapping(self, node: dict[str, Any], source: Key) -> Iterator[Trouble]:
        key = domains.decision_key(node)
        if key:
            found = list(_tried(source, lambda: self.sections.domain(node, source)))
            yield from found
            if not found and key in ("choice", "choose"):
                yield from self.node(node[key], (*source, key))
            return
        if "solve" in node:
            yield from _tried(source, lambda: solvable(node, source))
            return
        if "repeat" in node:
            yield from _tried(source, lambda: _repeats(node))
        for child in node:
            yield from self.node(node[child], (*source, child))


def _is_said(node: dict[str, Any]) -> str | None:
    """The word that makes a mapping more than a literal."""
    return domains.decision_key(node) or next((w for w in ("solve", "repeat") if w in node), None)


def solvable(node: dict[str, Any], source: Key) -> tuple[int, int, int]:
    """Least, largest and step of a `solve`; ValueError when it says no such thing."""
    if source not in (("model", "dim"), ("model", "layers")):
        raise ValueError("solve: only the model's dim or layers can be solved for")
    if extra := sorted(set(node) - SOLVE):
        raise ValueError(f"{extra[0]!r} beside 'solve'; {nearest(extra[0], ['step'])}")
    ends, step = node["solve"], node.get("step", 1)
    pair = isinstance(ends, list) and len(ends) == 2 and all(type(e) is int for e in ends)
    if not pair or not 1 <= ends[0] <= ends[1]:
        raise ValueError(f"solve needs [least, largest], both at least 1, got {ends!r}")
    if type(step) is not int or step < 1:
        raise ValueError(f"step must be a positive integer, got {step!r}")
    return ends[0], ends[1], step


def _repeats(node: dict[str, Any]) -> None:
    if extra := sorted(set(node) - set(REPEAT)):
        raise ValueError(f"{extra[0]!r} beside 'repeat'; {nearest(extra[0], REPEAT[1:])}")
    times = node.get("times")
    if type(times) is not int and not expressions.is_expression(times):
        raise ValueError(f"repeat needs times: how often, such as 4 or =layers, got {times!r}")
    if type(node.get("share", False)) is not bool:
        raise ValueError(f"share is true or false, got {node['share']!r}")
    if not isinstance(node.get("at", {}), dict):
        raise ValueError(f"at is a mapping of indices or slices to nodes, got {node['at']!r}")
    for key in node.get("at", {}):
        places(key, 1)


def _tried(source: Key, attempt: Callable[[], Any]) -> Iterator[Trouble]:
    try:
        attempt()
    except ValueError as error:
        yield source, str(error)
