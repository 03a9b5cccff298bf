"""Which class is a text of? Bytes of texts, from wherever they are.   N texts, T time."""

import functools
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from archsearch.ends import Classes, Ends, Tokens
from archsearch.tasks import benchmarks, texts
from archsearch.tasks.classification import Classification
from archsearch.tasks.corpus import STDLIB
from archsearch.tasks.task import HUB, Purpose, macro_f1, matthews, path
from archsearch.tasks.texts import Columns, Texts

PAD = 256


class Documents(Classification, frozen=True):
    """Which class is a text of, read byte by byte? As Long Range Arena's text task, on any data.

    Long Range Arena (Tay et al. 2021, arXiv 2011.04006) has the sentiment of film reviews, IMDb
    (Maas et al. 2011), at 1000 to 4000 bytes: `{data: "hub:stanfordnlp/imdb", length: 1024}`, with
    a network; its models choose by the test split, ours by a tenth of train. Tokens are the 256
    bytes and one that fills up shorter texts at their end; longer texts lose theirs. Its retrieval
    task asks whether of two papers one cites the other (AAN, Radev et al. 2013), which is not for
    everybody to pass on: with its tables as .csv files, `{data: aan/, text: [text1, text2],
    length: 8000}`, read as one sequence where LRA's models read them apart.

    GLUE, SuperGLUE and CodeXGLUE go by their names, columns and metrics (benchmarks.py):
    `{data: "hub:glue:mnli"}`, `{data: "hub:super_glue:boolq"}`,
    `{data: "hub:code_x_glue_cc_defect_detection"}`.

    The default needs no download: which of six packages of Python's standard library (asyncio,
    email, importlib, multiprocessing, unittest, xml) is a window from? Its three splits share no
    file, and 40 windows of a file are read at most. The library differs between versions of Python.
    """

    type: Literal["documents"] = "documents"
    data: Annotated[str, path(STDLIB, hub=True)] = Field(
        default=STDLIB,
        min_length=1,
        description='"stdlib"; the path of a .jsonl, .csv or .parquet file, of a folder of such '
        "files named for their splits, or of a folder with one of text files for each class; or "
        '"hub:NAME", "hub:NAME:CONFIG" of a dataset on the Hugging Face Hub. '
        "A relative path starts at the folder of the YAML file.",
    )
    text: str | tuple[str, ...] | None = Field(
        default=None,
        description="The column of a table that holds the texts, or several that are read one "
        "after the other; null is that of a known benchmark, and else `text`.",
    )
    label: str | None = Field(
        default=None,
        description="The column that holds their classes; null is a benchmark's, or `label`.",
    )
    metric: Literal["accuracy", "macro_f1", "matthews"] | None = Field(
        default=None, description="What is scored; null is what a benchmark scores, or accuracy."
    )
    length: int = Field(default=512, ge=4, description="Bytes of a text that are read.")
    batch: int = Field(default=16, ge=1, description="Training texts per step.")

    @property
    def ends(self) -> Ends:
        return Ends(Tokens(PAD + 1, pad=PAD), Classes(self.classes))

    @property
    def classes(self) -> int:
        return len(self._texts.classes)

    @property
    def primary(self) -> str:
        return self.metric or self._known.metric

    @property
    def _known(self) -> benchmarks.Benchmark:
        """What the columns are, as far as nothing else is said."""
        found = None
        if self.data.startswith(HUB):
            found = benchmarks.known(self.data.removeprefix(HUB))
        return found or benchmarks.Benchmark(("text",))

    @property
    def _columns(self) -> Columns:
        text = self._known.inputs if self.text is None else self.text
        return (text,) if isinstance(text, str) else text, self.label or self._known.answer

    @property
    def _texts(self) -> Texts:
        return texts.load(self.data, self._columns, self.length)

    def examples(self, purpose: Purpose) -> tuple[Tensor, Tensor]:
        return _encoded(self._texts, purpose, self.length)

    def measures(self, guesses: Tensor, classes: Tensor) -> dict[str, float]:
        own = {
            "macro_f1": macro_f1(guesses, classes, self.classes),
            "matthews": matthews(guesses, classes, self.classes),
        }
        return super().measures(guesses, classes) | own


@functools.lru_cache(maxsize=12)
def _encoded(found: Texts, purpose: Purpose, length: int) -> tuple[Tensor, Tensor]:
    """(N, length) ids in int16, which holds the 257, and (N,) classes."""
    rows = found.splits[purpose]
    ids = np.full((len(rows), length), PAD, np.int16)
    for row, (text, _) in zip(ids, rows, strict=True):
        row[: len(text)] = np.frombuffer(text[:length], np.uint8)
    return torch.from_numpy(ids), torch.tensor([number for _, number in rows])
