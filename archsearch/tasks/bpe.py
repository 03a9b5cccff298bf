"""Byte-pair encoding (Sennrich et al. 2016) over bytes, as GPT-2 has it, trained on train.

Every byte is a token, so that no text is out of reach, and a token stands for the same bytes
wherever it is: bits per byte are exact. Vocabulary and ids are made once and kept (cache.py).
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from archsearch.tasks import cache
from archsearch.tasks.corpus import SPLITS, Corpus, whole
from archsearch.tasks.task import TaskError

PIECE = 1 << 16  # bytes that are encoded at a time, to the next end of a line
SEEN = 10_000_000  # bytes of train that pairs are counted in, spread over it


@dataclass(frozen=True, eq=False)  # hashed by identity: results can be cached
class Encoded:
    """Ids of each split, and how many bytes each token stands for, (vocab,)."""

    train: Tensor
    val: Tensor
    test: Tensor
    sizes: Tensor


@functools.lru_cache(maxsize=4)
def encode(corpus: Corpus, vocab: int) -> Encoded:
    """The ids of a corpus in a vocabulary of its own.

    Raises:
        TaskError: it is no UTF-8, too short for so many tokens, or `tokenizers` is not there.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise TaskError(
            "language: bpe needs tokenizers, which is not installed; pip install "
            "'archsearch[data]', or leave bpe out: tokens are bytes then"
        ) from error
    identity = {"sha256": corpus.sha256, "vocab": vocab, "tokenizers": tokenizers.__version__}
    folder = cache.made("bpe", identity, lambda folder: _make(folder, corpus, vocab))
    sizes = cache.mapped(folder / "sizes", np.int64)
    return Encoded(*(cache.mapped(folder / split, np.int32) for split in SPLITS), sizes=sizes)


def _make(folder: Path, corpus: Corpus, vocab: int) -> None:
    tokenizer = _trained(corpus, vocab)
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = [len(_bytes_of(tokenizer.id_to_token(i))) for i in range(vocab)]
    (folder / "sizes").write_bytes(np.array(sizes, np.int64).tobytes())
    for split in SPLITS:
        with (folder / split).open("wb") as file:
            pieces = _pieces(getattr(corpus, split))
            while batch := [*itertools.islice(pieces, 64)]:
                for found in tokenizer.encode_batch(batch):
                    file.write(np.array(found.ids, np.int32).tobytes())


def _trained(corpus: Corpus, vocab: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(  # type: ignore[call-arg]  (its signature is not told)
        vocab_size=vocab, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    every = max(1, len(corpus.train) // SEEN)
    tokenizer.train_from_iterator(itertools.islice(_pieces(corpus.train), 0, None, every), trainer)
    if (found := tokenizer.get_vocab_size()) < vocab:
        raise TaskError(
            f"language: bpe {vocab}: train has pairs for {found} tokens and no more; lower it, or "
            "give more text"
        )
    return tokenizer


def _pieces(text: Tensor) -> Iterator[str]:
    """The text in pieces that end with a line, where lines are not endless."""
    data, start = text.numpy(), 0
    while start < len(data):
        piece = bytes(data[start : start + PIECE])
        if start + len(piece) < len(data):
            piece = piece[: piece.rfind(b"\n") + 1] or whole(piece)
        start += len(piece)
        try:
            yield piece.decode()
        except UnicodeDecodeError as error:
            raise TaskError(
                f"language: bpe reads UTF-8, and the text is none: {error}. Write it as UTF-8, or "
                "leave bpe out: tokens are bytes then"
            ) from error


@functools.cache
def _alphabet() -> dict[str, int]:
    """The byte that each sign of ByteLevel's alphabet stands for: printable ones for themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    signs = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if byte not in plain)
    return signs | {chr(256 + i): byte for i, byte in enumerate(others)}


def _bytes_of(token: str) -> bytes:
    return bytes(_alphabet()[sign] for sign in token)
