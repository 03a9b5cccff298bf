"""Decisions: what may stand in a space in place of a value.

    {choice: [a, b, c]}              one of several literals (a list in a choice is one literal), or
                                     of fragments by name ($retention)
    {choose: {name: node, ...}}      named alternatives, each owning the decisions below it
    {int: [lo, hi], step:, log:}     both ends included
    {float: [lo, hi], step:, log:}   both ends included
    {fraction: true}                 a float in [0, 1)
    {composition: n, parts: [a, b]}  n as an ordered sum of positive integers, one per part

A mapping with one of these keys is a decision and nothing else; every other mapping and every list
is a literal. A domain never depends on another draw.
"""

import itertools
import json
import random
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.trial import Trial

Value = bool | int | float | str | None
KEYS = ("choice", "choose", "int", "float", "fraction", "composition")
OPTIONS = {"int": {"step", "log"}, "float": {"step", "log"}, "composition": {"parts"}}


class Domain(Protocol):
    """A set of values with a way to draw from it."""

    def suggest(self, trial: Trial, name: str) -> Value: ...
    def draw(self, rng: random.Random) -> Value: ...
    def alternatives(self) -> list[Value]:
        """All values of a finite set, the ends of a range."""
        ...


@dataclass(frozen=True)
class Choice:
    """One of `labels`; `nodes` is what stands in the file for each."""

    labels: tuple[Value, ...]
    nodes: tuple[Any, ...]

    def suggest(self, trial: Trial, name: str) -> Value:
        return trial.suggest_categorical(name, self.labels)

    def draw(self, rng: random.Random) -> Value:
        return rng.choice(self.labels)

    def alternatives(self) -> list[Value]:
        return list(self.labels)

    def index(self, label: Value) -> int:
        """The position of a label; True and 1 are two labels."""
        return [(type(n), n) for n in self.labels].index((type(label), label))


@dataclass(frozen=True)
class Int:
    """An integer in [lo, hi]."""

    lo: int
    hi: int
    step: int = 1
    log: bool = False

    def suggest(self, trial: Trial, name: str) -> Value:
        return trial.suggest_int(name, self.lo, self.hi, step=self.step, log=self.log)

    def draw(self, rng: random.Random) -> Value:
        if self.log:
            return round(_log_uniform(rng, self.lo, self.hi))
        return rng.randrange(self.lo, self.hi + 1, self.step)

    def alternatives(self) -> list[Value]:
        return [self.lo, self.hi - (self.hi - self.lo) % self.step]


@dataclass(frozen=True)
class Float:
    """A float in [lo, hi]."""

    lo: float
    hi: float
    step: float | None = None
    log: bool = False

    def suggest(self, trial: Trial, name: str) -> Value:
        return trial.suggest_float(name, self.lo, self.hi, step=self.step, log=self.log)

    def draw(self, rng: random.Random) -> Value:
        if self.log:
            return _log_uniform(rng, self.lo, self.hi)
        if self.step:
            steps = int((self.hi - self.lo) / self.step + 1e-9)
            return self.lo + self.step * rng.randint(0, steps)
        return rng.uniform(self.lo, self.hi)

    def alternatives(self) -> list[Value]:
        return [self.lo, self.hi]


def _log_uniform(rng: random.Random, lo: float, hi: float) -> float:
    return min(hi, max(lo, lo * (hi / lo) ** rng.random()))


Finite = Choice | Int | Float


def decision_key(node: Any) -> str | None:
    """The key that makes a mapping a decision, or None for a literal."""
    return next((key for key in KEYS if key in node), None) if isinstance(node, dict) else None


def parse(node: dict[str, Any]) -> Finite:
    """The domain that a mapping says; ValueError with what is allowed."""
    key = decision_key(node)
    assert key is not None
    extra = set(node) - {key} - OPTIONS.get(key, set())
    if extra:
        allowed = ", ".join(sorted(OPTIONS.get(key, set()))) or "nothing"
        raise ValueError(f"{sorted(extra)[0]!r} beside {key!r}; allowed beside it: {allowed}")
    if key in ("choice", "choose"):
        return _choice(node[key], key)
    if key == "composition":
        return _composition(node["composition"], node.get("parts"))
    if key == "fraction":
        if node["fraction"] is not True:
            raise ValueError("write {fraction: true}: a float in [0, 1)")
        return Float(0.0, 1.0 - 2**-20)
    return _range(node, int if key == "int" else float)


def _choice(options: Any, key: str) -> Choice:
    kind = list if key == "choice" else dict
    if not isinstance(options, kind) or not options:
        form = "a list of one or more values" if key == "choice" else "a mapping of named nodes"
        raise ValueError(f"{key} needs {form}, got {options!r}")
    if isinstance(options, dict):
        return Choice(tuple(options), tuple(options.values()))
    for option in options:
        if isinstance(option, dict):
            raise ValueError(
                "choice holds literals and $names; for alternatives with options of their own "
                "write {choose: {name: {...}, ...}}"
            )
    labels = tuple(_label(option) for option in options)
    if len({(type(n), n) for n in labels}) < len(labels):
        raise ValueError(f"choice lists a value twice: {options!r}")
    return Choice(labels, tuple(options))


def _label(option: Any) -> Value:
    if isinstance(option, str):
        return option.removeprefix("$")
    return json.dumps(option) if isinstance(option, list) else option


def _range(node: dict[str, Any], kind: type[int] | type[float]) -> Int | Float:
    ends, step, log = node[kind.__name__], node.get("step"), node.get("log", False)
    numbers = (int,) if kind is int else (int, float)
    legal = isinstance(ends, list) and len(ends) == 2 and all(type(e) in numbers for e in ends)
    if not legal or not ends[0] <= ends[1]:
        raise ValueError(f"{kind.__name__} needs [lo, hi] with lo <= hi, got {ends!r}")
    if type(log) is not bool or (log and (step is not None or ends[0] <= 0)):
        raise ValueError("log is true or false, needs lo > 0, and goes without step")
    if step is not None and (type(step) not in numbers or step <= 0):
        raise ValueError(f"step must be a positive {kind.__name__}, got {step!r}")
    if kind is int:
        return Int(ends[0], ends[1], step or 1, log)
    return Float(float(ends[0]), float(ends[1]), step, log)


def _composition(total: Any, parts: Any) -> Choice:
    if not isinstance(parts, list) or not parts or not all(isinstance(p, str) for p in parts):
        raise ValueError(f"composition needs parts: a list of names, got {parts!r}")
    if type(total) is not int or not len(parts) <= total <= 64:
        raise ValueError(
            f"composition of {total!r} into {len(parts)} parts; it needs an integer of at least "
            "one per part and at most 64"
        )
    cuts = itertools.combinations(range(1, total), len(parts) - 1)
    sums = [[b - a for a, b in itertools.pairwise((0, *c, total))] for c in cuts]
    nodes = tuple(dict(zip(parts, s, strict=True)) for s in sums)
    return Choice(tuple("+".join(map(str, s)) for s in sums), nodes)
