"""What all tasks with classes share: one for a sequence, or one a position.   B batch, T time."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from archsearch.tasks.task import (
    Evaluation,
    Purpose,
    Split,
    Task,
    accuracy,
    by_example,
    mean,
    predict,
)


class Classification(Task, frozen=True):
    """The class of a sequence, told after all of it was read: models may look both ways."""

    causal: ClassVar[bool] = False

    @property
    def primary(self) -> str:
        """The metric that is scored."""
        return "accuracy"

    @property
    @abstractmethod
    def classes(self) -> int:
        """How many."""

    @abstractmethod
    def examples(self, purpose: Purpose) -> tuple[Tensor, Tensor]:
        """Sequences of a split and classes: (N, T, ...) and (N,) or (N, T); ids in any integer."""

    def rules(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """What rules look at, by name: inputs -> small numbers, one for each class to be told.

        Each then tells the class that train has most among those with the same number. The first
        rule is the floor proper.
        """
        return {"most frequent class": lambda inputs: torch.zeros(len(inputs))}

    def measures(self, guesses: Tensor, classes: Tensor) -> dict[str, float]:
        """The metrics beside the loss."""
        return {"accuracy": accuracy(guesses, classes, self.classes)}

    def prepare(self) -> None:
        for purpose in ("train", "val", "test"):
            self.examples(purpose)

    def sample(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, classes = self.examples("train")
        chosen = torch.randint(len(inputs), (batch,), generator=generator)
        return _wide(inputs[chosen]), classes[chosen]

    def evaluate(self, model: nn.Module, split: Split = "val") -> Evaluation:
        """Metrics: `measures`, and "loss" in nats per sequence."""
        inputs, classes = self.examples(split)
        nats, guesses = predict(model, _wide(inputs), classes)
        metrics = self.measures(guesses, classes) | {"loss": mean(nats)}
        examples = {"accuracy": by_example(guesses == classes), "loss": by_example(nats)}
        return Evaluation(metrics["loss"], metrics, examples)

    def floors(self) -> dict[str, dict[str, float]]:
        """Of each rule the metrics of its class, and the loss of the shares it saw in train."""
        (seen, told), (asked, classes) = self.examples("train"), self.examples("val")
        floors = {}
        for rule, look in self.rules().items():
            of_train, of_val = look(seen).long(), look(asked).long()
            groups = 1 + int(max(of_train.max(), of_val.max()))
            seen_together = (of_train * self.classes + told).flatten()
            counts = torch.bincount(seen_together, minlength=groups * self.classes)
            counts = counts.view(groups, self.classes) + 1.0  # none is impossible
            nats = -(counts / counts.sum(1, keepdim=True)).log()
            metrics = self.measures(counts.argmax(1)[of_val], classes)
            floors[rule] = metrics | {"loss": mean(nats[of_val, classes])}
        return floors

    def score(self, evaluation: Evaluation) -> float:
        """(metric - floor) / (1 - floor) of the primary one; 1 is perfect."""
        floor = self.floor[self.primary]
        return (evaluation.metrics[self.primary] - floor) / (1 - floor)

    def fingerprint(self) -> str:
        """Covers the data of all splits, not where they are: a copied file keeps its own."""
        digest = hashlib.sha256(self.model_dump_json(exclude={"data"}).encode())
        for purpose in ("train", "val", "test"):
            for values in self.examples(purpose):
                digest.update(values.contiguous().numpy().tobytes())
        return digest.hexdigest()


def _wide(inputs: Tensor) -> Tensor:
    """Ids in int64, as models read them; values as they are."""
    return inputs if inputs.is_floating_point() else inputs.long()
