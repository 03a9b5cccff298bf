"""Resolution: plain data out of a document in which any value may be a decision.

    $name          the shared decision of this name, or the fragment, decided afresh here
    =expression    arithmetic over `dim`, `layers` and the shared values (expressions.py)
    {choice: ...}  and the other domains (domains.py), answered by a chooser
    {repeat: node, times: n, share: true, at: {-1: node, "2:4": node}}
                   a list of n nodes, or n elements of the list that it stands in; each decides
                   afresh unless they share; `at` puts others at an index or slice, the last wins

The path of a decision is where it stands in the resolved model, with the names of the alternatives
chosen on the way (`topology/parallel/branches/0/retention/decay/selective/per`); what is repeated
counts as the elements of its list, or as `each` where they share; a shared decision is
`shared/<name>`. It is the decision's name in Optuna.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from archsearch import domains, expressions
from archsearch.domains import Choice, Domain, Value
from archsearch.errors import Problem
from archsearch.reading import Document, Key, nearest, show_path
from archsearch.validation import Finding

Chooser = Callable[[str, Domain], Value]
REPEAT = ("repeat", "times", "share", "at")
NUMBERS = ("dim", "layers")
"""What expressions may read of the model, beside the shared names."""
BOUNDS = ("int", "float", "composition", "simplex", "step")
MOST_TIMES = 256
MOST_VALUES = 5000
DEEPEST = 100
_SLICE = re.compile(r"(-?[0-9]{1,4})?(:(-?[0-9]{1,4})?(:[1-9][0-9]{0,3})?)?")


class Unresolvable(ValueError):
    """What stands at `source` in the file gives no value."""

    def __init__(self, source: Key, message: str) -> None:
        super().__init__(message)
        self.source, self.message = source, message


@dataclass(frozen=True)
class Draw:
    """One resolution: the model's data, where each part of it came from, what was decided.

    Attributes:
        data: the model, without decisions.
        sources: paths in the resolved model -> paths in the file.
        decisions: what was chosen, by the path of the decision.
        domains: out of what.
        places: where each decision stands in the file.
        shared: the values of the shared names that were asked for.
    """

    data: dict[str, Any] = field(default_factory=dict)
    sources: dict[Key, Key] = field(default_factory=dict)
    decisions: dict[str, Value] = field(default_factory=dict)
    domains: dict[str, Domain] = field(default_factory=dict)
    places: dict[str, Key] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)

    def problem(self, document: Document, finding: Finding) -> Problem:
        """A finding about the data, at the place in the file where the data came from."""
        path, sources = finding.path, self.sources
        if finding.at_key:  # of an unknown key, only its own place helps
            source = (*sources[path[:-1]], path[-1]) if path[:-1] in sources else path
        else:
            while path not in sources:
                path = path[:-1]
            source = sources[path]
        place = document.place(source, key=finding.at_key)
        return Problem(place, show_path(("model", *finding.path)), finding.message)


class Sections:
    """The parts of a document in which decisions stand: `shared`, `define` and `model`."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.shared: dict[str, Any] = document.get("shared") or {}
        self.define: dict[str, Any] = document.get("define") or {}
        self.model: dict[str, Any] = document.get("model") or {}
        self._domains: dict[Key, Domain] = {}

    def domain(self, node: dict[str, Any], source: Key) -> Domain:
        """The domain that a node says, its bounds calculated; ValueError as domains.parse."""
        if source not in self._domains:
            bounds = {k: self._fixed(node[k]) for k in BOUNDS if k in node}
            self._domains[source] = domains.parse({**node, **bounds})
        return self._domains[source]

    def _fixed(self, bound: Any) -> Any:
        if isinstance(bound, list):
            return [self._fixed(item) for item in bound]
        if not expressions.is_expression(bound):
            return bound
        return expressions.parse(bound[1:]).value(self._constant)

    def _constant(self, name: str) -> Any:
        """The value of a name that no draw changes."""
        node = self.shared.get(name, self.model.get(name))
        if isinstance(node, dict):
            raise ValueError(
                f"{name} is itself a decision, and a domain cannot depend on another: "
                "draw a fraction, or calculate with =, where the value is used"
            )
        return self._fixed(node) if node is not None else self.unknown(name)

    def numbers(self) -> list[str]:
        """The names that expressions may use."""
        return [*self.shared, *(name for name in NUMBERS if name in self.model)]

    def unknown(self, name: str) -> Any:
        raise ValueError(f"{name!r} is no number here; {nearest(name, self.numbers())}")

    def resolve(self, choose: Chooser, solved: int | None = None) -> Draw:
        """Every decision answered by `choose`; Unresolvable when one leads nowhere.

        `solved` is what stands for `{solve: ...}`, its lowest value when None.
        """
        walk = _Walk(self, choose, solved)
        data = walk.value(self.model, ("model",), (), "")
        walk.draw.data.update(data)
        return walk.draw


