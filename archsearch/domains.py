"""Decisions: what may stand in a space in place of a value.

    {choice: [a, b, c]}              one of several literals (a list in a choice is one literal), or
                                     of fragments by name ($retention)
    {choose: {name: node, ...}}      named alternatives, each owning the decisions below it
    {int: [lo, hi], step:, log:}     both ends included
    {float: [lo, hi], step:, log:}   both ends included
    {fraction: true}                 a float in [0, 1)
    {composition: n, parts: [a, b]}  n as an ordered sum of positive integers, one per part
    {simplex: n, step: 0.125}        n positive fractions that add up to one, multiples of `step`

Beside any of them: `default`, what is taken where nothing is searched, the first value unless told;
`doc`, a sentence; `prior`, what is thought of it before the search: weights of a choice in its
order, {name: weight} of a choose (1 unless told), the [lo, hi] of a range that gets nine draws of
ten.

A mapping with one of these keys is a decision and nothing else; every other mapping and every list
is a literal. A domain never depends on another draw.
"""

import itertools
import json
import math
import random
from dataclasses import dataclass
from typing import Any

from optuna.trial import Trial

from archsearch.reading import nearest

Value = bool | int | float | str | None
KEYS = ("choice", "choose", "int", "float", "fraction", "composition", "simplex")
COMMON = {"prior", "default", "doc"}
OPTIONS = {
    "int": {"step", "log"},
    "float": {"step", "log"},
    "composition": {"parts"},
    "simplex": {"step"},
}
MOST_SUMS = 4096
"""Compositions of one decision: the alternatives of an Optuna category."""
BELIEVED = 0.9
"""The draws of a range that fall within its prior."""


@dataclass(frozen=True)
class Choice:
    """One of `labels`; `nodes` is what stands in the file for each, `weights` its prior."""

    labels: tuple[Value, ...]
    nodes: tuple[Any, ...]
    weights: tuple[float, ...]
    start: int = 0
    doc: str = ""

    def suggest(self, trial: Trial, name: str) -> Value:
        return trial.suggest_categorical(name, self.labels)

    def draw(self, rng: random.Random) -> Value:
        return rng.choices(self.labels, self.weights)[0]

    def alternatives(self) -> list[Value]:
        """All values, the default first."""
        return [self.default, *(n for i, n in enumerate(self.labels) if i != self.start)]

    @property
    def default(self) -> Value:
        return self.labels[self.start]

    @property
    def size(self) -> int:
        return len(self.labels)

    def index(self, label: Value) -> int:
        """The position of a label; True and 1 are two labels."""
        return _index(label, self.labels)


@dataclass(frozen=True)
class Range:
    """A number in [lo, hi]."""

    lo: Any
    hi: Any
    step: Any = None
    log: bool = False
    default: Any = None
    believed: tuple[Any, Any] | None = None
    doc: str = ""

    def draw(self, rng: random.Random) -> Value:
        inside = self.believed is not None and rng.random() < BELIEVED
        lo, hi = self.believed if inside and self.believed else (self.lo, self.hi)
        if self.step:
            first, last = math.ceil(self._steps(lo)), math.floor(self._steps(hi))
            return self.lo + self.step * rng.randint(first, last)
        if not self.log:
            return rng.uniform(lo, hi)
        return min(hi, max(lo, lo * (hi / lo) ** rng.random()))

    def _steps(self, value: Any) -> float:
        return round((value - self.lo) / self.step, 9)

    def alternatives(self) -> list[Value]:
        """The default and both ends."""
        last = self.lo + self.step * math.floor(self._steps(self.hi)) if self.step else self.hi
        return list(dict.fromkeys((self.default, self.lo, last)))

    @property
    def size(self) -> float:
        """How many values there are; infinite without a step."""
        return 1 + math.floor(self._steps(self.hi)) if self.step else math.inf

    def __contains__(self, value: Any) -> bool:
        number = type(value) in (int, float) and self.lo <= value <= self.hi
        return number and (not self.step or self._steps(value).is_integer())


