"""Language on any corpus: rows of tables, byte pairs, windows that slide."""

import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from archsearch.tasks import TaskError, streams
from archsearch.tasks.bpe import encode
from archsearch.tasks.corpus import SPLITS, Corpus, documents, split_of
from archsearch.tasks.language import Language

torch.set_num_threads(1)

TEXT = b"".join(path.read_bytes() for path in list(documents("stdlib").values())[:8])[:60_000]
ROWS = [f"Zeile {i}:\n  äöü = {i * 7919 % 1000}  # ✓" for i in range(900)]
SMALL: dict[str, Any] = {"length": 32, "windows": 16}


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(home))
    encode.cache_clear()
    streams._loaded.clear()
    return home


def write(path: Path, rows: list[str], column: str = "text") -> str:
    """Rows as the table that the path's suffix says."""
    frame = pandas.DataFrame({column: rows})
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({column: row}) for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([(column,), *((row,) for row in rows)])
    else:
        frame.to_parquet(path)
    return str(path)


def split_texts(corpus: Corpus) -> dict[Any, str]:
    return {split: bytes(getattr(corpus, split).numpy()).decode() for split in SPLITS}


# --- rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_every_row_is_whole_in_the_split_of_its_hash(kind: str, tmp_path: Path) -> None:
    corpus = streams.load(write(tmp_path / f"rows{kind}", ROWS), "text", 10**6)
    expected: dict[Any, str] = dict.fromkeys(SPLITS, "")
    for row in ROWS:
        expected[split_of(row.encode())] += f"{row}\n"
    assert split_texts(corpus) == expected


def test_formats_agree_and_are_told_from_others(tmp_path: Path) -> None:
    kinds = (".jsonl", ".csv", ".parquet")
    tasks = [Language(data=write(tmp_path / f"rows{kind}", ROWS), **SMALL) for kind in kinds]
    assert len({task.fingerprint() for task in tasks}) == 1
    other = Language(data=write(tmp_path / "other.csv", ROWS[1:]), **SMALL)
    assert other.fingerprint() != tasks[0].fingerprint()


def test_the_splits_of_the_data_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS[:600])
    write(tmp_path / "test.jsonl", ROWS[600:])
    found = split_texts(streams.load(str(tmp_path), "text", 10**6))
    assert found["test"] == "".join(f"{row}\n" for row in ROWS[600:])
    val = [row for row in ROWS[:600] if split_of(row.encode()) == "val"]
    assert found["val"] == "".join(f"{row}\n" for row in val)
    kept = "".join(f"{row}\n" for row in ROWS[:600] if row not in val)
    assert found["train"] == kept


def test_no_more_is_read_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an endless stream too, and without half a character at its end."""
    read = Counter()

    class Endless:
        column_names = None

        def __iter__(self) -> Any:
            while True:
                read["rows"] += 1
                assert read["rows"] < 1_000
                yield {"text": f"{read['rows']} äöü"}

    monkeypatch.setattr("archsearch.tasks.tables.load", lambda *_, **__: {"train": Endless()})
    monkeypatch.setattr("archsearch.tasks.streams._stamps", lambda source: [])
    corpus = streams.load("hub:a/b", "text", 5_001)
    found = split_texts(corpus)  # decodes
    assert 4_990 < len(corpus.train) <= 5_001
    assert len(corpus.val) <= 500 and len(corpus.test) <= 500
    assert found["train"].endswith(("\n", "ä", "ö", "ü", " ", *"0123456789"))


def test_a_corpus_is_read_once_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    first = streams.load(path, "text", 10**6)
    monkeypatch.setattr("archsearch.tasks.tables.load", lambda *_, **__: pytest.fail("read again"))
    assert streams.load(path, "text", 10**6, refresh=True) is first  # so that results on it hold
    streams._loaded.clear()
    again = streams.load(path, "text", 10**6)
    assert split_texts(again) == split_texts(first)
    assert again.sha256 == first.sha256
    again.train[0] = 0  # in memory, not in the file
    streams._loaded.clear()
    assert split_texts(streams.load(path, "text", 10**6)) == split_texts(first)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    first = streams.load(write(tmp_path / "rows.jsonl", ROWS), "text", 10**6)
    path = write(tmp_path / "rows.jsonl", ROWS[5:])
    assert streams.load(path, "text", 10**6) is first  # a study sees one text
    assert streams.load(path, "text", 10**6, refresh=True).sha256 != first.sha256


def test_what_fails_leaves_nothing_behind(tmp_path: Path, home: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*ROWS, 5])  # type: ignore[list-item]
    with pytest.raises(TaskError, match=r"language: data '.*rows\.jsonl'.*"):
        streams.load(path, "text", 10**6)
    assert not [*(home / "archsearch").iterdir()]


def test_tables_are_told_from_text(tmp_path: Path) -> None:
    """A folder of text may hold a table, which then is text as the rest is."""
    write(tmp_path / "rows.jsonl", ROWS)
    assert streams.is_table(str(tmp_path))
    (tmp_path / "notes.txt").write_bytes(TEXT)
    assert not streams.is_table(str(tmp_path))
    assert streams.is_table("hub:a/b")


# --- byte pairs -------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return write(tmp_path / "rows.jsonl", ROWS)


def test_tokens_stand_for_the_text_and_for_nothing_else(rows: str, home: Path) -> None:
    """What a public reader of the vocabulary makes of the ids is the text; sizes are its bytes."""
    from tokenizers import Tokenizer, decoders

    corpus = streams.load(rows, "text", 10**6)
    found = encode(corpus, 400)
    (path,) = home.glob("archsearch/bpe-*/tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.decoder = decoders.ByteLevel()
    for split, text in split_texts(corpus).items():
        ids = getattr(found, split)
        assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text
        assert found.sizes[ids].sum() == len(text.encode())
        assert len(ids) < 0.7 * len(text.encode())
    assert found.sizes.shape == (400,)


def test_a_vocabulary_is_trained_once(rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = streams.load(rows, "text", 10**6)
    first = encode(corpus, 300)
    encode.cache_clear()
    monkeypatch.setattr("archsearch.tasks.bpe._trained", lambda *_: pytest.fail("trained again"))
    assert torch.equal(encode(corpus, 300).train, first.train)


class Uniform(nn.Module):
    """All tokens alike."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return torch.zeros(*tokens.shape, self.vocab), state


