"""A space as a tree for the terminal: every decision where it is made, with what it may be.

    small  15 decisions
    ├── shared, each decided once
    │   └── gate  one of none, silu
    └── model  dim 64, layers 2
        └── topology  one of
            ├── interleave
            │   ├── major  $retention  retention  heads 4
            │   │   └── gate  $gate, shared
            ...

A $name of `define:` is written out where it first stands; every place decides it afresh. The
default of a decision is its first value unless told.
"""

from typing import Any

from rich.text import Text
from rich.tree import Tree

from archsearch import domains
from archsearch.covering import decisions
from archsearch.reading import Key
from archsearch.resolving import Sections
from archsearch.space import Space
from archsearch.static import solvable
from archsearch.viewing import words


def space_tree(space: Space) -> Tree:
    """The tree of a space."""
    tree = Tree(_line(space.name, f"{len(decisions(space))} decisions"))
    walk = _Walk(space.sections)
    if space.sections.shared:
        shared = tree.add("shared, each decided once")
        for name, node in space.sections.shared.items():
            walk.add(shared, name, node, ("shared", name))
    walk.add(tree, "model", space.sections.model, ("model",))
    return tree


def _line(word: str, *details: str, doc: str = "") -> Text:
    """A line of the tree; what is empty is left out."""
    told = [(f"  {detail}", "") for detail in details if detail]
    return Text.assemble((word, "bold"), *told, (f"  {doc}" if doc else "", "dim"))


def plain(node: Any) -> bool:
    """Whether a node is said in a word: a literal or an expression, or a list of them."""
    if isinstance(node, list):
        return all(map(plain, node))
    return not isinstance(node, dict) and not _refers(node)


def _refers(node: Any) -> bool:
    return isinstance(node, str) and node.startswith("$")


class _Walk:
    """Adds nodes of the file below branches of the tree."""

    def __init__(self, sections: Sections) -> None:
        self.sections = sections
        self.seen: set[str] = set()  # names of `define:` that were written out

    def add(self, tree: Tree, key: str, node: Any, source: Key, before: str = "") -> None:
        """Adds a node that stands at `source` under its key, `before` said first."""
        if _refers(node):
            self.reference(tree, key, node[1:])
        elif isinstance(node, list) and not plain(node):
            below = tree.add(_line(key, before))
            for i, child in enumerate(node):
                self.add(below, str(i), child, (*source, i))
        elif not isinstance(node, dict):
            tree.add(_line(key, before, words.scalar(node)))
        elif domains.decision_key(node):
            self.decision(tree, key, node, source, before)
        elif "solve" in node:
            least, most, step = solvable(node, source)
            steps = f", in steps of {step}" if step > 1 else ""
            told = f"the largest of {least} to {most} within the budgets{steps}"
            tree.add(_line(key, before, told))
        elif "repeat" in node:
            self.repeat(tree, node, source)
        else:
            self.mapping(tree, key, node, source, before)

    def reference(self, tree: Tree, key: str, name: str) -> None:
        told = "" if key == name else f"${name}"
        if name in self.sections.shared:
            tree.add(_line(key, f"${name}, shared"))
            return
        node = self.sections.define[name]
        if name in self.seen and not self.leaf(node):
            tree.add(_line(key, told, "as above"))
            return
        self.seen.add(name)
        self.add(tree, key, node, ("define", name), told)

    def leaf(self, node: Any) -> bool:
        """Whether a node is one line."""
        kind = domains.decision_key(node)
        return plain(node) or bool(kind and kind != "choose" and not arms(node))

    def decision(self, tree: Tree, key: str, node: dict, source: Key, before: str) -> None:
        more, doc = words.beside(node), node.get("doc", "")
        named = arms(node)
        if not named:
            domain = words.domain(node)
            tree.add(_line(key, before, ", ".join(filter(None, [domain, more])), doc=doc))
            return
        told = ", ".join(filter(None, ["one of", more]))
        below = tree.add(_line(key, before, told, doc=doc))
        for i, (label, arm) in enumerate(named):
            at = ("choose", label) if "choose" in node else ("choice", i)
            self.add(below, label, {} if arm is None else arm, (*source, *at))

    def mapping(self, tree: Tree, key: str, node: dict, source: Key, before: str) -> None:
        """A mapping: its type and literals on its line, the rest below."""
        kind = node.get("type", "")
        said = {k: v for k, v in node.items() if k != "type" and plain(v)}
        literals = ", ".join(f"{k} {words.scalar(v)}" for k, v in said.items())
        below = tree.add(_line(key, before, "" if kind == key else str(kind), literals))
        for name, child in node.items():
            if name not in said and name != "type":
                self.add(below, name, child, (*source, name))

    def repeat(self, tree: Tree, node: dict, source: Key) -> None:
        """Repeated elements of a list, and those that stand in place of some."""
        times = words.scalar(node["times"])
        kind = "all the same" if node.get("share") else "each decided afresh"
        below = tree.add(_line(f"{times} x", kind))
        self.add(below, "each", node["repeat"], (*source, "repeat"))
        for place, child in node.get("at", {}).items():
            self.add(below, f"at {place}", child, (*source, "at", place))


def arms(node: dict[str, Any]) -> list[tuple[str, Any]]:
    """The alternatives of a decision with their names, where some own decisions below them."""
    if "choose" in node:
        return list(node["choose"].items())
    options = node.get("choice", [])
    if not any(map(_refers, options)):
        return []
    return [(o[1:] if _refers(o) else words.scalar(o), o if _refers(o) else None) for o in options]
