"""What a task is: data, frozen evaluation sets, and the floors that a score is read against.

Randomness is passed in; data is drawn on the CPU, so that it is the same whatever device a model is
on.     B batch, T time.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from annotated_types import MultipleOf
from pydantic import AfterValidator, BaseModel, ValidationError, ValidationInfo
from torch import Tensor, nn

from archsearch.ends import IGNORE, Ends
from archsearch.errors import UserError

Split = Literal["val", "test"]
Purpose = Literal["train", "val", "test", "init"]
HUB = "hub:"
"""Before the name of a data set on the Hugging Face Hub."""


class TaskError(UserError):
    """A task cannot be run as asked: who, what came, what is allowed, what to do."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model does on one split of a task.

    Attributes:
        loss: what training makes small, on this split: cross-entropy in nats per answer, averaged
            over the evaluated lengths; of a forecast the squared error.
        metrics: the numbers of the task, by name; `Task.floors` uses the same names.
        examples: (N,) of every metric that a sequence has one of, for tests of pairs; the mean of
            its answers, so that their mean is the metric where all have as many.
    """

    loss: float
    metrics: dict[str, float]
    examples: dict[str, Tensor] = field(default_factory=dict, compare=False)


TASKS: dict[str, type["Task"]] = {}
"""Every task by its name: those here, and those of the files and packages that were loaded."""


class Task(BaseModel, ABC, frozen=True, extra="forbid"):
    """A frozen config that makes data and measures models.

    The life of a task: it comes from YAML or `archsearch.task`; `prepare` finds what is missing
    before anything is trained; `sample` feeds training; `evaluate` measures a model; `score` puts
    that on a scale where 0 is a predictor that learned nothing; `fingerprint` is recorded with it.
    """

    causal: ClassVar[bool] = True
    """Whether the targets stand in later inputs, so that a model must not see them."""
    unit: ClassVar[str] = "nats"
    """Of the loss."""

    type: str
    batch: int

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Enters a class with a default `type` under that name; others are what several share."""
        super().__pydantic_init_subclass__(**kwargs)
        field = cls.model_fields["type"]
        if field.is_required():
            return
        taken = TASKS.setdefault(field.default, cls)
        if taken is not cls:
            raise ValueError(
                f"{cls.__module__}.{cls.__qualname__}: the name {field.default!r} is taken by "
                f"{taken.__module__}.{taken.__qualname__}; choose another"
            )

    @property
    def name(self) -> str:
        """The task's key in reports."""
        return self.type

    @property
    @abstractmethod
    def ends(self) -> Ends:
        """What a model of this task reads and gives."""

    @abstractmethod
    def prepare(self) -> None:
        """Load and check what the task needs, or raise TaskError. Cheap when repeated."""

    @abstractmethod
    def sample(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training (inputs, targets) of as many sequences, as the ends read and give them.

        Where every position is answered, the target at t is what a model should predict after
        reading inputs[: t + 1]; a target may be IGNORE. A class is one number for a sequence.
        """

    @classmethod
    def shortens(cls) -> bool:
        """Whether a smaller `length` makes shorter sequences for a model of the same ends."""
        return "length" in cls.model_fields

    def shortened(self, share: float) -> "Task":
        """This task at a share of its `length`, to the nearest that it allows, for a curriculum.

        Raises:
            TaskError: there are no such sequences.
        """
        kind = type(self)
        if not self.shortens():
            able = ", ".join(name for name in sorted(TASKS) if TASKS[name].shortens())
            raise TaskError(
                f"{self.name}: train.curriculum asks for shorter sequences, and it has none; these "
                f"tasks have: {able}. Leave out the curriculum or the task"
            )
        whole = self.model_dump()["length"]
        rules = [r for r in kind.model_fields["length"].metadata if isinstance(r, MultipleOf)]
        step = int(rules[0].multiple_of) if rules else 1  # type: ignore[call-overload]
        length = round(share * whole / step) * step
        try:
            return kind.model_validate(self.model_dump() | {"length": length})
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise TaskError(
                f"{self.name}: train.curriculum asks for {share:g} of its length {whole}, which is "
                f"{length}: {reason}. Raise the share or the length"
            ) from None

    @abstractmethod
    def evaluate(self, model: nn.Module, split: Split = "val") -> Evaluation:
        """Measure `y, state = model(inputs)` on a set that no seed changes."""

    @abstractmethod
    def floors(self) -> dict[str, dict[str, float]]:
        """What rules reach on "val" that are no network: metrics, by the name of the rule.

        The first is the floor proper: it has learned nothing, and its score is 0.
        """

    @property
    def floor(self) -> dict[str, float]:
        """The metrics of the floor proper."""
        return next(iter(self.floors().values()))

    @abstractmethod
    def score(self, evaluation: Evaluation) -> float:
        """The evaluation on one scale for all tasks: 0 at the floor, 1 at the task's reference."""

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 of the config and the data: scores compare only under one fingerprint."""


def stream(purpose: Purpose, key: int | str) -> torch.Generator:
    """The random stream of a purpose and a key; two purposes never share a seed.

    torch's CPU generator reads 32 bits of a seed. Here the upper two name the purpose and the rest
    hash the key, so no training or model seed can draw an evaluation set. "train" is 00: a plain
    `manual_seed(n)` with n < 2 ** 30 is a training seed too.
    """
    digest = hashlib.sha256(str(key).encode()).digest()
    seed = get_args(Purpose).index(purpose) << 30 | int.from_bytes(digest[:4], "big") >> 2
    return torch.Generator().manual_seed(seed)


def path(*names: str, hub: bool = False) -> AfterValidator:
    """How a field is read that is a path, one of these names, or perhaps a name on the Hub.

    A task keeps it absolute; a relative one starts at the YAML file's folder.
    """

    def located(value: str, info: ValidationInfo) -> str:
        if value in names or (hub and value.startswith(HUB)):
            return value
        folder = (info.context or {}).get("folder", Path.cwd())
        return os.path.abspath(Path(folder) / Path(value).expanduser())

    return AfterValidator(located)


def widest(tasks: Iterable[Task]) -> Ends:
    """The ends with the most parameters among the tasks'."""
    return max((task.ends for task in tasks), key=lambda ends: ends.parameters(1000))


def predict(
    model: nn.Module, inputs: Tensor, targets: Tensor, tokens_per_batch: int = 2048
) -> tuple[Tensor, Tensor]:
    """(nats, guesses) of logits, both like the targets; nats are 0 where a target is IGNORE."""
    nats, guesses = [], []
    for logits, y in outputs(model, inputs, targets, tokens_per_batch):
        loss = F.cross_entropy(
            logits.flatten(0, -2), y.flatten(), ignore_index=IGNORE, reduction="none"
        )
        nats.append(loss.view_as(y).cpu())
        guesses.append(logits.argmax(-1).cpu())
    return torch.cat(nats), torch.cat(guesses)


def outputs(
    model: nn.Module, inputs: Tensor, targets: Tensor, tokens_per_batch: int = 2048
) -> Iterator[tuple[Tensor, Tensor]]:
    """(y, targets) of a model, batch by batch, on the device of its parameters; y in float32.

    In eval mode, without gradients. Small batches stay in a CPU's cache (2048 tokens at width 64
    took 2/3 of the time of 8192).
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    rows = max(1, tokens_per_batch // inputs.shape[1])
    with evaluating(model):
        for x, y in zip(inputs.split(rows), targets.split(rows), strict=True):
            yield model(x.to(device))[0].float(), y.to(device)  # bfloat16 is too coarse for a loss


def accuracy(guesses: Tensor, answers: Tensor, classes: int) -> float:
    """The fraction of the answers that are right, those that are IGNORE left out (micro)."""
    from torchmetrics.functional.classification import multiclass_accuracy  # slow to import

    scored = answers != IGNORE
    right = multiclass_accuracy(
        guesses[scored], answers[scored], num_classes=classes, average="micro"
    )
    return right.item()


def macro_f1(guesses: Tensor, answers: Tensor, classes: int) -> float:
    """The mean over the classes of F1, those left out that are neither said nor right."""
    from torchmetrics.functional.classification import multiclass_f1_score  # slow to import

    scored = answers != IGNORE
    f1 = multiclass_f1_score(guesses[scored], answers[scored], num_classes=classes, average="macro")
    return f1.item()


def matthews(guesses: Tensor, answers: Tensor, classes: int) -> float:
    """Matthews' correlation of guesses and answers: 0 is chance, whatever the shares."""
    from torchmetrics.functional.classification import multiclass_matthews_corrcoef

    return multiclass_matthews_corrcoef(guesses, answers, num_classes=classes).item()


def mean(values: Tensor) -> float:
    """Mean, summed in float64. NaN stays NaN: a diverged model must show."""
    from torchmetrics import MeanMetric  # slow to import

    metric = MeanMetric(nan_strategy="disable").set_dtype(torch.float64)
    metric.update(values)
    return metric.compute().item()


def by_example(values: Tensor, scored: Tensor | None = None) -> Tensor:
    """(N,) means of values (N, ...), of those scored alone; NaN where there are none."""
    rows = values.float().reshape(len(values), -1)
    if scored is None:
        return rows.mean(1)
    kept = scored.reshape(len(values), -1)
    return rows.where(kept, 0.0).sum(1) / kept.sum(1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In eval mode and without gradients; afterwards as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:  # one by one: a part may be held in eval mode on purpose
            module.training = mode
