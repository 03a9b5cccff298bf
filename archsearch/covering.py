"""Trying every alternative of a space once, before anything is trained."""

import contextlib
import itertools
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from archsearch import validation
from archsearch.domains import Domain, Value
from archsearch.errors import Problem, SpecError
from archsearch.reading import Key
from archsearch.refusals import refusals
from archsearch.resolving import Draw, Unresolvable
from archsearch.space import Space
from archsearch.spec import ModelSpec

MOST = 2000
"""Draws that are made at most to see every alternative once."""
EACH, ATTEMPTS = 20, 200
"""Random draws around an alternative before it is said to be in no legal model; around all."""
Alternative = tuple[str, Key, str]
"""A decision's path, every index in it a star; its place in the file; a value."""


def covering_draws(space: Space) -> Iterator[Draw | Unresolvable]:
    """Draws that together take every alternative of every decision at least once.

    The elements of a list count as one where they come from the same place in the file. A draw
    whose values cannot be calculated comes as its error.
    """
    seen: set[Alternative] = set()
    queue: list[dict[str, Value]] = [{}]
    for fixed in itertools.islice(_popped(queue), MOST):
        try:
            draw = space.sections.resolve(lambda n, d, f=fixed: f.get(n, d.default))
        except Unresolvable as error:
            yield error
            continue
        yield draw
        for name, domain in draw.domains.items():
            for value in domain.alternatives():
                key = _alternative(draw, name, value)
                if key not in seen:
                    seen.add(key)
                    if repr(value) != repr(draw.decisions[name]):
                        queue.append({**draw.decisions, name: value})


def decisions(space: Space) -> dict[str, tuple[Domain, Key]]:
    """Every decision by its path: its domain and its place in the file."""
    found: dict[str, tuple[Domain, Key]] = {}
    for draw in covering_draws(space):
        if isinstance(draw, Draw):
            found |= {name: (d, draw.places[name]) for name, d in draw.domains.items()}
    alike: dict[tuple[str, Key], list[str]] = defaultdict(list)
    for name, (_, place) in found.items():
        alike[_starred(name), place].append(name)
    for name, (domain, place) in list(found.items()):  # what is below one is below all alike
        for above in [n for n in found if name.startswith(f"{n}/")]:
            for twin in alike[_starred(above), found[above][1]]:
                found.setdefault(twin + name[len(above) :], (domain, place))
    return found


def _popped(queue: list[dict[str, Value]]) -> Iterator[dict[str, Value]]:
    for done in itertools.count():
        if done == len(queue):
            return
        yield queue[done]


def _alternative(draw: Draw, name: str, value: Value) -> Alternative:
    return _starred(name), draw.places[name], repr(value)


def _starred(name: str) -> str:
    return re.sub(r"(?<=/)[0-9]+(?=/|$)", "*", name)


def check(space: Space) -> list[Problem]:
    """Tries every alternative and gives the warnings; SpecError when one can never be legal."""
    attempt = _Attempt(space)
    number = 0
    for number, draw in enumerate(covering_draws(space), 1):  # noqa: B007 - how many there were
        if isinstance(draw, Unresolvable):
            attempt.stuck.setdefault(draw.source, space.at(draw.source, draw.message))
        else:
            attempt.take(draw)
    if problems := [*attempt.illegal.values(), *attempt.never()]:
        raise SpecError(problems)
    warnings = attempt.warnings()
    if number == MOST:
        warnings.append(Problem(None, space.name, f"only {MOST} of its alternatives were tried"))
    return warnings


class _Attempt:
    """What became of the draws."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.illegal: dict[tuple, Problem] = {}  # each place is told once
        self.stuck: dict[Key, Problem] = {}  # by the place that gives no value in some draw
        self.valued: set[Key] = set()  # what holds the places that gave one
        self.refused: dict[Key, Problem] = {}  # by the place of a part that cannot be built
        self.built: set[Key] = set()
        self.met: dict[Alternative, Draw] = {}
        self.legal: set[Alternative] = set()

    def take(self, draw: Draw) -> None:
        """Notes what of a draw is legal."""
        taken = [_alternative(draw, name, value) for name, value in draw.decisions.items()]
        for key in taken:
            self.met.setdefault(key, draw)
        self.valued |= {source[:-1] for source in draw.sources.values()}
        findings = validation.find(ModelSpec, draw.data)
        for finding in findings:
            problem = self.space.problem(draw, finding)
            self.illegal.setdefault((problem.place, problem.message), problem)
        if findings:
            return
        findings = refusals(ModelSpec.model_validate(draw.data))
        for finding in findings:
            source = draw.sources[finding.path]
            self.refused.setdefault(source, self.space.problem(draw, finding))
        wrong = {finding.path for finding in findings}
        self.built |= {draw.sources[p] for p in part_paths(draw.data) if p not in wrong}
        if not findings and self.is_legal(draw):
            self.legal.update(taken)

    def is_legal(self, draw: Draw) -> bool:
        try:
            self.space.legal(draw)
        except SpecError:
            return False
        return True

    def never(self) -> list[Problem]:
        """The places that no draw gives a value, or no width can build."""
        stuck = [found for place, found in self.stuck.items() if place[:-1] not in self.valued]
        return stuck + [p for source, p in self.refused.items() if source not in self.built]

    def warnings(self) -> list[Problem]:
        """What fails in some draws only, and alternatives that no legal model was found with."""
        out = {(source, ""): problem for source, problem in self.stuck.items()}
        rng, left = random.Random(0), ATTEMPTS
        for key, draw in self.met.items():
            tries = 0
            while key not in self.legal and tries < EACH and left:
                self.attempt(key, draw, rng)
                tries, left = tries + 1, left - 1
            if key not in self.legal and tries == EACH:
                name, source, value = key
                text = f"no legal model was found with {name} = {value}; drop it or what forbids it"
                out[source, value] = self.space.at(source, text)
        return list(out.values())

    def attempt(self, key: Alternative, draw: Draw, rng: random.Random) -> None:
        """Decides at random all but an alternative and what leads to it; notes what is legal."""
        name = next(n for n, v in draw.decisions.items() if _alternative(draw, n, v) == key)

        def choose(asked: str, domain: Domain) -> Value:
            above = name == asked or name.startswith(f"{asked}/")
            return draw.decisions[asked] if above else domain.draw(rng)

        with contextlib.suppress(SpecError):
            other = self.space.resolve(choose)
            self.space.legal(other)
            self.legal |= {_alternative(other, n, v) for n, v in other.decisions.items()}


def part_paths(data: Any, path: Key = ()) -> Iterator[Key]:
    """The paths of all mappings in resolved data: where a part may stand."""
    if isinstance(data, dict):
        yield path
    if isinstance(data, dict | list):
        for key, child in data.items() if isinstance(data, dict) else enumerate(data):
            yield from part_paths(child, (*path, key))
