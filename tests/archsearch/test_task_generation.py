"""Generation: what is read, what is written, and how that is measured."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archsearch import build, reference
from archsearch.ends import IGNORE
from archsearch.tasks import TaskError, stream
from archsearch.tasks.corpus import SPLITS, documents, split_of
from archsearch.tasks.generation import BETWEEN, END, PAD, Generation, compare, write

torch.set_num_threads(1)

PAIRS = [(f"wort {i}", f"word {i * 37 % 100} ✓") for i in range(150)]
SMALL: dict[str, Any] = {"length": 8, "answer_length": 16, "sequences": 12}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    path = tmp_path / "pairs.jsonl"
    rows = ({"translation": {"de": a, "en": b}} for a, b in PAIRS)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def task(data: str, **options: Any) -> Generation:
    columns = {"input": "translation.de", "answer": "translation.en"}
    return Generation(data=data, **columns, **SMALL | options)


class Memory(nn.Module):
    """Goes on with what it knows of each input, byte by byte, from a state that says how far it is.

    As a model, it reads the whole prompt at once or one token at a time.
    """

    def __init__(self, known: dict[tuple[int, ...], list[int]], length: int) -> None:
        super().__init__()
        self.known, self.length = known, length

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if state is None:
            answers = [self.known[tuple(row[: self.length])] for row in tokens.tolist()]
            at, steps = 0, range(-self.length, tokens.shape[1] - self.length)
        else:
            answers, at = state
            steps = range(at, at + tokens.shape[1])
        said = [[row[t] if 0 <= t < len(row) else PAD for t in steps] for row in answers]
        return 50.0 * F.one_hot(torch.tensor(said), END + 1), (answers, steps[-1] + 1)


def knowing(asked: Generation, split: Any) -> Memory:
    rows = asked._rows(split).tolist()
    known = {tuple(row[: asked.length]): row[asked.length + 1 :] for row in rows}
    return Memory(known, asked.length)


# --- data -------------------------------------------------------------------------------------


def test_every_pair_is_in_the_split_of_its_input(data: str) -> None:
    found = task(data)._pairs()
    for split in SPLITS:
        expected = [(a, b) for a, b in PAIRS if split_of(a.encode()) == split]
        assert [(a.decode(), b.decode()) for a, b in found[split]] == expected


def test_a_sequence_is_the_input_at_its_end_and_the_answer(data: str) -> None:
    asked = task(data)
    inputs, targets = asked.sample(9, stream("train", 0))
    known = {a.encode()[:8]: b.encode() for a, b in PAIRS}
    for x, y in zip(inputs.tolist(), targets.tolist(), strict=True):
        read = bytes(i for i in x[:8] if i != PAD)
        assert x[: 8 - len(read)] == [PAD] * (8 - len(read))
        assert x[8] == BETWEEN
        assert y[:8] == [IGNORE] * 8
        told = [i for i in y if i != IGNORE]
        assert told == [*known[read], END]
        assert y[8:-1] == [i if i != PAD else IGNORE for i in x[9:]]


def test_long_texts_lose_their_end(data: str) -> None:
    asked = task(data, length=3, answer_length=4)
    inputs, targets = asked.sample(5, stream("train", 0))
    assert inputs.shape == (5, 7)
    assert all(bytes(row[:3]) == b"wor" for row in inputs.tolist())
    assert all(bytes(row[3:]) == b"word" for row in targets.tolist())


def test_pairs_of_the_library_are_signatures_and_what_they_do() -> None:
    found = Generation()._pairs()
    known = dict(found["train"] + found["val"] + found["test"])
    assert (
        known[b"def dedent(text)"]
        == b"Remove any common leading whitespace from every line in `text`."
    )
    assert sum(map(len, found.values())) > 2_000
    reads = [{read for read, _ in found[split]} for split in SPLITS]
    assert not reads[0] & reads[1] | reads[0] & reads[2] | reads[1] & reads[2]
    source = b"".join(path.read_bytes() for path in documents("stdlib").values())
    for _, told in found["val"][:50]:
        assert told in source


def test_no_more_pairs_than_asked(data: str) -> None:
    found = task(data, most=20)._pairs()
    assert {split: len(pairs) for split, pairs in found.items()} == {
        "train": 20,
        "val": 5,
        "test": 5,
    }


# --- measures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "test"])
def test_knowing_the_answers_is_perfect(data: str, split: Any) -> None:
    asked = task(data)
    evaluation = asked.evaluate(knowing(asked, split), split)
    assert evaluation.loss == pytest.approx(0, abs=1e-6)
    assert evaluation.metrics["exact_match"] == evaluation.metrics["rouge_l"] == 1
    assert asked.score(evaluation) == pytest.approx(1)
    rows = min(12, len(asked._pairs()[split]))
    assert evaluation.examples["bits_per_byte"].shape == (rows,)
    assert evaluation.examples["rouge_l"].shape == (rows,)


def test_the_score_is_0_at_the_floor(data: str) -> None:
    """Of a model that says each byte as often as train does."""
    asked = task(data)
    _, targets = asked._cut(asked._rows("train"))
    counts = torch.bincount(targets[targets != IGNORE], minlength=END + 1) + 1.0

    class Frequencies(nn.Module):
        def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            return counts.log().expand(*tokens.shape, END + 1), state

    evaluation = asked.evaluate(Frequencies())
    floor = asked.floor
    assert evaluation.loss == pytest.approx(floor["loss"])
    assert evaluation.metrics["bits_per_byte"] == pytest.approx(floor["loss"] / math.log(2))
    assert asked.score(evaluation) == pytest.approx(0, abs=1e-6)


def test_metrics_by_hand() -> None:
    """ROUGE-L: 2 l / (m + n) with the longest common run of words in order; BLEU as in the paper."""
    found = compare([b"the cat sat", b"a b c d e"], [b"the dog sat", b"a b c d e"])
    assert found["rouge_l"].tolist() == pytest.approx([2 / 3, 1])
    assert found["exact_match"].tolist() == [0, 1]
    precisions = (7 / 8, 4 / 6, 3 / 4, 2 / 2)
    assert found["metrics"]["bleu"] == pytest.approx(math.prod(precisions) ** 0.25)


@pytest.mark.parametrize("name", ["transformer", "mamba", "retnet"])
def test_what_is_written_step_by_step_is_the_likeliest_of_the_whole(data: str, name: str) -> None:
    """Greedy from a state, against reading all of it again for every byte."""
    torch.manual_seed(0)
    asked = task(data)
    model = build(reference(name, dim=16, layers=2), asked.ends)
    with torch.no_grad():  # tied: a model that learned nothing says the last sign again
        next(p for n, p in model.named_parameters() if n.startswith("embed"))[PAD:] = 0
    prompts = asked._rows("val")[:5, :9].long()
    found = write(model, prompts, 12)
    model.eval()
    for prompt, text in zip(prompts, found, strict=True):
        tokens, told = prompt[None], b""
        with torch.no_grad():
            while len(told) < 12:
                following = model(tokens)[0][:, -1].argmax(-1)
                if following >= PAD:
                    break
                told += bytes(following.tolist())
                tokens = torch.cat((tokens, following[None]), 1)
        assert text == told
    assert any(found)


def test_rows_end_by_themselves() -> None:
    ends = Memory({(1,): [65, END], (2,): [66, 67, 68, 69]}, 1)
    prompts = torch.tensor([[1, BETWEEN], [2, BETWEEN]])
    assert write(ends, prompts, 3) == [b"A", b"BCD"]
    assert write(ends, prompts, 9) == [b"A", b"BCDE"]


def test_the_fingerprint_is_of_the_pairs(data: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(Path(data).read_bytes())
    assert task(str(copy)).fingerprint() == task(data).fingerprint()
    other = tmp_path / "other.jsonl"
    other.write_bytes(Path(data).read_bytes().replace(b"wort 3", b"wort x"))
    assert task(str(other)).fingerprint() != task(data).fingerprint()


# --- errors -----------------------------------------------------------------------------------


def test_columns_that_are_not_there(data: str) -> None:
    with pytest.raises(
        TaskError,
        match=r"^generation: data '[^ ]*' has no columns \['input', 'output'\]; it has \['translation'\]",
    ):
        Generation(data=data).prepare()
    with pytest.raises(TaskError, match=r"row 0 has no 'fr'; its columns are \['translation'\]"):
        task(data).model_copy(update={"answer": "translation.fr"}).prepare()


def test_too_few_pairs(tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text('{"input": "a", "output": "b"}\n' * 9)
    with pytest.raises(TaskError, match=r"too small: its splits have \{.*\} pairs .* 100 or more"):
        Generation(data=str(path)).prepare()


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"cannot be read: its name ends in '\.txt'\. Allowed: 's"):
        Generation(data=str(tmp_path / "a.txt")).prepare()
