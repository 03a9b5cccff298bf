"""What a decision of a space is, where it stands, when it is made, and what draws make of it."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from archsearch.covering import decisions
from archsearch.domains import Choice, Domain
from archsearch.errors import SpecError, UserError
from archsearch.expressions import is_expression
from archsearch.reading import Key, nearest, show_path
from archsearch.resolving import Draw
from archsearch.space import Space

DRAWS = 200
FEW = 8
"""Values whose shares are listed; of more, the quartiles."""


@dataclass
class _Seen:
    """What random draws made of a path."""

    draws: int = 0
    values: list[Any] = field(default_factory=list)
    place: Key = ()


def table(space: Space) -> Iterator[tuple[str, str, str]]:
    """Every decision: its path, what it decides between, where it stands."""
    for name, (domain, place) in sorted(decisions(space).items()):
        yield name, words(domain), str(space.document.place(place))


def explain(space: Space, path: str) -> Iterator[str]:
    """Lines about a decision (`topology/parallel/merge`) or a value (`topology.merge.scale`).

    UserError when there is no such path.
    """
    known = decisions(space)
    for name in (path, re.sub(r"[.\[]", "/", path.removeprefix("model.")).replace("]", "")):
        if name in known:
            yield from _decision(space, name, known)
            return
    seen = _value(space, path)
    if not seen.values:
        paths = [*known, *map(show_path, space.default().sources)]
        raise UserError(f"{path}: nothing has this path; {_near(path, paths)}")
    yield f"{path}    {space.document.place(seen.place)} ({show_path(seen.place)})"
    text = space.document.data
    for key in seen.place:
        text = text[key]
    if is_expression(text):
        yield f"  calculated   {text}"
    yield from _shares(seen)


def _decision(space: Space, path: str, known: dict[str, tuple[Domain, Key]]) -> Iterator[str]:
    domain, place = known[path]
    yield f"{path}    {space.document.place(place)} ({show_path(place)})"
    if domain.doc:
        yield f"  {domain.doc}"
    yield f"  {words(domain)}; default {domain.default}"
    if isinstance(domain, Choice) and len(set(domain.weights)) > 1:
        total = sum(domain.weights)
        parts = zip(domain.labels, domain.weights, strict=True)
        yield "  prior        " + ", ".join(f"{n} {w / total:.0%}" for n, w in parts)
    if not isinstance(domain, Choice) and domain.believed:
        yield f"  prior        nine draws of ten in {list(domain.believed)}"
    above = [name for name in known if path.startswith(f"{name}/")]
    arms = [f"{name} = {path[len(name) + 1 :].partition('/')[0]}" for name in above]
    yield f"  made when    {' and '.join(arms) or 'always, or wherever its name is used'}"
    below = [name for name in known if name.startswith(f"{path}/")]
    if below:
        yield f"  below it     {', '.join(below)}"
    yield from _shares(
        _drawn(space, lambda draw: (path in draw.decisions, draw.decisions.get(path)))
    )


def words(domain: Domain) -> str:
    """A domain in words."""
    if isinstance(domain, Choice):
        return "one of " + ", ".join("null" if n is None else str(n) for n in domain.labels)
    kind = "an integer" if isinstance(domain.lo, int) else "a number"
    step = f" in steps of {domain.step}" if domain.step and domain.step != 1 else ""
    return f"{kind} from {domain.lo} to {domain.hi}{step}{', log scale' if domain.log else ''}"


def _value(space: Space, path: str) -> _Seen:
    def look(draw: Draw) -> tuple[bool, Any]:
        for target, source in draw.sources.items():
            if show_path(target) == path.removeprefix("model."):
                found.append(source)
                value: Any = draw.data
                for key in target:
                    value = value[key]
                return True, value
        return False, None

    found: list[Key] = []
    seen = _drawn(space, look)
    seen.place = found[0] if found else ()
    return seen


def _drawn(space: Space, look: Any) -> _Seen:
    rng, seen = random.Random(0), _Seen()
    for _ in range(DRAWS):
        try:
            draw = space.resolve(lambda _, domain: domain.draw(rng))
        except SpecError:
            continue
        seen.draws += 1
        there, value = look(draw)
        if there:
            seen.values.append(value)
    return seen


def _shares(seen: _Seen) -> Iterator[str]:
    if not seen.draws:
        return
    yield f"  random draws {len(seen.values) / seen.draws:.0%} of {seen.draws} have it"
    counts = Counter(map(str, seen.values))
    numbers = sorted(v for v in seen.values if type(v) in (int, float))
    if len(counts) <= FEW:
        shares = ", ".join(f"{n} {c / len(seen.values):.0%}" for n, c in counts.most_common())
        yield f"  of them      {shares}"
    elif len(numbers) == len(seen.values):
        marks = [numbers[round(q * (len(numbers) - 1) / 4)] for q in range(5)]
        yield f"  of them      quartiles {', '.join(f'{mark:.4g}' for mark in marks)}"


def _near(path: str, known: list[str]) -> str:
    return nearest(path, dict.fromkeys(known)).partition(" allowed:")[0] or "list them: no PATH"