def test_bits_per_byte_are_of_the_bytes_that_tokens_stand_for(rows: str) -> None:
    task = Language(data=rows, bpe=400, **SMALL)
    task.prepare()
    evaluation = task.evaluate(Uniform(400))
    assert evaluation.metrics["perplexity"] == pytest.approx(400)
    assert evaluation.loss == pytest.approx(math.log(400))
    ids = task._frozen("val")[:, 1:]
    size = encode(task._corpus(), 400).sizes[ids].sum().item()
    expected = ids.numel() * math.log2(400) / size
    assert evaluation.metrics["bits_per_byte"] == pytest.approx(expected)
    assert evaluation.examples["bits_per_byte"].shape == (16,)
    assert task.ends.reads.vocab == 400  # type: ignore[union-attr]


def test_the_rules_are_told_the_same_bytes_whatever_the_tokens(rows: str) -> None:
    """N-grams and compressors read bytes: those of as long a text as a window's tokens are."""
    by_bytes, by_pairs = Language(data=rows, **SMALL), Language(data=rows, bpe=400, **SMALL)
    size = len(by_bytes._ids("val")) / len(by_pairs._ids("val"))
    longer = by_bytes.model_copy(update={"length": round(32 * size)})
    assert by_pairs.floors() == longer.floors()


# --- windows that slide -----------------------------------------------------------------------


class Looking(nn.Module):
    """Logits that depend on the last 20 tokens: more context is another answer."""

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        seen = F.pad(tokens, (19, 0), value=-1).unfold(1, 20, 1)
        number = (seen * torch.arange(1, 21)).sum(-1)
        return torch.sin(number[..., None] * torch.arange(256) * 0.1), state


@pytest.mark.parametrize("stride", [1, 7, 24])
def test_a_sliding_window_scores_every_token_once_with_all_its_context(stride: int) -> None:
    text = torch.frombuffer(bytearray(TEXT[:2_000]), dtype=torch.uint8)
    task = Language(length=24, stride=stride, windows=None)
    corpus = Corpus(text, text, text, sha256="")
    object.__setattr__(task, "_corpus", lambda refresh=False: corpus)
    evaluation = task.evaluate(Looking())
    logits, _ = Looking()(text[None, :-1].long())
    nats = F.cross_entropy(logits[0], text[1:].long(), reduction="none")
    starts = range(0, len(text) - 24, stride)
    last = starts[-1] + 24
    scored = nats[24 - stride : last]
    if stride <= 5:  # then no context is missing that the model looks at
        assert evaluation.loss == pytest.approx(scored.mean().item(), rel=1e-5)
        bits = scored.mean().item() / math.log(2)
        assert evaluation.metrics["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert evaluation.examples["bits_per_byte"].shape == (len(starts),)
    assert len(starts) * stride == len(scored)


def test_context_helps_a_stride(rows: str) -> None:
    """Tokens with more before them are told better by what counts on it."""
    whole, half = (Language(data=rows, stride=stride, **SMALL) for stride in (None, 8))
    windows = half._frozen("val")
    assert torch.equal(windows, whole._frozen("val"))
    assert half.evaluate(Looking()).loss != whole.evaluate(Looking()).loss


# --- errors -----------------------------------------------------------------------------------


def test_a_column_that_is_not_there(rows: str) -> None:
    with pytest.raises(
        TaskError, match=r"^language: data '[^ ]*' has no columns \['body'\]; it has \['text'\]"
    ):
        Language(data=rows, text="body", **SMALL).prepare()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("gone.csv", None, r"gone\.csv"),
        ("empty.jsonl", b"", "it is empty"),
        ("bad.jsonl", b"{no json\n", "JSON parse error"),
        ("bad.parquet", b"PAR?", "Parquet"),
    ],
)
def test_what_cannot_be_read(name: str, data: bytes | None, reason: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(TaskError, match=rf"language: .* cannot be read: .*{reason}.*hub:NAME"):
        Language(data=str(tmp_path / name)).prepare()


def test_text_that_is_no_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("Größe und Maß\n".encode("latin-1") * 5_000)
    with pytest.raises(TaskError, match=r"bpe reads UTF-8, .* or leave bpe out"):
        Language(data=str(path), bpe=300, **SMALL).prepare()


def test_more_tokens_than_pairs(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_bytes(b"ab\n" * 10_000)
    with pytest.raises(TaskError, match=r"bpe 5000: train has pairs for \d+ tokens and no more"):
        Language(data=str(path), bpe=5_000, **SMALL).prepare()


def test_a_cache_that_cannot_be_written(rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", rows)  # a file
    with pytest.raises(TaskError, match=r"corpus: cannot be kept in .*Set XDG_CACHE_HOME"):
        Language(data=rows, **SMALL).prepare()


def test_too_few_tokens(rows: str) -> None:
    with pytest.raises(TaskError, match=r"splits have \{.*\} tokens, and 16 windows"):
        Language(data=rows, bpe=400, length=4096, windows=16).prepare()


@pytest.mark.parametrize("options", [{"bpe": 256}, {"stride": 0}, {"stride": 300}, {"limit": "x"}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        Language(**options)
