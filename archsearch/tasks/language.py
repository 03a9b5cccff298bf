"""Language modelling, of bytes or of byte pairs.   B batch, T time, W windows."""

import functools
import hashlib
import json
import math
import platform
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from archsearch.ends import Ends, language
from archsearch.quantities import Bytes
from archsearch.tasks import compressors, streams
from archsearch.tasks.bpe import encode
from archsearch.tasks.corpus import SPLITS, STDLIB, Corpus, load
from archsearch.tasks.ngram import ladder
from archsearch.tasks.task import (
    Evaluation,
    Purpose,
    Split,
    Task,
    TaskError,
    mean,
    path,
    predict,
)

LN2 = math.log(2)  # nats of one bit
NGRAMS = tuple(f"n-gram, order {order}" for order in range(4))
NGRAM_BYTES = 400_000  # what a short trial reads: 200 steps of 8 windows of 256
MOST_WINDOWS = 1000  # that rules are told on
MIN_GAIN = 0.1  # bits per byte; less is seed noise (short trials differ by .01 to .08)


class Language(Task, frozen=True):
    """The next token of text: by default the next byte, of the standard library's own source.

    Bits per byte is the cross-entropy over ln 2 and over the bytes that were told, perplexity its
    exponential for each token. The library differs between Python versions, so scores compare only
    under one fingerprint. Its files, as those of a folder, are split by a hash of their names; a
    single file is split by blocks (corpus.py), tables by their own splits or by a hash of their
    rows (streams.py).

    The evaluation set of a split is `windows` windows, spread evenly from its first token to its
    last. With a `stride` the last so many of each are scored, and what is before them is context
    alone: a sliding window, which reads all of a split where `windows` is null.

    Corpora of the field, with a network: `hub:Salesforce/wikitext:wikitext-103-raw-v1`
    (WikiText-103, Merity et al. 2017), `hub:emozilla/pg19` (PG-19, Rae et al. 2020),
    `hub:allenai/c4:en` (C4, Raffel et al. 2020); with `text: content`
    `hub:bigcode/the-stack-smol` (The Stack, Kocetkov et al. 2022), which asks for an account; with
    `text: article` `hub:ccdv/arxiv-summarization` (papers of arXiv, Cohan et al. 2018).
    """

    type: Literal["language"] = "language"
    data: Annotated[str, path(STDLIB, hub=True)] = Field(
        default=STDLIB,
        min_length=1,
        description='"stdlib"; the path of a text file or of a folder of them, in any encoding; of '
        "a .jsonl, .json, .csv or .parquet file or of a folder of such files alone; or "
        '"hub:NAME", "hub:NAME:CONFIG" of a dataset on the Hugging Face Hub. '
        'A relative path starts at the folder of the YAML file ("./stdlib" is a path).',
    )
    text: str = Field(default="text", description="The column of a table that holds the text.")
    limit: Bytes = Field(
        default=100_000_000,
        description="Of a table, how much text train has at most; val and test have a tenth each.",
    )
    bpe: int | None = Field(
        default=None,
        ge=257,
        le=1 << 17,
        description="Byte pairs: size of a vocabulary that is trained on train; null is bytes.",
    )
    length: int = Field(
        default=256, ge=4, description="Tokens of a window, in training and evaluation."
    )
    batch: int = Field(default=8, ge=1, description="Training windows per step.")
    windows: int | None = Field(
        default=96, ge=1, description="Windows of an evaluation; null is all of the split."
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        description="Tokens scored at the end of each window, the others being context; null is "
        "all of them.",
    )

    @model_validator(mode="after")
    def _strides_within(self) -> "Language":
        if self.step > self.length:
            raise ValueError(f"stride {self.stride}: must not be over length, {self.length}")
        return self

    @property
    def step(self) -> int:
        """Tokens that are scored of a window."""
        return self.length if self.stride is None else self.stride

    @property
    def ends(self) -> Ends:
        return language(self.bpe or 256)

    def prepare(self) -> None:
        self._corpus(refresh=True)
        rules = self._rules()
        worst, best = rules[NGRAMS[0]], rules[NGRAMS[3]]
        if worst - best < MIN_GAIN:
            raise TaskError(
                f"language: data {self.data!r} has nothing to learn: three bytes of context take "
                f"an n-gram from {worst:.3f} to {best:.3f} bits per byte, and a score needs a gain "
                f"of {MIN_GAIN}. Give text, not packed or constant data"
            )

    def sample(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ids = self._ids("train")
        starts = torch.randint(len(ids) - self.length, (batch,), generator=generator)
        return _shifted(_windows(ids, starts, self.length))

    def evaluate(self, model: nn.Module, split: Split = "val") -> Evaluation:
        """Metrics: perplexity, and bits per byte, of all and of the last quarter (most context)."""
        inputs, targets = _shifted(self._frozen(split))
        nats, _ = predict(model, inputs, targets)
        sizes = self._sizes(targets)
        metrics, examples = {}, {}
        for name, first in (("", self.length - self.step), ("_last_quarter", 3 * self.length // 4)):
            told, told_bytes = nats[:, first:].double(), sizes[:, first:]
            metrics[f"bits_per_byte{name}"] = told.sum().item() / LN2 / told_bytes.sum().item()
            examples[f"bits_per_byte{name}"] = told.sum(1) / LN2 / told_bytes.sum(1)
        loss = mean(nats[:, self.length - self.step :])
        metrics["perplexity"] = math.exp(min(loss, 700.0))
        return Evaluation(loss, metrics, examples)

    def floors(self) -> dict[str, dict[str, float]]:
        """Bits per byte of Witten-Bell n-grams, orders 0 to 3, and of gzip, xz and zstd.

        Counted in, and compressed after, 0.4 MB spread over train, as much as a short trial reads,
        on windows of "val" that lie as those do that a model is scored on, and hold as many bytes.
        """
        rules = self._rules()
        return {rule: {"bits_per_byte": bits, "loss": bits * LN2} for rule, bits in rules.items()}

    def score(self, evaluation: Evaluation) -> float:
        """(order 0 - bits per byte) / (order 0 - order 3), of n-grams; good models exceed 1."""
        rules = self._rules()
        gain = rules[NGRAMS[0]] - evaluation.metrics["bits_per_byte"]
        return gain / (rules[NGRAMS[0]] - rules[NGRAMS[3]])

    def fingerprint(self) -> str:
        """Of the bytes, not of where they are: a copied file keeps its fingerprint."""
        identity = self.model_dump(exclude={"data"}) | {"sha256": self._corpus().sha256}
        if self.data == STDLIB:
            identity["python"] = platform.python_version()
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def _frozen(self, split: Split) -> Tensor:
        """(W, length + 1) ids of an evaluation."""
        ids = self._ids(split)
        if self.windows is not None:
            return _spread(ids, self.windows, self.length)
        return _windows(ids, torch.arange(0, len(ids) - self.length, self.step), self.length)

    def _ids(self, split: Purpose) -> Tensor:
        """A split in tokens."""
        corpus = self._corpus()
        found = corpus if self.bpe is None else encode(corpus, self.bpe)
        sizes = {name: len(getattr(found, name)) for name in SPLITS}
        windows = self.windows or 1
        needed = (windows - 1) * self.step + self.length + 1
        if min(sizes.values()) < needed:
            unit = "bytes" if self.bpe is None else "tokens"
            raise TaskError(
                f"language: data {self.data!r} is too short: its splits have {sizes} {unit}, and "
                f"{windows} windows of length {self.length} need {needed} in each. Give a "
                f"file of {10 * needed} {unit} or more, a folder of more files, or lower windows "
                "or length"
            )
        return getattr(found, split)

    def _sizes(self, ids: Tensor) -> Tensor:
        """How many bytes each token stands for."""
        return (
            torch.ones_like(ids)
            if self.bpe is None
            else encode(self._corpus(), self.bpe).sizes[ids]
        )

    def _rules(self) -> dict[str, float]:
        """Bits per byte by rule, of as many bytes a window as its tokens stand for."""
        corpus, ids = self._corpus(), self._ids("val")
        length = round(self.length * len(corpus.val) / len(ids))
        return _rules(corpus, length, min(len(self._frozen("val")), MOST_WINDOWS))

    def _corpus(self, *, refresh: bool = False) -> Corpus:
        if self.data != STDLIB and streams.is_table(self.data):
            return streams.load(self.data, self.text, self.limit, refresh=refresh)
        return load(self.data, refresh=refresh)


@functools.lru_cache(maxsize=8)
def _rules(corpus: Corpus, length: int, windows: int) -> dict[str, float]:
    """Bits per byte by rule, of windows of so many bytes."""
    length = min(length, len(corpus.val) - 1)
    rows = max(1, min(NGRAM_BYTES, len(corpus.train)) // (length + 1))
    train, val = _spread(corpus.train, rows, length), _spread(corpus.val, windows, length)
    rungs = dict(zip(NGRAMS, ladder(train, val), strict=True))
    return rungs | compressors.bits_per_byte(train, val[:, 1:])


def _spread(text: Tensor, count: int, length: int) -> Tensor:
    """(count, length + 1): windows from the first token to the last, at even distances."""
    starts = torch.arange(count) * (len(text) - length - 1) // max(1, count - 1)
    return _windows(text, starts, length)


def _windows(text: Tensor, starts: Tensor, length: int) -> Tensor:
    """(B, length + 1) int64: inputs, and one token more for the last target."""
    return text.unfold(0, length + 1, 1)[starts].long()


def _shifted(windows: Tensor) -> tuple[Tensor, Tensor]:
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