class _Walk:
    """One resolution of a document."""

    def __init__(self, sections: Sections, choose: Chooser, solved: int | None) -> None:
        self.sections, self.choose, self.solved = sections, choose, solved
        self.draw = Draw()
        self.asked: list[str] = []  # names being calculated, innermost last
        self.values = self.depth = 0

    def value(self, node: Any, source: Key, target: Key, name: str) -> Any:
        """The value of `node`: at `source` in the file, at `target` in the model."""
        self.values += 1
        self.depth += 1
        if self.values > MOST_VALUES or self.depth > DEEPEST:
            raise Unresolvable(
                source,
                f"the model comes to more than {MOST_VALUES} values, or {DEEPEST} levels: "
                "fragments that hold fragments grow fast",
            )
        found = self.found(node, source, target, name)
        self.depth -= 1
        return found

    def found(self, node: Any, source: Key, target: Key, name: str) -> Any:
        self.draw.sources[target] = source
        if isinstance(node, str) and node.startswith("$"):
            return self.reference(node[1:], target, name)
        if expressions.is_expression(node):
            return self.calculated(node, source)
        if isinstance(node, list):
            return self.elements(node, source, target, name)
        if not isinstance(node, dict):
            return node
        if domains.decision_key(node):
            return self.decision(node, source, target, name)
        if "solve" in node:
            return node["solve"][0] if self.solved is None else self.solved
        if "repeat" in node:
            return self.elements([node], source[:-1], target, name, only=source[-1])
        return {
            key: self.value(child, (*source, key), (*target, key), _below(name, key))
            for key, child in node.items()
        }

    def elements(
        self, nodes: list, source: Key, target: Key, name: str, only: str | int | None = None
    ) -> list[Any]:
        """The elements of a list, what is repeated written out; `only` is the key of a repeat."""
        out: list[Any] = []
        for i, node in enumerate(nodes):
            here = (*source, i if only is None else only)
            if not (isinstance(node, dict) and "repeat" in node):
                at = len(out)
                out.append(self.value(node, here, (*target, at), _below(name, at)))
                continue
            for at, (child, origin) in enumerate(self.repeated(node, here), len(out)):
                same = node.get("share") is True and origin[-1] == "repeat"
                out.append(
                    self.value(child, origin, (*target, at), _below(name, "each" if same else at))
                )
        return out

    def repeated(self, node: dict[str, Any], source: Key) -> list[tuple[Any, Key]]:
        """Every repetition's node and where it stands in the file."""
        times = node["times"]
        if expressions.is_expression(times):
            times = self.calculated(times, (*source, "times"))
        if type(times) is not int or not 0 <= times <= MOST_TIMES:
            raise Unresolvable(
                (*source, "times"),
                f"times is {times!r}; it must be an integer from 0 to {MOST_TIMES}",
            )
        out = [(node["repeat"], (*source, "repeat"))] * times
        for key, child in node.get("at", {}).items():
            picked = places(key, times)
            if not picked:
                raise Unresolvable((*source, "at", key), f"{key} is none of {times} repetitions")
            for i in picked:
                out[i] = (child, (*source, "at", key))
        return out

    def reference(self, key: str, target: Key, name: str) -> Any:
        if key in self.sections.shared:
            return self.named(key)
        return self.value(self.sections.define[key], ("define", key), target, name)

    def named(self, name: str) -> Any:
        """The value of a shared name, or of a number of the model, for all who ask the same."""
        sections, shared = self.sections, name in self.sections.shared
        if not shared and name not in sections.numbers():
            return sections.unknown(name)
        if name in self.asked:
            loop = " -> ".join([*self.asked[self.asked.index(name) :], name])
            raise ValueError(f"{loop}: a value that needs itself")
        self.asked.append(name)
        if shared:
            node, source, path = sections.shared[name], ("shared", name), f"shared/{name}"
            value = self.value(node, source, source, path)
            self.draw.shared[name] = value
        else:
            value = self.value(sections.model[name], ("model", name), (name,), name)
        self.asked.pop()
        return value

    def calculated(self, text: str, source: Key) -> Any:
        try:
            return expressions.parse(text[1:]).value(self.named)
        except Unresolvable:
            raise
        except ValueError as error:
            raise Unresolvable(source, str(error)) from None

    def decision(self, node: dict, source: Key, target: Key, name: str) -> Any:
        try:
            domain = self.sections.domain(node, source)
        except ValueError as error:
            raise Unresolvable(source, str(error)) from None
        draw = self.draw
        if name not in draw.decisions:  # a shared decision is made once
            draw.decisions[name] = self.choose(name, domain)
            draw.domains[name], draw.places[name] = domain, source
        value = draw.decisions[name]
        if not isinstance(domain, Choice):
            return value
        i = domain.index(value)
        option, key = domain.nodes[i], domains.decision_key(node)
        if key not in ("choice", "choose"):
            return option
        inner = (*source, key, i if key == "choice" else str(value))
        if key == "choice":
            return self.value(option, inner, target, f"{name}/{value}")
        result = self.value({} if option is None else option, inner, target, f"{name}/{value}")
        return {"type": value, **result} if isinstance(result, dict) else result


def _below(name: str, key: str | int) -> str:
    return f"{name}/{key}".lstrip("/")


def places(text: str, times: int) -> list[int]:
    """The repetitions that an index or slice picks: `0`, `-1`, `2:4`, `::2`."""
    match = _SLICE.fullmatch(text) if text else None
    if match is None:
        raise ValueError(f"{text!r} is no index or slice, such as 0, -1, 2:4 or ::2")
    if ":" not in text:
        i = int(text)
        return [i % times] if -times <= i < times else []
    ends = [int(part) if part else None for part in text.split(":")]
    return list(range(times))[slice(*ends)]
