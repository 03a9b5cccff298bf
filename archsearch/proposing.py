"""The proposer: what to train next, and what became of what was proposed.

Optuna draws through ask and tell. Each draw becomes a spec, is looked up by its hash, costed, and
either let through to training or settled at once; the sampler hears of every one of them. An entry
is in the storage before its job starts, so a study that was killed knows what it had let through.
"""

import contextlib
import random
import warnings
from dataclasses import asdict

import optuna
from optuna.trial import TrialState

from archsearch import evolution
from archsearch.errors import ConstraintBroken, SpecError
from archsearch.ledger import ATTRIBUTE, Entry, Kind, Ledger
from archsearch.space import Space
from archsearch.spec import ModelSpec

PATIENCE = 200
"""Proposals in a row that may bring nothing new to train before a search ends."""
STARTUP = 10
"""Candidates drawn from the priors, uniform where a space has none, before a sampler that learns
goes on alone."""


class Proposer:
    """Asks Optuna for candidates of a space, `trials` of them to be trained, baselines first."""

    def __init__(
        self, space: Space, study: optuna.Study, *, seed: int, trials: int, device: str = "cpu"
    ) -> None:
        self.space, self.study, self.trials, self.device = space, study, trials, device
        self.exhausted = False
        past = study.get_trials(deepcopy=False)
        self.ledger = Ledger(past)
        # A resumed study must not repeat the draws it has made.
        study.sampler = make_sampler(space.file.search.sampler, seed + len(past))
        self.rng = random.Random(seed + len(past))
        # A trial is opened again by its id, for which Optuna has no public name.
        running = [t for t in past if t.state == TrialState.RUNNING]
        self.asked = {t.number: optuna.Trial(study, t._trial_id) for t in running}
        for number in self.asked.keys() - self.ledger.entries.keys():  # killed while being drawn
            entry = Entry(number, "candidate", f"trial {number}", "interrupted")
            self.settle(entry, TrialState.FAIL)

    def next(self) -> Entry | None:
        """The next architecture to train; None when there is none left."""
        known = {e.name for e in self.ledger.entries.values() if e.kind == "baseline"}
        for name in self.space.file.baselines:
            if name not in known and (entry := self._baseline(name)) is not None:
                return entry
        if len(self._candidates()) >= self.trials:
            return None
        for attempt in range(PATIENCE):
            if (entry := self._candidate(stuck=attempt >= PATIENCE // 2)) is not None:
                return entry
        self.exhausted = True
        return None

    def _candidates(self) -> list[Entry]:
        """What was let through to training."""
        return self.ledger.having("training", "trained", "failed", kind="candidate")

    def settle(self, entry: Entry, state: TrialState, value: float | None = None) -> None:
        """Closes a trial: its entry and its state, in the ledger and in the storage."""
        trial = self.asked.pop(entry.number)
        self.ledger.add(entry)
        trial.set_user_attr(ATTRIBUTE, asdict(entry))
        self.study.tell(trial, value, state=state)

    def _ask(self) -> optuna.Trial:
        trial = self.study.ask()
        self.asked[trial.number] = trial
        return trial

    def _baseline(self, name: str) -> Entry | None:
        """A reference architecture at the space's own width and depth, under the same budgets."""
        return self._screen(self._ask(), "baseline", name, self.space.baseline(name))

    def _candidate(self, stuck: bool) -> Entry | None:
        self._enqueue(stuck)
        trial = self._ask()
        name = f"trial {trial.number}"
        try:
            spec = self.space.decide(lambda path, domain: domain.suggest(trial, path))
        except ConstraintBroken as error:
            entry = Entry(trial.number, "candidate", name, "invalid", message=str(error))
            entry.cause = error.constraint
            trial.set_constraint(error.constraint, 1.0)
            self.settle(entry, TrialState.PRUNED)
            return None
        except SpecError as error:
            entry = Entry(trial.number, "candidate", name, "invalid", message=str(error))
            self.settle(entry, TrialState.PRUNED)
            return None
        return self._screen(trial, "candidate", name, spec)

    def _enqueue(self, stuck: bool) -> None:
        """Says what the next trial is where Optuna's sampler does not: priors, evolution.

        A population whose children bring nothing new says little of the rest of the space.
        """
        starting = len(self._candidates()) < STARTUP
        evolves = self.space.file.search.sampler == "evolution"
        with contextlib.suppress(SpecError):  # then the sampler draws, and hears of it
            if evolves and not (starting or stuck) and (trained := self._trained()):
                self.study.enqueue_trial(evolution.child(self.space, trained, self.rng))
            elif evolves or (starting and self.space.has_prior):
                draw = self.space.resolve(lambda _, domain: domain.draw(self.rng))
                self.study.enqueue_trial(draw.decisions)

    def _trained(self) -> list[evolution.Individual]:
        """The candidates with a loss, in the order in which they were proposed."""
        trials = self.study.get_trials(deepcopy=False)
        entries = self.ledger.having("trained", kind="candidate")
        return [
            evolution.Individual(trials[e.number].params, (_excess(trials[e.number]), e.loss))
            for e in sorted(entries, key=lambda e: e.number)
            if e.loss is not None
        ]

    def _screen(self, trial: optuna.Trial, kind: Kind, name: str, spec: ModelSpec) -> Entry | None:
        """Lets a proposal through to training, or settles it as a duplicate or over budget."""
        data = spec.model_dump(mode="json")
        entry = Entry(trial.number, kind, name, "training", spec.hash(), spec.summary(), data)
        twin = self.ledger.first_with(spec.hash())
        if twin is not None and kind == "candidate":
            entry.state, entry.duplicate_of, entry.loss = "duplicate", twin.number, twin.loss
            scored = twin.loss is not None
            self.settle(entry, TrialState.COMPLETE if scored else TrialState.PRUNED, twin.loss)
            return None
        found = self.space.file.budgets.screen(spec, self.space.file.ends, self.device)
        entry.cost = found.costs
        for budget, ratio in found.soft.items():
            trial.set_constraint(budget, ratio)
        if (excess := found.excess) is not None:
            entry.state, entry.cause = "over_budget", excess.budget
            entry.message = str(excess)
            trial.set_constraint(excess.budget, excess.ratio)
            self.settle(entry, TrialState.PRUNED)
            return None
        self.ledger.add(entry)
        trial.set_user_attr(ATTRIBUTE, asdict(entry))
        return entry


def _excess(trial: optuna.trial.FrozenTrial) -> float:
    """By how much a candidate is over soft budgets, all together."""
    return sum(max(0.0, value) for value in trial.constraints.values())


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler by the name that a space gives it; what evolves tells it what to draw."""
    if name in ("random", "evolution"):
        return optuna.samplers.RandomSampler(seed)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    with warnings.catch_warnings():  # `group` models each branch of a conditional space jointly
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
