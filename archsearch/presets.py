"""Every task at two sizes, measured: a space to begin with, and what to expect of it.

tasks/presets.yaml says the sizes, tasks/expected.json what reference architectures reached at them
(bench/tasks.py). Tasks of one's own have none.
"""

import hashlib
import json
import statistics
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from archsearch.errors import UserError
from archsearch.reading import nearest, read
from archsearch.validation import Frozen, Positive

Kind = Literal["cpu", "gpu"]
KINDS = get_args(Kind)
REFERENCES = ("transformer", "primer", "mamba", "retnet", "s4d")
"""By content and without a convolution, by content with one, selective, fading, the same always."""
FOLDER = Path(__file__).parent / "tasks"
MIXERS = ["mamba", "retention", "s4d", "gated_delta_net", "linear_attention"]
TRIALS, SEEDS = 20, 3


class Preset(Frozen):
    """A task's options and a recipe, as far as they are not the default, and a size."""

    task: dict[str, Any] = {}
    train: dict[str, Any]
    dim: Positive = 64
    layers: Annotated[Positive, Field(description="that have a channel mixer")] = 2
    also: Annotated[list[str], Field(description="references that this task is for")] = []

    @property
    def references(self) -> list[str]:
        """What is measured."""
        return [*REFERENCES, *self.also]

    def key(self, name: str) -> str:
        """Of the settings: what was measured under another one says nothing of these."""
        text = json.dumps(
            [name, self.model_dump(exclude={"also"}), self.references, SEEDS], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def presets() -> dict[str, dict[Kind, Preset]]:
    """All of them, by task and kind."""
    data = read(FOLDER / "presets.yaml").data
    return {
        name: {kind: Preset.model_validate(preset) for kind, preset in kinds.items()}
        for name, kinds in data.items()
    }


def preset(name: str, kind: Kind) -> Preset:
    """One of them; UserError where a task has none."""
    known = presets()
    if name not in known:
        raise UserError(f"task {name!r} has no preset; {nearest(name, [*known])}")
    if kind not in known[name]:
        raise UserError(f"task {name!r} has no preset {kind}; take {', '.join(known[name])}")
    return known[name][kind]


def space(name: str, kind: Kind) -> dict[str, Any]:
    """A space of 20 candidates over the preset of a task, as a file says it."""
    at = preset(name, kind)
    mixers = [*MIXERS, *at.also]  # a design of one mixer has its name
    attention = {"attention": {"conv": {"choice": [0, 4]}}}
    return {
        "archsearch": 1,
        "name": f"{name}-{kind}",
        "define": {"mixer": {"choose": attention | {mixer: {} for mixer in mixers}}},
        "model": {
            "dim": at.dim,
            "layers": at.layers,
            "topology": {"type": "interleave", "major": "$mixer", "minor": "$mixer"},
        },
        "tasks": [{"type": name, **at.task}],
        "train": at.train,
        "baselines": at.references,
        "search": {"trials": TRIALS},
    }


def expected(name: str, kind: Kind) -> dict[str, Any] | None:
    """What was measured of a preset: runs by architecture, machine, versions; None if nothing was.

    What was measured at other settings is nothing.
    """
    found = measured().get(f"{name}/{kind}")
    known = presets().get(name)
    return found if found and known and found["key"] == known[kind].key(name) else None


def measured() -> dict[str, Any]:
    """All of expected.json."""
    path = FOLDER / "expected.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def separation(scores: dict[str, list[float]]) -> float:
    """How far the best and the worst architecture are apart, in standard deviations over seeds.

    The deviation is pooled over the architectures; infinite where all seeds agree.
    """
    means = [statistics.mean(values) for values in scores.values()]
    noise = statistics.mean(statistics.variance(values) for values in scores.values()) ** 0.5
    return (max(means) - min(means)) / noise if noise else float("inf")


def table() -> str:
    """docs/presets.md: every preset with what was measured of it."""
    columns = ["task", "preset", "settings", *REFERENCES, "also", "apart", "minutes", "measured"]
    lines = [
        "# Presets",
        "",
        "Every task at two sizes. `archsearch tasks NAME --preset cpu` prints a space over one, to",
        "be changed at will. `archsearch bench tasks --page docs/presets.md` wrote this page.",
        "",
        "Scores are 0 at the task's floor and 1 at its reference, on val: the mean and standard",
        f"deviation of {SEEDS} seeds. Apart: the best and the worst, in pooled standard deviations",
        f"of the seeds. Minutes: a study of {TRIALS} candidates as dear as these on two cores.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    for name, kinds in sorted(presets().items()):
        lines += [_row(name, kind, at) for kind, at in kinds.items()]
    return "\n".join([*lines, ""])


def _row(name: str, kind: Kind, at: Preset) -> str:
    said = at.task | at.train | at.model_dump(include={"dim", "layers"})
    settings = ", ".join(f"{key} {value}" for key, value in said.items())
    found = expected(name, kind)
    if found is None:
        cells = [*("" for _ in REFERENCES), ", ".join(at.also), "", "", "not measured"]
    else:
        scores = {ref: run["scores"] for ref, run in found["runs"].items()}
        cells = [spread(scores[ref]) for ref in REFERENCES]
        cells += [", ".join(f"{ref} {spread(scores[ref])}" for ref in at.also)]
        cells += [f"{separation(scores):.1f}", f"{minutes(found):.1f}", found["where"]]
    return f"| {name} | {kind} | {settings} | {' | '.join(cells)} |"


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def minutes(found: dict[str, Any]) -> float:
    """Of a study of as many candidates as dear as the references', by two workers."""
    seconds = [value for run in found["runs"].values() for value in run["seconds"]]
    return TRIALS * statistics.mean(seconds) / 2 / 60
