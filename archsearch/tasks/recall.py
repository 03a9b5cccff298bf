"""In-context recall: which value followed this key before?   B batch, T time, V vocabulary."""

import functools
import hashlib
import math
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from archsearch.tasks.task import IGNORE, Evaluation, Split, Task, mean, predict, stream

SEQUENCES = 512  # evaluated at the training length: a standard error below .005 at V16, L64
LONG_SEQUENCES = 256  # over the multiple: a longer length costs half the tokens of the first


class InContextRecall(Task, frozen=True):
    """MAD's in-context recall (Poli et al. 2024, arXiv 2403.17844; code athms/mad-lab 0f49a45).

    A sequence is T / 2 pairs of a key in [0, V/2) and a value in [V/2, V). Each sequence draws its
    own dictionary, uniformly (two keys may share a value), so nothing carries over from one to the
    next. Keys are uniform; the last is drawn from those already shown. Scored are the values of all
    keys shown before.

    `inputs` is the whole sequence and the target at t is its token t + 1, so an answer is read at
    the position of its key. The last position has no next token: its target is IGNORE. (MAD drops
    it, so its models read T - 1 tokens; what is scored is the same.)

    Accuracy is the fraction of scored tokens that are right (micro; MAD's code: macro, by class).
    """

    type: Literal["in_context_recall"] = "in_context_recall"
    vocab: int = Field(
        default=16, ge=4, multiple_of=2, description="Token ids: half keys, half values."
    )
    length: int = Field(
        default=64, ge=4, multiple_of=2, description="Tokens of a training sequence."
    )
    extrapolate: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(4,), description="Evaluate also at these multiples of the training length."
    )
    batch: int = Field(default=32, ge=1, description="Training sequences per step.")
    loss: Literal["next_token", "masked"] = Field(
        default="next_token",
        description="Trained tokens: all, as in MAD, or only those that are scored.",
    )

    @field_validator("extrapolate")
    @classmethod
    def _distinct(cls, multiples: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(multiples)) < len(multiples):
            raise ValueError(f"a multiple may come once; got {list(multiples)}")
        return multiples

    @property
    def vocab_size(self) -> int:
        return self.vocab

    def prepare(self) -> None:
        """Nothing to load."""

    def sample(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens, answers = self._draw(batch, self.length, generator)
        if self.loss == "masked":
            return tokens, answers
        following = tokens.roll(-1, dims=1)
        following[:, -1] = IGNORE
        return tokens, following

    def evaluate(self, model: nn.Module, split: Split = "val") -> Evaluation:
        """Metrics: "accuracy" and "loss" at the training length, "accuracy@4x" ... at multiples."""
        from torchmetrics.functional.classification import multiclass_accuracy  # slow to import

        metrics, losses = {}, []
        for multiple, suffix in self._lengths().items():
            inputs, answers = self._frozen(split, multiple)
            nats, guesses = predict(model, inputs, answers)
            scored = answers != IGNORE
            accuracy = multiclass_accuracy(
                guesses[scored], answers[scored], num_classes=self.vocab, average="micro"
            )
            losses.append(mean(nats[scored]))
            metrics |= {f"accuracy{suffix}": accuracy.item(), f"loss{suffix}": losses[-1]}
        return Evaluation(sum(losses) / len(losses), metrics)

    def floors(self) -> dict[str, float]:
        """Accuracy of the most frequent value so far; loss of a uniform guess among the values."""
        return dict(_floors(self))

    def score(self, evaluation: Evaluation) -> float:
        """(accuracy - floor) / (1 - floor), averaged over the lengths; 1 is perfect recall."""
        floors, names = self.floors(), [f"accuracy{suffix}" for suffix in self._lengths().values()]
        gains = [(evaluation.metrics[name] - floors[name]) / (1 - floors[name]) for name in names]
        return sum(gains) / len(gains)

    def fingerprint(self) -> str:
        """Covers the evaluation sets themselves, so that a changed generator shows."""
        digest = hashlib.sha256(self.model_dump_json().encode())
        for split in ("val", "test"):
            for multiple in self._lengths():
                digest.update(self._frozen(split, multiple)[0].numpy().tobytes())
        return digest.hexdigest()

    def _lengths(self) -> dict[int, str]:
        """Evaluated multiples of the training length, and how they end a metric's name."""
        return {1: ""} | {multiple: f"@{multiple}x" for multiple in self.extrapolate}

    def _frozen(self, split: Split, multiple: int) -> tuple[Tensor, Tensor]:
        """(inputs, answers) of an evaluation set: a function of the split, the length and vocab."""
        sequences = SEQUENCES if multiple == 1 else max(1, LONG_SEQUENCES // multiple)
        length = multiple * self.length
        return self._draw(sequences, length, stream(split, f"{self.type}/{length}"))

    def _draw(self, batch: int, length: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """(tokens, answers), both (batch, length): answers are IGNORE where nothing is scored."""
        half, pairs = self.vocab // 2, length // 2
        dictionary = torch.randint(half, self.vocab, (batch, half), generator=rng)
        keys = torch.randint(half, (batch, pairs), generator=rng)
        shown = torch.zeros(batch, half).scatter_(1, keys[:, :-1], 1.0)
        keys[:, -1:] = torch.multinomial(shown, 1, generator=rng)
        values = dictionary.gather(1, keys)

        order = torch.arange(pairs).expand(batch, -1)
        first = torch.full((batch, half), pairs).scatter_reduce_(1, keys, order, "amin")
        answers = torch.full((batch, length), IGNORE)
        answers[:, ::2] = torch.where(order > first.gather(1, keys), values, IGNORE)
        return torch.stack((keys, values), dim=-1).flatten(1), answers


@functools.lru_cache(maxsize=16)
def _floors(task: InContextRecall) -> dict[str, float]:
    floors, half = {}, task.vocab // 2
    for multiple, suffix in task._lengths().items():
        tokens, answers = task._frozen("val", multiple)
        shown = tokens[:, 1:-1:2, None] == torch.arange(half, task.vocab)  # (B, T/2 - 1, V/2)
        guesses = half + shown.cumsum(1, dtype=torch.int32).argmax(-1)  # for the next pair's value
        answers = answers[:, 2::2]
        floors[f"accuracy{suffix}"] = mean((guesses == answers)[answers != IGNORE].float())
        floors[f"loss{suffix}"] = math.log(half)
    return floors
