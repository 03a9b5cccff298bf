"""Writing a text after another one has been read.   B batch, T time, P length of the input."""

import functools
import hashlib
import math
from collections import Counter
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from archsearch.ends import IGNORE, Ends, language
from archsearch.tasks import benchmarks, pairs
from archsearch.tasks.corpus import SPLITS, STDLIB
from archsearch.tasks.pairs import Pair
from archsearch.tasks.task import (
    HUB,
    Evaluation,
    Split,
    Task,
    by_example,
    evaluating,
    mean,
    path,
    predict,
)

PAD, BETWEEN, END = 256, 257, 258  # beside the 256 bytes
LN2 = math.log(2)
ROWS = 32  # texts that are written at a time


class Generation(Task, frozen=True):
    """A text is read byte by byte, and another one written: prefix language modelling.

    A sequence is the input, filled up at its front to `length` bytes, a sign between, the answer
    and a sign for its end, which counts as a byte. The loss is of the answer alone. In evaluation
    answers are written greedily, each byte from the state that the ones before it left, and held
    against the references: BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004), exact matches.

    Translations: `{data: "hub:wmt/wmt14:de-en", input: translation.de, answer: translation.en}`. Of
    SCROLLS (Shaham et al. 2022) and CodeXGLUE the columns are known: `hub:scrolls:gov_report`,
    `hub:code_x_glue_ct_code_to_text:python`, with a network.

    The default needs no download: from the first line of a function of the standard library, what
    its docstring says in its first line. What a name says can be told so, and little else.
    """

    type: Literal["generation"] = "generation"
    data: Annotated[str, path(STDLIB, hub=True)] = Field(
        default=STDLIB,
        min_length=1,
        description='"stdlib"; the path of a .jsonl, .json, .csv or .parquet file, or of a folder '
        'of such files named for their splits; or "hub:NAME", "hub:NAME:CONFIG" of a data set on '
        "the Hugging Face Hub. A relative path starts at the folder of the YAML file.",
    )
    input: str | None = Field(
        default=None,
        description="The column that is read, such as translation.de; null is that of a known "
        "benchmark, and else `input`.",
    )
    answer: str | None = Field(
        default=None, description="The column that is written; null is a benchmark's, or `output`."
    )
    most: int = Field(default=100_000, ge=1, description="Pairs of train; val and test: a tenth.")
    length: int = Field(default=64, ge=1, description="Bytes of an input that are read.")
    answer_length: int = Field(default=64, ge=1, description="Bytes of an answer, with its end.")
    batch: int = Field(default=16, ge=1, description="Training pairs per step.")
    sequences: int = Field(default=96, ge=1, description="Pairs of an evaluation.")

    @property
    def ends(self) -> Ends:
        return language(END + 1)

    @classmethod
    def shortens(cls) -> bool:
        """No: its length is that of an input, and answers stay as long."""
        return False

    def prepare(self) -> None:
        self._pairs()

    def sample(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = self._rows("train")
        chosen = torch.randint(len(rows), (batch,), generator=generator)
        return self._cut(rows[chosen])

    def evaluate(self, model: nn.Module, split: Split = "val") -> Evaluation:
        """Metrics: bits per byte of the answers; exact match, ROUGE-L and BLEU of what is said."""
        rows = self._rows(split)
        inputs, targets = self._cut(rows)
        nats, _ = predict(model, inputs, targets)
        scored = targets != IGNORE
        written = write(model, inputs[:, : self.length + 1], self.answer_length)
        references = [told for _, told in self._pairs()[split][: self.sequences]]
        by_text = compare(written, [told[: self.answer_length] for told in references])
        metrics = {"bits_per_byte": mean(nats[scored]) / LN2} | by_text.pop("metrics")
        examples = {"bits_per_byte": by_example(nats, scored) / LN2} | by_text
        return Evaluation(mean(nats[scored]), metrics, examples)

    def floors(self) -> dict[str, dict[str, float]]:
        """Bits per byte of the frequencies of bytes in answers; what two fixed answers reach."""
        return {rule: dict(metrics) for rule, metrics in _floors(self).items()}

    def score(self, evaluation: Evaluation) -> float:
        """1 - loss / floor; 1 is perfect."""
        return 1 - evaluation.loss / self.floor["loss"]

    def fingerprint(self) -> str:
        """Covers all pairs, not where they are."""
        digest = hashlib.sha256(self.model_dump_json(exclude={"data"}).encode())
        for split in SPLITS:
            for texts in self._pairs()[split]:
                digest.update(b"".join(b"%d:%b" % (len(text), text) for text in texts))
        return digest.hexdigest()

    def _pairs(self) -> dict[str, list[Pair]]:
        known = None
        if self.data.startswith(HUB):
            known = benchmarks.known(self.data.removeprefix(HUB))
        read, told = (known.inputs[0], known.answer) if known else ("input", "output")
        return pairs.load(self.data, (self.input or read, self.answer or told), self.most)

    def _rows(self, split: Any) -> Tensor:
        """(N, P + 1 + answer_length) ids; of val and test the first that are evaluated."""
        found = self._pairs()[split]
        chosen = found if split == "train" else found[: self.sequences]
        return _encoded(self, split)[: len(chosen)]

    def _cut(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs, and as targets the answers with their ends."""
        rows = rows.long()
        targets = rows[:, 1:].clone()
        targets[:, : self.length] = IGNORE
        targets[targets == PAD] = IGNORE
        return rows[:, :-1].contiguous(), targets


@functools.lru_cache(maxsize=6)
def _encoded(task: Generation, split: str) -> Tensor:
    found = task._pairs()[split]
    rows = torch.full((len(found), task.length + 1 + task.answer_length), PAD, dtype=torch.int16)
    rows[:, task.length] = BETWEEN
    for row, (read, told) in zip(rows, found, strict=True):
        read, answer = read[: task.length], [*told, END][: task.answer_length]
        row[task.length - len(read) : task.length] = torch.tensor([*read])
        row[task.length + 1 : task.length + 1 + len(answer)] = torch.tensor(answer)
    return rows


def write(model: nn.Module, prompts: Tensor, most: int) -> list[bytes]:
    """What a model goes on with, the likeliest byte each time, up to its end or `most` bytes."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    texts: list[bytes] = []
    with evaluating(model):
        for tokens in prompts.to(device).split(ROWS):
            y, state = model(tokens)
            written = [y[:, -1].argmax(-1)]
            ended = written[0] >= PAD
            while len(written) < most and not ended.all():
                y, state = model(written[-1][:, None], state)
                written.append(y[:, -1].argmax(-1))
                ended |= written[-1] >= PAD
            for row in torch.stack(written, 1).tolist():
                end = next((i for i, token in enumerate(row) if token >= PAD), len(row))
                texts.append(bytes(row[:end]))
    return texts


def compare(written: list[bytes], references: list[bytes]) -> dict[str, Any]:
    """BLEU, ROUGE-L (F) and exact matches under "metrics"; the last two text by text, too."""
    from torchmetrics.functional.text import bleu_score, rouge_score  # slow to import

    told, wanted = ([x.decode("utf-8", "replace") for x in of] for of in (written, references))
    found = {
        "exact_match": torch.tensor([float(a == b) for a, b in zip(told, wanted, strict=True)]),
        "rouge_l": torch.stack(
            [
                rouge_score(a, b, rouge_keys="rougeL")["rougeL_fmeasure"]
                for a, b in zip(told, wanted, strict=True)
            ]
        ),
    }
    bleu = bleu_score(told, [[text] for text in wanted]).item()
    means = {name: mean(values) for name, values in found.items()}
    return {"metrics": means | {"bleu": bleu}, **found}


@functools.lru_cache(maxsize=8)
def _floors(task: Generation) -> dict[str, dict[str, float]]:
    _, answers = task._cut(task._rows("train"))
    _, asked = task._cut(task._rows("val"))
    counts = torch.bincount(answers[answers != IGNORE], minlength=END + 1) + 1.0
    nats = -(counts / counts.sum()).log()
    loss = mean(nats[asked[asked != IGNORE]])
    found = task._pairs()
    known = Counter(told for _, told in found["train"]).most_common(1)[0][0]
    shown = found["val"][: task.sequences]
    references = [told[: task.answer_length] for _, told in shown]
    fixed = {
        "the most frequent answer": [known[: task.answer_length] for _ in shown],
        "the input": [read[: task.answer_length] for read, _ in shown],
    }
    rules = {rule: compare(texts, references)["metrics"] for rule, texts in fixed.items()}
    return {"frequencies of bytes": {"bits_per_byte": loss / LN2, "loss": loss}} | rules
