"""What differs between two spaces: their decisions by stable path, then every other section.

Fragments of `define:` are compared where they stand, so that only what a search would see counts:
to write one out, or to rename one that is no alternative, changes nothing. What differs at several
places because they share a fragment is told once. Sentences (`doc`) are not compared.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeGuard

from archsearch import domains
from archsearch.document import SpaceFile
from archsearch.domains import Choice
from archsearch.reading import Key
from archsearch.resolving import Sections
from archsearch.space import Space
from archsearch.viewing import words
from archsearch.viewing.differences import Change, Sign, below, compare, same
from archsearch.viewing.space_tree import arms, plain

DECIDED = ("shared", "define", "model")
Place = tuple[Any, Key]
"""A node and where it stands in its file."""
Origin = tuple[Key, Key, str]
"""Where the two nodes of a change stand in their files, and what it says."""


def space_changes(a: Space, b: Space) -> list[Change]:
    """Every difference; none where the same is searched in the same way."""
    walk = _Walk(a.sections, b.sections)
    walk.mappings("shared", (a.sections.shared, ("shared",)), (b.sections.shared, ("shared",)))
    walk.mappings("", (a.sections.model, ("model",)), (b.sections.model, ("model",)))
    return [*walk.changes(), *_others(a.file, b.file)]


def _others(a: SpaceFile, b: SpaceFile) -> Iterator[Change]:
    """The differences outside of what is decided."""
    for name in SpaceFile.model_fields:
        if name in DECIDED:
            continue
        old, new = getattr(a, name), getattr(b, name)
        if name == "tasks":
            old, new = ({task.name: task for task in tasks} for tasks in (old, new))
        if name == "constraints":
            old, new = ({rule.name: rule.rule for rule in rules} for rules in (old, new))
        yield from compare(name, old, new)


class _Walk:
    """Compares nodes of two files, each pair standing at the same path of the model."""

    def __init__(self, first: Sections, second: Sections) -> None:
        self.first, self.second = first, second
        self.found: dict[Origin, Change] = {}
        self.places: Counter[Origin] = Counter()  # in how many places each was found
        self.walked: dict[tuple[Key, Key], Counter[Origin]] = {}  # what a pair of nodes holds

    def changes(self) -> Iterator[Change]:
        """What was found, once for all places that come from the same ones in the files."""
        for origin, change in self.found.items():
            more = self.places[origin] - 1
            also = f", and so at {more} more of its places" if more else ""
            yield Change(change.sign, change.path, change.text + also)

    def note(self, sign: Sign, path: str, text: str, a: Place, b: Place) -> None:
        origin = a[1], b[1], f"{sign}{text}"
        self.found.setdefault(origin, Change(sign, path, text))
        self.places[origin] += 1

    def nodes(self, path: str, a: Place, b: Place) -> None:
        """Compares two nodes, once the names of fragments are followed."""
        a, b = _meant(self.first, a), _meant(self.second, b)
        pair = a[1], b[1]
        if pair in self.walked:  # fragments that hold fragments stand in very many places
            self.places += self.walked[pair]
            return
        before = self.places.copy()
        a, b = _spelled(a, b[0]), _spelled(b, a[0])
        old, new = a[0], b[0]
        if domains.decision_key(old) and domains.decision_key(new):
            self.decisions(path, a, b)
        elif isinstance(old, list) and isinstance(new, list) and not (plain(old) and plain(new)):
            self.mappings(path, _numbered(a), _numbered(b))
        elif _has_parts(old) and _has_parts(new) and old.get("type") == new.get("type"):
            self.mappings(path, a, b)
        elif not same(old, new):
            self.note("~", path, _arrow(old, new), a, b)
        self.walked[pair] = self.places - before

    def mappings(self, path: str, a: Place, b: Place, kind: str = "") -> None:
        """Compares what stands at the keys of two mappings; `kind` is what a key is, if no key."""
        for key in {**a[0], **b[0]}:
            here, old, new = below(path, key), _at(a, key), _at(b, key)
            if key not in b[0]:
                self.note("-", here, kind + _told(old[0]), old, new)
            elif key not in a[0]:
                self.note("+", here, kind + _told(new[0]), old, new)
            else:
                self.nodes(here, old, new)

    def decisions(self, path: str, a: Place, b: Place) -> None:
        """Compares two decisions: what they may be, and what the alternatives own."""
        old, new = (
            replace(side.domain(*place), doc="")
            for side, place in ((self.first, a), (self.second, b))
        )
        listed = all({"choice", "choose"} & {*node} for node, _ in (a, b))
        if listed and (arms(a[0]) or arms(b[0])):
            self.mappings(path, _named(a), _named(b), "an alternative: ")
            self.beside(path, a, b)
        elif repr(old) != repr(new):  # in which true is not 1
            change = _arrow(a[0], b[0])
            if listed and isinstance(old, Choice) and isinstance(new, Choice):
                change += _counted(new.labels, old.labels, "added")
                change += _counted(old.labels, new.labels, "removed")
            self.note("~", path, change, a, b)

    def beside(self, path: str, a: Place, b: Place) -> None:
        """Compares the defaults and priors of alternatives, whose order says the default too."""
        old, new = self.first.domain(*a), self.second.domain(*b)
        kept = repr(old.default) in map(repr, new.alternatives())
        if kept and repr(old.default) != repr(new.default):
            self.note("~", path, f"default {old.default} -> {new.default}", a, b)
        priors = [node.get("prior", "none") for node, _ in (a, b)]
        if priors[0] != priors[1]:
            self.note("~", path, f"prior {_arrow(*priors)}", a, b)


def _counted(values: Iterable[Any], others: Iterable[Any], verb: str) -> str:
    """`; 8 added`: of the values those that are none of the others."""
    known = {repr(value) for value in others}
    more = [words.scalar(value) for value in values if repr(value) not in known]
    return f"; {', '.join(more)} {verb}" if more else ""


def _meant(sections: Sections, place: Place) -> Place:
    """A node, or the fragment that it names; a shared decision stays a name."""
    node, _ = place
    while isinstance(node, str) and node.startswith("$") and node[1:] in sections.define:
        place = node, _ = sections.define[node[1:]], ("define", node[1:])
    return place


def _spelled(place: Place, other: Any) -> Place:
    """A part that is written by its name alone, spelled out where the other one is."""
    node, source = place
    by_name = isinstance(node, str) and not node.startswith(("$", "="))
    return ({"type": node}, source) if by_name and _has_parts(other) else place


def _has_parts(node: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a node is a mapping whose keys mean what they say."""
    return isinstance(node, dict) and not domains.decision_key(node) and "solve" not in node


def _at(place: Place, key: str | int) -> Place:
    node, source = place
    return node.get(key), (*source, key)


def _numbered(place: Place) -> Place:
    return dict(enumerate(place[0])), place[1]


def _named(place: Place) -> Place:
    """The alternatives of a decision by their names."""
    node, source = place
    named = arms(node) or [(words.scalar(option), None) for option in node["choice"]]
    return {label: {} if arm is None else arm for label, arm in named}, source


def _told(node: Any) -> str:
    """A node in words."""
    if isinstance(node, list):
        return f"[{', '.join(map(_told, node))}]"
    if domains.decision_key(node):
        return ", ".join(filter(None, [words.domain(node), words.beside(node)]))
    if not _has_parts(node):
        return words.scalar(node)
    options = ", ".join(f"{key} {_told(child)}" for key, child in node.items() if key != "type")
    return (
        " ".join(filter(None, [node.get("type"), f"({options})" if options else ""]))
        or "no options"
    )


def _arrow(old: Any, new: Any) -> str:
    """`old -> new`, as they are where words do not tell them apart."""
    told = _told(old), _told(new)
    return " -> ".join(told if told[0] != told[1] else (repr(old), repr(new)))