class Int(Range):
    """An integer in [lo, hi]."""

    def suggest(self, trial: Trial, name: str) -> Value:
        step = 1 if self.log else self.step
        return trial.suggest_int(name, self.lo, self.hi, step=step, log=self.log)

    def draw(self, rng: random.Random) -> Value:
        return round(super().draw(rng))  # type: ignore[arg-type]

    @property
    def size(self) -> float:
        return self.hi - self.lo + 1 if self.log else super().size


class Float(Range):
    """A float in [lo, hi]."""

    def suggest(self, trial: Trial, name: str) -> Value:
        return trial.suggest_float(name, self.lo, self.hi, step=self.step, log=self.log)


Domain = Choice | Int | Float


def decision_key(node: Any) -> str | None:
    """The key that makes a mapping a decision, or None for a literal."""
    return next((key for key in KEYS if key in node), None) if isinstance(node, dict) else None


def parse(node: dict[str, Any]) -> Domain:
    """The domain that a mapping says; ValueError with what is allowed."""
    key = decision_key(node)
    assert key is not None
    options = COMMON | OPTIONS.get(key, set())
    if extra := sorted(set(node) - {key} - options):
        if extra[0] in KEYS:
            raise ValueError(f"{extra[0]!r} beside {key!r}: one decision has one of them")
        raise ValueError(f"{extra[0]!r} beside {key!r}; {nearest(extra[0], options)}")
    if not isinstance(node.get("doc", ""), str):
        raise ValueError(f"doc must be a sentence, got {node['doc']!r}")
    if key in ("int", "float", "fraction"):
        return _range(node, key)
    return {"composition": _composition, "simplex": _simplex}.get(key, _alternatives)(node)


def _alternatives(node: dict[str, Any]) -> Choice:
    key = "choice" if "choice" in node else "choose"
    options = node[key]
    if not isinstance(options, list if key == "choice" else dict) or not options:
        form = "a list of one or more values" if key == "choice" else "a mapping of named nodes"
        raise ValueError(f"{key} needs {form}, got {options!r}")
    if isinstance(options, dict):
        return _choice(node, tuple(options), tuple(options.values()))
    for option in options:
        if isinstance(option, dict):
            raise ValueError(
                "choice holds literals and $names; for alternatives with options of their own "
                "write {choose: {name: {...}, ...}}"
            )
    labels = tuple(map(_label, options))
    if len({(type(n), n) for n in labels}) < len(labels):
        raise ValueError(f"choice lists a value twice: {options!r}")
    return _choice(node, labels, tuple(options))


def _choice(node: dict[str, Any], labels: tuple[Value, ...], nodes: tuple[Any, ...]) -> Choice:
    start = 0
    if "default" in node:
        try:
            start = _index(_label(node["default"]), labels)
        except ValueError:
            names = ", ".join(map(str, labels))
            raise ValueError(f"default {node['default']!r} is none of {names}") from None
    return Choice(labels, nodes, _weights(node, labels), start, node.get("doc", ""))


def _weights(node: dict[str, Any], labels: tuple[Value, ...]) -> tuple[float, ...]:
    prior = node.get("prior", [1] * len(labels))
    if isinstance(prior, dict) and "choose" in node:
        if unknown := sorted(set(prior) - set(labels)):
            raise ValueError(f"prior names {unknown[0]!r}; {nearest(unknown[0], map(str, labels))}")
        prior = [prior.get(label, 1) for label in labels]
    form = "{name: weight}" if "choose" in node else f"a list of {len(labels)} weights"
    numbers = isinstance(prior, list) and all(
        type(w) in (int, float) and 0 < w < math.inf for w in prior
    )
    if not numbers or len(prior) != len(labels):
        raise ValueError(f"prior must be {form}, each above 0, got {node['prior']!r}")
    return tuple(float(weight) for weight in prior)


def _index(label: Value, labels: tuple[Value, ...]) -> int:
    return [(type(n), n) for n in labels].index((type(label), label))


