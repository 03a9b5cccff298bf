"""Code, string or comment? The tag of every byte of Python source.   N windows, T time."""

import functools
import io
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from archsearch.ends import Ends, Tags, Tokens
from archsearch.tasks.classification import Classification
from archsearch.tasks.corpus import SPLITS, STDLIB, digest, documents, split_of
from archsearch.tasks.task import Purpose, TaskError, macro_f1, path

CODE, STRING, COMMENT = range(3)
# From Python 3.12 on an f-string is no single token, and may hold others.
OPENING, CLOSING = (
    {kind for kind, name in tokenize.tok_name.items() if name.endswith(end)}
    for end in ("STRING_START", "STRING_END")
)
TAGGED = dict.fromkeys({tokenize.STRING, *OPENING, *CLOSING}, STRING) | {tokenize.COMMENT: COMMENT}
Text = tuple[np.ndarray, np.ndarray]  # bytes and their tags, (N,) each, uint8


class CodeTags(Classification, frozen=True):
    """Is this byte code, string or comment? The tags are those of Python's own `tokenize`.

    At t a model has read the bytes up to t and no later one. What opened a string or a comment may
    lie far back: state is carried, or the tag is guessed. Quotes, prefixes (r, b, f) and docstrings
    are string, and an f-string is in whole, whatever stands in its braces; # to the end of the line
    is comment; all else is code, white space included. A window may begin within a string, and a
    prefix is read before its quote: perfect is out of reach.

    Files are split by a hash of their names, as in `language`, and read in the order of that hash
    until `most` bytes are there; val and test are `windows` windows spread over theirs.
    """

    causal: ClassVar[bool] = True

    type: Literal["code_tags"] = "code_tags"
    data: Annotated[str, path(STDLIB)] = Field(
        default=STDLIB,
        min_length=1,
        description='"stdlib", or the path of a folder with Python files. '
        'A relative path starts at the folder of the YAML file ("./stdlib" is a path).',
    )
    length: int = Field(default=256, ge=4, description="Bytes of a window.")
    batch: int = Field(default=8, ge=1, description="Training windows per step.")
    windows: int = Field(default=96, ge=1, description="Windows of an evaluation.")
    most: int = Field(
        default=400_000,
        ge=1,
        description="Bytes of a split after which no further file is read: telling a million "
        "apart takes a second.",
    )

    @property
    def primary(self) -> str:
        return "macro_f1"

    @property
    def ends(self) -> Ends:
        return Ends(Tokens(256), Tags(self.classes))

    @property
    def classes(self) -> int:
        return 3

    def examples(self, purpose: Purpose) -> tuple[Tensor, Tensor]:
        """Windows without overlap and their tags."""
        text, tags = _texts(self.data, self.most)[purpose]
        rows, needed = len(text) // self.length, 1 if purpose == "train" else self.windows
        if rows < needed:
            raise TaskError(
                f"code_tags: data {self.data!r} is too short: {purpose} has {len(text)} bytes of "
                f"Python, and {needed} windows of length {self.length} need "
                f"{needed * self.length}. Give more files, raise `most`, or lower windows or length"
            )
        chosen = torch.arange(rows)
        if purpose != "train":
            chosen = torch.arange(needed) * (rows - 1) // max(1, needed - 1)
        cut = (torch.from_numpy(x[: rows * self.length]).view(rows, -1) for x in (text, tags))
        inputs, classes = (x[chosen] for x in cut)
        return inputs, classes.long()

    def rules(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"most frequent class": torch.zeros_like, "class given the byte": Tensor.clone}

    def measures(self, guesses: Tensor, classes: Tensor) -> dict[str, float]:
        f1 = macro_f1(guesses, classes, self.classes)
        return super().measures(guesses, classes) | {"macro_f1": f1}


@functools.lru_cache(maxsize=4)
def _texts(source: str, most: int) -> dict[str, Text]:
    """The text of each split, read once in a process."""
    try:
        if source != STDLIB:
            next(Path(source).iterdir(), None)  # is it a folder?
        files = {name: path for name, path in documents(source).items() if name.endswith(".py")}
        parts: dict[str, list[Text]] = {split: [] for split in SPLITS}
        for name in sorted(files, key=digest):
            part = parts[split_of(name)]
            if sum(len(text) for text, _ in part) < most:
                part.append(_tagged(files[name]))
    except OSError as error:
        raise TaskError(
            f"code_tags: data {source!r} cannot be read: {error}. Allowed: {STDLIB!r}, or a folder "
            "with .py files; a relative path starts at the folder of the YAML file"
        ) from error
    empty = np.zeros(0, np.uint8)
    return {
        split: (
            np.concatenate([empty, *(text for text, _ in part)]),
            np.concatenate([empty, *(tags for _, tags in part)]),
        )
        for split, part in parts.items()
    }


def _tagged(path: Path) -> Text:
    try:
        with tokenize.open(path) as file:
            text = file.read()
        tags = tags_of(text)
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError) as error:
        raise TaskError(
            f"code_tags: {path} is no Python source that can be told apart: {error}. "
            "Correct the file, or leave it out of the folder"
        ) from error
    data = np.frombuffer(text.encode(), np.uint8)
    if len(data) > len(tags):  # a character of two bytes or more has as many tags
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        tags = tags.repeat(1 + sum((points >= first).astype(int) for first in (2**7, 2**11, 2**16)))
    return data, tags


def tags_of(text: str) -> np.ndarray:
    """The tag of each character."""
    starts = np.cumsum([0, *map(len, io.StringIO(text))])
    tags, opened = np.full(len(text), CODE, np.uint8), []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in TAGGED:
            continue
        begin, end = (starts[row - 1] + column for row, column in (token.start, token.end))
        if token.type in OPENING:
            opened.append(begin)
            continue
        tags[opened.pop() if token.type in CLOSING else begin : end] = TAGGED[token.type]
    return tags
