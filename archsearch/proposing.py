"""The proposer: what to train next, and what became of what was proposed.

Optuna draws through ask and tell. Each draw becomes a spec, is looked up by its hash, costed, and
either let through to training or settled at once; the sampler hears of every one of them. An entry
is in the storage before its job starts, so a study that was killed knows what it had let through.
"""

import contextlib
import random
from collections.abc import Iterator

import optuna
from optuna.trial import TrialState

from archsearch import covering, evolution, halving, ranking, samplers
from archsearch.domains import Value
from archsearch.errors import ConstraintBroken, SpecError
from archsearch.ledger import STARTED, Entry, Kind, Ledger
from archsearch.space import Space
from archsearch.spec import ModelSpec
from archsearch.trials import Trials

PATIENCE = 200
"""Proposals in a row that may bring nothing new to train before a search ends."""


class Proposer:
    """Asks Optuna for candidates of a space, `trials` of them to be trained, baselines first."""

    def __init__(
        self, space: Space, stored: optuna.Study, *, seed: int, trials: int, device: str = "cpu"
    ) -> None:
        self.space, self.wanted, self.device = space, trials, device
        self.objectives = space.file.objectives
        self.exhausted = False
        past = stored.get_trials(deepcopy=False)
        self.ledger = Ledger(past)
        # A resumed study must not repeat the draws it has made.
        self.manner = samplers.MANNERS[space.file.search.sampler]
        self.trials = Trials(stored, self.manner.make(seed + len(past)))
        self.whole = covering.decisions(space) if self.manner.whole else {}
        self.rng = random.Random(seed + len(past))
        for number in self.trials.open.keys() & self.ledger.entries.keys():
            self._tell_again(self.ledger.entries[number])

    def next(self) -> Entry | None:
        """The next architecture to train, or to train further; None when none is ready."""
        known = {e.name for e in self.ledger.entries.values() if e.kind == "baseline"}
        for name in self.space.file.baselines:
            if name not in known and (entry := self._baseline(name)) is not None:
                return entry
        if (entry := self._promoted()) is not None:
            return entry
        if self.exhausted or len(self._candidates()) >= self.wanted:
            return self._promoted(last=True)
        for decisions in self._proposals():
            if (entry := self._candidate(decisions)) is not None:
                return entry
        self.exhausted = True
        return self._promoted(last=True)

    def _promoted(self, *, last: bool = False) -> Entry | None:
        """A candidate that waited behind a rung and goes on; `last` when no other will come."""
        if (eta := self.space.file.search.eta) is None:
            return None
        entries, least = self._candidates(), self.space.file.final.top
        entry = (
            halving.last(entries, eta, self.objectives, least)
            if last
            else halving.promotable(entries, eta, self.objectives)
        )
        if entry is not None:
            entry.state = "training"
            self.keep(entry)
        return entry

    def _proposals(self) -> Iterator[dict[str, Value] | None]:
        """What to propose one after the other; None leaves it to Optuna's sampler."""
        if self.space.file.search.sampler == "exhaustive":
            trials = self.trials.all
            seen = [e.number for e in self.ledger.entries.values() if e.kind == "candidate"]
            past = {samplers.identity(trials[n].params) for n in seen}
            yield from (d for d in samplers.every(self.space) if samplers.identity(d) not in past)
            return
        for _ in range(PATIENCE):
            decisions = None
            with contextlib.suppress(SpecError):  # then the sampler draws, and hears of it
                decisions = self._proposal()
            yield decisions

    def _proposal(self) -> dict[str, Value] | None:
        """By the priors or by evolution, where Optuna's sampler is not to decide."""
        evolves = self.space.file.search.sampler == "evolution"
        if evolves and len(parents := self._parents()) >= samplers.STARTUP:
            return evolution.child(self.space, parents, self.rng)
        starting = len(self._candidates()) < samplers.STARTUP
        if evolves or (starting and self.space.has_prior):
            return self.space.resolve(lambda _, domain: domain.draw(self.rng)).decisions
        return None

    def _candidates(self) -> list[Entry]:
        """What was let through to training."""
        return self.ledger.having(*STARTED, kind="candidate")

    def keep(self, entry: Entry) -> None:
        """Writes an entry down whose trial stays open."""
        self.ledger.add(entry)
        self.trials.keep(entry)

    def settle(self, entry: Entry, state: TrialState, values: ranking.Point | None = None) -> None:
        """Closes a trial: its entry and its state, in the ledger and in the storage.

        Args:
            entry: what became of it.
            state: Optuna's.
            values: its objectives, if it is complete.
        """
        if entry.kind == "baseline" and self.manner.whole and state == TrialState.COMPLETE:
            state, values = TrialState.PRUNED, None  # it decides nothing: finished, it hides all
        self.ledger.add(entry)
        self.trials.close(entry, state, values)

    def _tell_again(self, entry: Entry) -> None:
        """Closes a trial whose entry says how it ended: killed before Optuna was told."""
        states = {"trained": TrialState.COMPLETE, "failed": TrialState.FAIL}
        if entry.state not in ("training", "paused"):
            values = ranking.point(entry, self.objectives) if entry.state == "trained" else None
            self.settle(entry, states.get(entry.state, TrialState.PRUNED), values)

    def _baseline(self, name: str) -> Entry | None:
        """A reference architecture at the space's own width and depth, under the same budgets."""
        return self._screen(self.trials.ask(None), "baseline", name, self.space.baseline(name))

    def _candidate(self, decisions: dict[str, Value] | None) -> Entry | None:
        trial = self.trials.ask(decisions)
        entry = Entry(trial.number, "candidate", f"trial {trial.number}", "invalid")
        for path, (domain, _) in self.whole.items():
            domain.suggest(trial, path)
        try:
            spec = self.space.decide(lambda path, domain: domain.suggest(trial, path))
        except SpecError as error:
            entry.message = str(error)
            entry.cause = error.constraint if isinstance(error, ConstraintBroken) else None
            self._limit(trial, {entry.cause: 1.0} if entry.cause else {})
            self._reject(entry)
            return None
        return self._screen(trial, "candidate", entry.name, spec)

    def _limit(self, trial: optuna.Trial, over: dict[str, float]) -> None:
        """Tells by how much a candidate is over limits; GP wants the same ones of every trial."""
        file = self.space.file
        names = [name for name, budget in file.budgets.items() if budget.max is not None]
        names += [constraint.name for constraint in file.constraints]
        for name in names if self.manner.whole else over:
            trial.set_constraint(name, over.get(name, 0.0))

    def _reject(self, entry: Entry) -> None:
        """Settles what is not to be trained, in the form that the sampler hears."""
        trained = [ranking.point(e, self.objectives) for e in self.ledger.having("trained")]
        finished = self.manner.whole and trained
        state = TrialState.COMPLETE if finished else TrialState.PRUNED
        worst = tuple(map(max, zip(*trained, strict=True)))
        self.settle(entry, state, worst if finished else None)

    def _parents(self) -> list[evolution.Individual]:
        """The latest candidates that are known well enough to breed from.

        Those past their first rung: the first is a coarse sieve, and what is bred from its verdict
        is good at short trainings (LOG.md). Who came further is better: a rung is left by its best.
        """
        there = [e for e in self._candidates() if e.state != "failed"]
        known = [e for e in there if e.state == "trained" or len(e.rungs) > 1]
        alive = sorted(known, key=lambda e: e.number)[-evolution.POPULATION :]
        keys = ranking.ranks(
            [(*e.behind, e.state != "trained", -len(e.rungs)) for e in alive],
            [ranking.point(e, self.objectives) for e in alive],
        )
        trials = self.trials.all
        pairs = zip(alive, keys, strict=True)
        return [evolution.Individual(trials[e.number].params, key) for e, key in pairs]

    def _screen(self, trial: optuna.Trial, kind: Kind, name: str, spec: ModelSpec) -> Entry | None:
        """Lets a proposal through to training, or settles it as a duplicate or over budget."""
        data = spec.model_dump(mode="json")
        entry = Entry(trial.number, kind, name, "training", spec.hash(), spec.summary(), data)
        twin = self.ledger.first_with(spec.hash())
        if twin is not None and kind == "candidate":
            entry.state, entry.duplicate_of, entry.loss = "duplicate", twin.number, twin.loss
            scored = twin.state == "trained"
            first = self.trials.all[twin.number]
            for limit, ratio in first.constraints.items():
                trial.set_constraint(limit, ratio)
            state = TrialState.COMPLETE if scored else TrialState.PRUNED
            self.settle(entry, state, ranking.point(twin, self.objectives) if scored else None)
            return None
        found = self.space.file.budgets.screen(spec, self.space.file.ends, self.device)
        entry.cost, excess = found.costs, found.excess
        self._limit(trial, found.soft | ({excess.budget: excess.ratio} if excess else {}))
        if excess is not None:
            entry.state, entry.cause, entry.message = "over_budget", excess.budget, str(excess)
            self._reject(entry)
            return None
        entry.excess = sum(max(0.0, ratio) for ratio in found.soft.values())
        self.keep(entry)
        return entry
