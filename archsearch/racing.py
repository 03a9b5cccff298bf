"""Racing: leaders are trained on further seeds until an interval parts them from the best.

    L[a, s] = mu[a] + nu[s] + e      the loss of architecture a on seed s, by least squares

    mu       what a is worth: its loss with the data of the first seed, freed of noise by its runs
    nu       what a seed's data and its weights' draw do to all alike; 0 of the first seed. Of the
             baselines alone, if there are two: leaders lead by luck on the first seed as well, and
             what they have in common would be taken for the seed's
    sigma    of e, residuals over degrees of freedom: the noise floor, one for all architectures
    beats    mean difference over the n seeds of both + t(1 - 0.025 / N) sigma sqrt(2 / n) < 0

The noise floor is measured first, on the baselines. Then whoever is among the best few is trained
again, the one with the fewest runs first, for as long as nobody beats it and it has not had all
seeds. An interval is looked at after each of N runs, so each look has a share of the 5 %, by
Bonferroni. The blocked race of Birattari et al. (2002), with one sigma where a pair's own would be
of two runs.
"""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from archsearch.ledger import Entry, Ledger
from archsearch.ranking import ordered

Losses = Sequence[float | None]
"""Of one architecture, seed by seed in their order; None of a run that failed."""


@dataclass(frozen=True)
class Noise:
    """The additive model of all that was trained on several seeds.

    Attributes:
        means: mu by architecture.
        sigma: the standard deviation of one run; None without degrees of freedom.
        freedom: its degrees of freedom.
    """

    means: dict[int, float]
    sigma: float | None
    freedom: int

    def interval(self, one: Losses, other: Losses, looks: int) -> tuple[float, float] | None:
        """Of the difference of two, one - other; None where there is none yet."""
        pairs = [a - b for a, b in zip(one, other, strict=False) if a is not None and b is not None]
        if self.sigma is None or not pairs:
            return None
        mean = math.fsum(pairs) / len(pairs)
        t = float(stdtrit(self.freedom, 1 - 0.025 / looks))
        wide = t * self.sigma * math.sqrt(2 / len(pairs))
        return mean - wide, mean + wide


def noise(losses: Mapping[int, Losses], unselected: Collection[int] = ()) -> Noise:
    """Fits those with several runs; of one run alone mu is its loss.

    Args:
        losses: of each architecture.
        unselected: which are not there for their losses.
    """
    rows = {key: row for key, row in losses.items() if len(_known(row)) > 1}
    known = {key: row for key, row in rows.items() if key in unselected}
    effects = _fit(rows)[0]
    if len(known) > 1:
        effects |= _fit(known)[0]  # a seed that none of those has is known by the others
    means = {
        key: statistics.fmean(loss - effects.get(seed, 0.0) for seed, loss in cells.items())
        for key, row in losses.items()
        if (cells := _known(row))
    }
    _, rest, freedom = _fit(rows)
    return Noise(means, math.sqrt(rest / freedom) if freedom else None, freedom)


def _fit(losses: Mapping[int, Losses]) -> tuple[dict[int, float], float, int]:
    """Nu by seed, the sum of squares that is left, and its degrees of freedom."""
    cells = [(key, seed, loss) for key, row in losses.items() for seed, loss in _known(row).items()]
    keys, seeds = ({*column} for column in ([c[0] for c in cells], [c[1] for c in cells]))
    column = {key: i for i, key in enumerate([*keys, *(("seed", s) for s in seeds - {0})])}
    design = np.zeros((len(cells), len(column)))
    for i, (key, seed, _) in enumerate(cells):
        design[i, column[key]] = 1
        if seed:
            design[i, column["seed", seed]] = 1
    found = np.array([loss for _, _, loss in cells])
    effects = np.linalg.lstsq(design, found)[0]
    nu = {seed: float(effects[column["seed", seed]]) for seed in seeds - {0}}
    rest = float(np.square(found - design @ effects).sum())
    return nu, rest, len(cells) - len(column)


def _known(row: Losses) -> dict[int, float]:
    return {seed: loss for seed, loss in enumerate(row) if loss is not None}


def expected(trials: int, top: int, seeds: int) -> float:
    """Trainings that racing adds to as many candidates, where no interval parts anybody.

    Of i candidates the last is among the best k with probability k / i, whatever they are. One
    alone has nobody to race with.
    """
    if trials < 2:
        return 0.0
    leaders = max(2, top)
    return (seeds - 1) * sum(min(1.0, leaders / i) for i in range(1, trials + 1))


class Race:
    """Who is trained again, among all that a ledger knows as trained.

    Args:
        ledger: of the study.
        seeds: how often one is trained at most.
        top: how many are leaders, beside the baselines.
        objectives: what is to be small.
    """

    def __init__(self, ledger: Ledger, seeds: int, top: int, objectives: Sequence[str]) -> None:
        self.ledger, self.seeds, self.objectives = ledger, seeds, objectives
        self.top = max(2, top)
        self.running: set[int] = set()
        self.noise = Noise({}, None, 0)
        self.refresh()

    def next(self) -> Entry | None:
        """The next to be trained again, on the seed after its last; None if there is none now."""
        if self.seeds == 1:
            return None
        wanted = [*self.ledger.having("trained", kind="baseline"), *self.undecided()]
        free = [e for e in wanted if e.number not in self.running and len(e.losses) < self.seeds]
        if not free:
            return None
        entry = min(free, key=lambda e: (e.kind != "baseline", len(e.losses)))
        self.running.add(entry.number)
        return entry

    def hear(self, entry: Entry, loss: float | None) -> None:
        """What it came to; None if it failed."""
        self.running.discard(entry.number)
        entry.losses.append(loss)
        self.refresh()

    @property
    def begun(self) -> int:
        """Further trainings of candidates so far."""
        candidates = self.ledger.having("trained", kind="candidate")
        return sum(len(e.losses) - 1 + (e.number in self.running) for e in candidates)

    def refresh(self) -> None:
        """Each loss that candidates are compared by becomes what all their runs say of it."""
        entries = {e.number: e for e in self.ledger.having("trained") if len(e.losses) > 1}
        if entries:
            baselines = {n for n, e in entries.items() if e.kind == "baseline"}
            self.noise = noise({n: e.losses for n, e in entries.items()}, baselines)
            for number, mean in self.noise.means.items():
                entries[number].loss = mean

    def undecided(self) -> list[Entry]:
        """The leaders that nobody beats and that one such could beat, best first."""
        trained = self.ledger.having("trained", kind="candidate")
        leaders = ordered(trained, self.objectives)[: self.top]
        left = [e for e in leaders if not any(self.beats(other, e) for other in leaders)]
        return [e for e in left if any(self._rival(e, other) for other in left if other is not e)]

    def beats(self, one: Entry, other: Entry) -> bool:
        """Whether it is told to be better: by what counts before, or by the interval."""
        if one.behind != other.behind:
            return one.behind < other.behind
        interval = self.noise.interval(one.losses, other.losses, self.seeds)
        return self._no_dearer(one, other) and interval is not None and interval[1] < 0

    def _rival(self, one: Entry, other: Entry) -> bool:
        """Whether the loss alone decides between two."""
        return self._no_dearer(one, other) or self._no_dearer(other, one)

    def _no_dearer(self, one: Entry, other: Entry) -> bool:
        costs = [name for name in self.objectives if name != "loss"]
        return all(one.cost[name] <= other.cost[name] for name in costs)
