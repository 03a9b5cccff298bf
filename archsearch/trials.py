"""Optuna's trials of a study, twice: in memory, where samplers draw and read; and in its storage.

A draw is a dozen writes, each of which a database takes for a transaction. The storage has a trial
as soon as its entry is known, all of it in one, so it never holds half a proposal.
"""

from dataclasses import asdict
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from archsearch.errors import UserError
from archsearch.ledger import ATTRIBUTE, Entry
from archsearch.ranking import Point


class Trials:
    """The trials of a stored study, and those that are asked for.

    Args:
        stored: in a storage, for good. Nobody else writes to it.
        sampler: who draws.
    """

    def __init__(self, stored: optuna.Study, sampler: BaseSampler) -> None:
        past = stored.get_trials(deepcopy=False)
        self.stored = stored
        self.study = optuna.create_study(directions=stored.directions, sampler=sampler)
        self.study.add_trials(past)
        self.open = {  # a trial is opened again by its id, for which Optuna has no public name
            t.number: optuna.Trial(self.study, t._trial_id)
            for t in self.all
            if t.state == TrialState.RUNNING
        }
        self.ids = {t.number: t._trial_id for t in past if t.number in self.open}

    @property
    def all(self) -> list[FrozenTrial]:
        """By number; not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def ask(self, decisions: dict[str, Any] | None) -> optuna.Trial:
        """A trial of these decisions; the sampler's, if there are none."""
        if decisions is not None:
            self.study.enqueue_trial(decisions)
        trial = self.study.ask()
        self.open[trial.number] = trial
        return trial

    def keep(self, entry: Entry) -> None:
        """Writes an entry down whose trial stays open."""
        self.open[entry.number].set_user_attr(ATTRIBUTE, asdict(entry))
        if entry.number in self.ids:
            self._write(self.ids[entry.number], entry)
        else:
            self.ids[entry.number] = self._add(entry.number)

    def close(self, entry: Entry, state: TrialState, values: Point | None) -> None:
        """Writes an entry down, and how its trial ended."""
        trial = self.open.pop(entry.number)
        trial.set_user_attr(ATTRIBUTE, asdict(entry))
        self.study.tell(trial, values, state=state)
        if (known := self.ids.pop(entry.number, None)) is None:
            self._add(entry.number)
        else:
            self._write(known, entry)
            self.stored._storage.set_trial_state_values(known, state, values)

    def _write(self, known: int, entry: Entry) -> None:
        try:
            self.stored._storage.set_trial_user_attr(known, ATTRIBUTE, asdict(entry))
        except UpdateFinishedTrialError:
            raise self._beside(f"trial {entry.number} was closed in its storage") from None

    def _add(self, number: int) -> int:
        """Puts a trial into the storage as it is in memory; its id there."""
        storage = self.stored._storage
        added = storage.create_new_trial(self.stored._study_id, self.all[number])
        if (there := storage.get_trial_number_from_id(added)) != number:
            raise self._beside(f"trial {number} became trial {there} of its storage")
        return added

    def _beside(self, what: str) -> UserError:
        return UserError(
            f"study {self.stored.study_name}: {what}, so another process writes to it; stop that "
            "one, or give either its own storage (--storage)"
        )
