"""Samplers by name: how each is asked for a candidate, and told of one that was not trained.

evolution and exhaustive say themselves what comes next, and Optuna only writes it down; the others
are Optuna's. NSGA-II and GP learn only of decisions that all candidates make, so they are asked for
every decision of the space, and what a candidate does not make is left aside. Of a rejected
candidate they hear only if it is finished, so it has the worst loss so far, with the limit that it
broke as a constraint; TPE takes it as pruned.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from archsearch.document import Sampler
from archsearch.domains import Choice, Domain, Value
from archsearch.errors import SpecError, UserError
from archsearch.space import Space

STARTUP = 10
"""Candidates drawn from the priors, uniform where a space has none, before a sampler that learns
goes on alone, and parents that evolution wants; NSGA-II's population too, as its own 50 are more
than most studies train."""


@dataclass(frozen=True)
class Manner:
    """How one of Optuna's samplers is asked and told."""

    make: Callable[[int], BaseSampler]
    whole: bool = False
    """Whether it is asked for all decisions of the space, and told of rejections as finished."""


def _tpe(seed: int) -> BaseSampler:
    with warnings.catch_warnings():  # `group` models each branch of a conditional space jointly
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=seed, multivariate=True, group=True)


MANNERS: dict[Sampler, Manner] = {
    "evolution": Manner(RandomSampler),
    "exhaustive": Manner(RandomSampler),
    "random": Manner(RandomSampler),
    "tpe": Manner(_tpe),
    "nsga2": Manner(lambda seed: NSGAIISampler(population_size=STARTUP, seed=seed), whole=True),
    "gp": Manner(lambda seed: GPSampler(seed=seed), whole=True),
}


def require(name: Sampler) -> None:
    """UserError where a sampler needs what is not installed."""
    if name == "gp" and find_spec("greenlet") is None:
        raise UserError(
            "search.sampler: gp needs greenlet; pip install 'archsearch[gp]', "
            "or take another: evolution, tpe"
        )


def every(space: Space) -> Iterator[dict[str, Value]]:
    """All draws of a space without endless ranges, as a clock: the last decision moves first.

    Draws of which a value cannot be calculated are left out.
    """
    at: list[int] = []  # which of its values each decision takes, in the order of being asked
    while True:
        asked: dict[str, list[Value]] = {}

        def choose(path: str, domain: Domain, asked: dict[str, list[Value]] = asked) -> Value:
            if path not in asked:
                asked[path] = _values(domain)
                at.extend([0] * (len(asked) - len(at)))
            return asked[path][at[[*asked].index(path)]]

        with contextlib.suppress(SpecError):
            yield dict(space.resolve(choose).decisions)
        for options in reversed(asked.values()):
            at[-1] += 1
            if at[-1] < len(options):
                break
            at.pop()
        if not at:
            return


def identity(decisions: Mapping[str, Value]) -> str:
    """Equal for equal decisions, of which True and 1 are two."""
    return repr(sorted(decisions.items()))


def _values(domain: Domain) -> list[Value]:
    """All values of a domain, its default first."""
    if isinstance(domain, Choice):
        return domain.alternatives()
    step = domain.step or 1
    numbers = [domain.lo + i * step for i in range(int(domain.size))]
    return [domain.default, *(n for n in numbers if n != domain.default)]
