"""What leaves the toolkit: an architecture with its ends, its weights and how they were trained.

of a study        its best candidate, or any trial that was trained to the end
of a spec file    the architecture alone, with random weights
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from archsearch.ends import Ends, language
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.loading import load_spec
from archsearch.model import Model, build
from archsearch.plugins import load_file
from archsearch.recipe import Training
from archsearch.spec import ModelSpec
from archsearch.standalone.weights import load_weights
from archsearch.tasks import TASKS

FACTS = ("seed", "seeds", "archsearch", "commit", "versions", "machine", "counts")
"""What is told of the study that a model is from, beside its name, tasks and recipe."""


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        spec: the architecture.
        ends: what it reads and gives.
        weights: its file; None if untrained.
        told: a line that says all this.
        training: the study's facts, its tasks, recipe and the trial's metrics; None if untrained.
    """

    spec: ModelSpec
    ends: Ends
    weights: Path | None
    told: str
    training: dict[str, Any] | None = None

    def model(self) -> Model:
        """In evaluation mode; untrained weights are those of seed 0. UserError if damaged."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build(self.spec, self.ends).eval()
        if self.weights is not None:
            try:
                model.load_state_dict(load_weights(self.weights))
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                raise UserError(
                    f"{self.weights}: missing or damaged ({_first_line(error)}); put it back from "
                    "a copy, or train the study anew in another folder with --out"
                ) from None
        return model


def origin_of(source: str | Path, trial: int | None = None) -> Origin:
    """What a study's folder, one of its trials, or a spec file has to give. UserError if nothing.

    Args:
        source: a study's folder, or a spec file.
        trial: a number of the study's, the best candidate if None.
    """
    path = Path(source)
    if path.is_dir():
        return _of_study(StudyFolder(path), trial)
    if trial is not None:
        raise UserError(f"{path}: a spec has no trials; leave --trial out, or name a study")
    return Origin(load_spec(path), language(256), None, f"{path.name}, untrained")


def _of_study(folder: StudyFolder, number: int | None) -> Origin:
    record, space = folder.read_record(), folder.read_space()
    number = folder.best_number if number is None else number
    if space is None or number is None:
        raise UserError(f"{folder.path}: no candidate was trained yet; run the study first")
    metrics = folder.read_trial(number)
    if metrics is None or metrics["state"] != "trained":
        raise UserError(_why_not(folder, record, number, metrics))
    for name in space.get("blocks") or ():
        load_file(folder.path / name)  # which may bring the task
    task = TASKS[space["tasks"][0]["type"]].model_validate(space["tasks"][0])
    amount = Training.model_validate(space["train"]).amount
    told = f"{metrics['name']} of the study {record['name']}, trained {amount} on {task.name}"
    training = {
        "study": record["name"],
        **{name: record.get(name) for name in FACTS},
        "tasks": space["tasks"],
        "recipe": space["train"],
        "trial": metrics,
    }
    spec = load_spec(folder.trial(number) / "spec.yaml")
    return Origin(spec, task.ends, folder.weights(number), told, training)


def _why_not(
    folder: StudyFolder, record: dict[str, Any], number: int, metrics: dict[str, Any] | None
) -> str:
    """Why a trial has no weights to give, and which have."""
    left_out = {entry["number"]: entry for entry in record.get("untrained") or []}
    entry = metrics or left_out.get(number)
    became = "is none of its trials"
    if entry is not None:
        said = entry.get("message") or entry.get("cause")
        state = str(entry["state"]).replace("_", " ")
        became = f"is {state}{f' ({_first_line(said)})' if said else ''}, so it has no weights"
    trained = [str(t["number"]) for t in folder.read_trials() if t["state"] == "trained"]
    return f"{folder.path}: trial {number} {became}; trained are {', '.join(trained) or 'none'}"


def _first_line(told: object) -> str:
    return next(iter(str(told).strip().splitlines()), type(told).__name__)