def _label(option: Any) -> Value:
    if isinstance(option, str):
        return option.removeprefix("$")
    return json.dumps(option) if isinstance(option, list | dict) else option


def _range(node: dict[str, Any], key: str) -> Int | Float:
    if key == "fraction":
        if node["fraction"] is not True:
            raise ValueError("write {fraction: true}: a float in [0, 1)")
        node = {**node, "float": [0.0, 1.0 - 2**-20]}
    kind, name = (int, "int") if key == "int" else (float, "float")
    numbers = (int,) if kind is int else (int, float)
    lo, hi = _ends(node[name], numbers, name)
    step, log = node.get("step"), node.get("log", False)
    if type(log) is not bool or (log and (step is not None or lo <= 0)):
        raise ValueError("log is true or false, needs lo > 0, and goes without step")
    if step is not None and not (type(step) in numbers and 0 < step < math.inf):
        raise ValueError(f"step must be a positive {name}, got {step!r}")
    if kind is int and not log:
        step = step or 1
    believed = _ends(node["prior"], numbers, "prior") if "prior" in node else None
    make = Int if kind is int else Float
    domain = make(kind(lo), kind(hi), step, log, kind(lo), None, node.get("doc", ""))
    if believed and not (believed[0] in domain and believed[1] in domain):
        raise ValueError(f"prior {node['prior']!r} must begin and end on values of the range")
    default = node.get("default", lo)
    if default not in domain or type(default) not in numbers:
        raise ValueError(f"default {default!r} is no value of the range")
    return make(domain.lo, domain.hi, step, log, kind(default), believed, domain.doc)


def _ends(ends: Any, numbers: tuple[type, ...], name: str) -> tuple[Any, Any]:
    legal = isinstance(ends, list) and len(ends) == 2 and all(type(e) in numbers for e in ends)
    if not legal or not -math.inf < ends[0] <= ends[1] < math.inf:
        raise ValueError(f"{name} needs [lo, hi] with lo <= hi, got {ends!r}")
    return ends[0], ends[1]


def _composition(node: dict[str, Any]) -> Choice:
    total, parts = node["composition"], node.get("parts")
    if not isinstance(parts, list) or not parts or not _all_different_names(parts):
        raise ValueError(f"composition needs parts: a list of different names, got {parts!r}")
    if type(total) is not int or total < len(parts):
        raise ValueError(
            f"composition of {total!r} into {len(parts)} parts; it needs an integer of at least "
            "one per part"
        )
    sums = _sums(total, len(parts))
    nodes = tuple(dict(zip(parts, s, strict=True)) for s in sums)
    return _choice(node, tuple("+".join(map(str, s)) for s in sums), nodes)


def _all_different_names(parts: list) -> bool:
    return all(isinstance(part, str) for part in parts) and len(set(parts)) == len(parts)


def _simplex(node: dict[str, Any]) -> Choice:
    count, step = node["simplex"], node.get("step", 0.125)
    if type(count) is not int or count < 2:
        raise ValueError(f"simplex needs the number of fractions, 2 or more, got {count!r}")
    if type(step) is not float or not 0 < step < 1 or abs(1 / step - round(1 / step)) > 1e-9:
        raise ValueError(f"step must divide 1, such as 0.125, got {step!r}")
    total = round(1 / step)
    if total < count:
        raise ValueError(
            f"{count} positive fractions in steps of {step} exceed 1; take a finer step"
        )
    nodes = tuple([n / total for n in s] for s in _sums(total, count))
    return _choice(node, tuple("+".join(f"{n:g}" for n in node) for node in nodes), nodes)


def _sums(total: int, parts: int) -> list[list[int]]:
    if total > MOST_SUMS or math.comb(total - 1, parts - 1) > MOST_SUMS:
        raise ValueError(
            f"{total} divides into {parts} parts in over {MOST_SUMS} ways; make it less"
        )
    cuts = itertools.combinations(range(1, total), parts - 1)
    return [[b - a for a, b in itertools.pairwise((0, *c, total))] for c in cuts]
