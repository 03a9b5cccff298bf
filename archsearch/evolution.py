"""Aging evolution on the decision tree of a space (Real et al. 2019, for conditional decisions).

    parents    the best of a few drawn from the latest candidates past their first rung
    crossover  a decision of one parent, with all that it owns, in place of the other's
    mutation   a decision moved: a number to one nearby, an alternative to another
    growth     what a child must decide and no parent did: as the decision of that name that stands
               nearest to it in a parent, else as one between the same alternatives, in their order
               (a mixer of a stack as that of a branch), else by the prior

Genes are decisions by path. A path names the alternatives that own it, so whatever children are
made of, what they inherit fits where it stands; what nothing owns any more is dropped. Costs are
not asked here: a child over budget or seen before costs no training, and the next one is made.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archsearch.domains import Choice, Domain, Int, Value
from archsearch.resolving import Draw
from archsearch.space import Space

Genes = Mapping[str, Value]
POPULATION = 40
"""The latest candidates, of which parents are: what is older had its time."""
TOURNAMENT = 8
CROSSOVER = 0.5
"""Children of two parents, among all."""
AGAIN = 0.2
"""Chance of another mutation after each."""
REACH = 0.2
"""Deviation of a moved number, in shares of its range, or of the logarithm's."""


@dataclass(frozen=True)
class Individual:
    """A candidate that may be a parent.

    Attributes:
        genes: what was decided.
        rank: less is better: seeds on which it failed, by how much it is over soft budgets (Deb
            2000), how far it came, its front, its crowding and its objectives (ranking.py).
    """

    genes: Genes
    rank: tuple[float, ...]


def child(space: Space, alive: Sequence[Individual], rng: random.Random) -> dict[str, Value]:
    """The decisions of the next candidate; `alive` are the possible parents, at least one.

    Raises:
        SpecError: a value of it cannot be calculated.
    """
    parent = whole(space, _fittest(alive, rng).genes, rng)
    if len(alive) > 1 and rng.random() < CROSSOVER:
        other = whole(space, _fittest(alive, rng).genes, rng)
        genes = crossed(parent.decisions, other.decisions, rng)
        parent = express(space, genes, [parent, other], rng)
    while (mutant := _mutated(space, parent, rng)) is not parent and rng.random() < AGAIN:
        parent = mutant
    return mutant.decisions


def _fittest(alive: Sequence[Individual], rng: random.Random) -> Individual:
    """The winner of a tournament."""
    return min(rng.sample(alive, min(TOURNAMENT, len(alive))), key=lambda one: one.rank)


def crossed(first: Genes, second: Genes, rng: random.Random) -> dict[str, Value]:
    """The first's decisions, but one that both made differently, with what it owns the second's.

    Where no decision differs, the first's.
    """
    both = [
        path for path in first if path in second and _taken(first, path) != _taken(second, path)
    ]
    if not both:
        return dict(first)
    path = rng.choice(both)
    return {p: v for p, v in first.items() if not _owns(path, p)} | _taken(second, path)


def _taken(genes: Genes, path: str) -> dict[str, Value]:
    """A decision with all that it owns."""
    return {p: value for p, value in genes.items() if _owns(path, p)}


def _owns(path: str, other: str) -> bool:
    return other == path or other.startswith(f"{path}/")


def _mutated(space: Space, parent: Draw, rng: random.Random) -> Draw:
    """A draw in which one decision is another; the parent itself if all have one value only."""
    free = [path for path, domain in parent.domains.items() if domain.size > 1]
    if not free:
        return parent
    path = rng.choice(free)
    value = moved(parent.domains[path], parent.decisions[path], rng)
    return express(space, {**parent.decisions, path: value}, [parent], rng)


def whole(space: Space, genes: Genes, rng: random.Random) -> Draw:
    """The draw of which an individual has the genes; what it lacks, by the prior."""
    return express(space, genes, [], rng)


def express(space: Space, genes: Genes, donors: Sequence[Draw], rng: random.Random) -> Draw:
    """The draw that genes make of a space; what they lack is grown from the donors, in turn."""
    grafts = [Graft(donor) for donor in donors]

    def choose(path: str, domain: Domain) -> Value:
        if path in genes:
            return genes[path]
        for graft in grafts:
            if (source := graft.source(path, domain)) is not None:
                return graft.donor.decisions[source]
        return domain.draw(rng)

    return space.resolve(choose)


class Graft:
    """What a child has of a donor in places that the donor does not have."""

    def __init__(self, donor: Draw) -> None:
        self.donor = donor
        self.origins: dict[str, str] = {}  # of what was grown: from where
        self.taken: Counter[tuple[Value, ...]] = Counter()

    def source(self, path: str, domain: Domain) -> str | None:
        """The decision that one that is lacking is made as; None if there is none of the kind."""
        found = self._below(path) or self._namesake(path, domain) or self._kin(domain)
        if found is None or not _legal(domain, self.donor.decisions[found]):
            return None
        self.origins[path] = found
        return found

    def _below(self, path: str) -> str | None:
        """The same below what the place above was grown from."""
        for place, source in self.origins.items():
            if _owns(place, path) and (twin := source + path[len(place) :]) in self.donor.decisions:
                return twin
        return None

    def _namesake(self, path: str, domain: Domain) -> str | None:
        """The decision of that name, with a value that is legal here, that stands most alike."""
        names = [p for p in self.donor.decisions if _name(p) == _name(path)]
        legal = [p for p in names if _legal(domain, self.donor.decisions[p])]
        return max(legal, key=lambda p: _kinship(p, path), default=None)

    def _kin(self, domain: Domain) -> str | None:
        """A decision between the same alternatives, whatever its name: the next one each time."""
        if not isinstance(domain, Choice):
            return None
        domains = self.donor.domains.items()
        kin = [p for p, d in domains if isinstance(d, Choice) and d.labels == domain.labels]
        self.taken[domain.labels] += 1
        return kin[(self.taken[domain.labels] - 1) % len(kin)] if kin else None


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _kinship(path: str, other: str) -> int:
    """Names that two paths share, from the end."""
    pairs = zip(reversed(path.split("/")), reversed(other.split("/")), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), 1000)


def _legal(domain: Domain, value: Value) -> bool:
    if isinstance(domain, Choice):
        return any(type(label) is type(value) and label == value for label in domain.labels)
    return value in domain and isinstance(value, int) is isinstance(domain, Int)


def moved(domain: Domain, value: Value, rng: random.Random) -> Value:
    """Another value of a domain of several, one nearby rather than one far away."""
    if isinstance(domain, Choice):
        here = domain.index(value)
        others = [i for i in range(domain.size) if i != here]
        odds = [domain.weights[i] / _distance(domain, here, i) ** 2 for i in others]
        return domain.labels[rng.choices(others, odds)[0]]
    assert isinstance(value, int | float)
    while (other := _stepped(domain, value, rng)) == value:
        pass
    return other


def _stepped(domain: Domain, value: float, rng: random.Random) -> float:
    """A number of a range near another, mirrored at its ends."""
    assert not isinstance(domain, Choice)
    scale = math.log if domain.log else float
    lo, hi = scale(domain.lo), scale(domain.hi)
    at = scale(value) + rng.gauss(0, REACH * (hi - lo))
    at = lo + abs((at - lo) % (2 * (hi - lo)))
    at = 2 * hi - at if at > hi else at
    at = math.exp(at) if domain.log else at
    if domain.step:
        steps = math.floor(round((domain.hi - domain.lo) / domain.step, 9))
        at = domain.lo + domain.step * min(steps, round((at - domain.lo) / domain.step))
    return round(at) if isinstance(domain, Int) else min(domain.hi, max(domain.lo, at))


def _distance(domain: Choice, a: int, b: int) -> float:
    """Between two alternatives: places between numbers, units moved between sums, else 1."""
    labels, nodes = domain.labels, domain.nodes
    if all(type(label) in (int, float) for label in labels):
        order = sorted(labels)  # type: ignore[type-var]
        return abs(order.index(labels[a]) - order.index(labels[b]))
    if all("+" in str(label) for label in labels):
        one, other = (list(n.values()) if isinstance(n, dict) else n for n in (nodes[a], nodes[b]))
        smallest = min(min(n.values() if isinstance(n, dict) else n) for n in nodes)
        return sum(abs(x - y) for x, y in zip(one, other, strict=True)) / (2 * smallest)
    return 1
