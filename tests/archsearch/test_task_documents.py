"""Documents: texts of every format, each in one split, and what is refused."""

import csv
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from archsearch.ends import Classes, Ends, Tokens
from archsearch.tasks import TaskError, benchmarks, stream, texts
from archsearch.tasks.corpus import documents, split_of
from archsearch.tasks.documents import Documents

torch.set_num_threads(1)

SPLITS = ("train", "val", "test")
ROWS = [(f"Text {i}: " + "äbc"[i % 3] * (i % 9), ("bad", "good")[i % 2]) for i in range(120)]
Rows = list[tuple[Any, Any]]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read from tables is cached, and not at home."""
    cache = str(tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)


def as_jsonl(path: Path, rows: Rows, names: tuple[str, str] = ("text", "label")) -> Path:
    path = path.with_suffix(".jsonl")
    lines = (json.dumps(dict(zip(names, row, strict=True))) for row in rows)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def as_csv(path: Path, rows: Rows) -> Path:
    path = path.with_suffix(".csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def as_parquet(path: Path, rows: Rows) -> Path:
    import pandas

    path = path.with_suffix(".parquet")
    pandas.DataFrame(rows, columns=["text", "label"]).to_parquet(path)
    return path


def as_folder(path: Path, rows: Rows) -> Path:
    for i, (text, label) in enumerate(rows):
        file = path / str(label) / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (path / "README").write_text("beside the folders, so not read")
    return path


FORMATS: dict[str, Callable[[Path, Rows], Path]] = {
    "jsonl": as_jsonl,
    "csv": as_csv,
    "parquet": as_parquet,
    "folder": as_folder,
}


def decoded(task: Documents, split: Any) -> Rows:
    """The texts and names of classes of a split, as a reader of its tensors finds them."""
    found = []
    for ids, number in zip(*task.examples(split), strict=True):
        text = [i for i in ids.tolist() if i < 256]
        assert ids.tolist() == text + [256] * (task.length - len(text))
        found.append((bytes(text).decode(), task._texts.classes[number]))
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_every_text_of_every_format_is_in_the_split_of_its_hash(name: str, tmp_path: Path) -> None:
    task = Documents(data=str(FORMATS[name](tmp_path / "data", ROWS)), length=40)
    task.prepare()
    for split in SPLITS:
        expected = [row for row in ROWS if split_of(row[0].encode()) == split]
        assert sorted(decoded(task, split)) == sorted(expected)
    assert task.ends == Ends(Tokens(257, pad=256), Classes(2))
    assert not task.causal


def test_formats_agree_in_their_fingerprints(tmp_path: Path) -> None:
    prints = {
        Documents(data=str(FORMATS[name](tmp_path / "data", ROWS)), length=40).fingerprint()
        for name in ("jsonl", "csv", "parquet")
    }
    assert len(prints) == 1
    other = as_jsonl(tmp_path / "other", [*ROWS[:-1], ("Text", "good")])
    assert Documents(data=str(other), length=40).fingerprint() not in prints


def test_long_texts_lose_their_end(tmp_path: Path) -> None:
    rows = [(f"{i:03}" + "ä" * 50, i % 2) for i in range(120)]
    task = Documents(data=str(as_jsonl(tmp_path / "data", rows)), length=10)
    ids, _ = task.examples("train")
    assert ids.dtype == torch.int16
    assert all(bytes(row[3:].tolist()) == "äää".encode() + b"\xc3" for row in ids)
    inputs, classes = task.sample(6, stream("train", 0))
    assert inputs.dtype == classes.dtype == torch.int64


def test_columns_by_name_and_classes_in_order(tmp_path: Path) -> None:
    rows = [(f"text {i}", (10, 9, 2)[i % 3]) for i in range(120)]
    path = as_jsonl(tmp_path / "data", rows, ("review", "stars"))
    task = Documents(data=str(path), text="review", label="stars", length=12)
    assert task._texts.classes == (2, 9, 10)
    assert set(decoded(task, "val")) <= set(rows)


def test_the_splits_of_the_data_are_kept(tmp_path: Path) -> None:
    """Where there is a test but no val, train gives it."""
    as_csv(tmp_path / "train", ROWS[:100])
    as_csv(tmp_path / "test", ROWS[100:])
    task = Documents(data=str(tmp_path), length=40)
    assert decoded(task, "test") == ROWS[100:]
    val = [row for row in ROWS[:100] if split_of(row[0].encode()) == "val"]
    assert decoded(task, "val") == val
    assert sorted(decoded(task, "train") + val) == sorted(ROWS[:100])

    as_csv(tmp_path / "validation", ROWS[:30])
    task = Documents(data=str(tmp_path), length=41)
    assert [decoded(task, s) for s in SPLITS] == [ROWS[:100], ROWS[:30], ROWS[100:]]


def test_a_split_whose_classes_are_kept_back_is_none(tmp_path: Path) -> None:
    as_csv(tmp_path / "train", [(text, i % 2) for i, (text, _) in enumerate(ROWS)])
    as_csv(tmp_path / "test", [(f"secret {i}", -1) for i in range(30)])
    task = Documents(data=str(tmp_path), length=40)
    assert not any(text.startswith("secret") for s in SPLITS for text, _ in decoded(task, s))
    assert sum(len(task.examples(split)[0]) for split in SPLITS) == len(ROWS)


def test_the_metrics_have_the_mean_f1_of_the_classes(tmp_path: Path) -> None:
    task = Documents(data=str(as_csv(tmp_path / "data", ROWS)), length=40)
    metrics = task.measures(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]))
    matthews = (1 * 2 - 1 * 0) / (2 * 1 * 3 * 2) ** 0.5
    expected = {"accuracy": 3 / 4, "macro_f1": (4 / 5 + 2 / 3) / 2, "matthews": matthews}
    assert metrics == pytest.approx(expected)
    assert task.floor.keys() == {"accuracy", "macro_f1", "matthews", "loss"}
    assert task.floor["matthews"] == 0
    assert [task.primary, task.model_copy(update={"metric": "matthews"}).primary] == [
        "accuracy",
        "matthews",
    ]


# --- several columns, and benchmarks by name --------------------------------------------------


def test_several_columns_are_read_one_after_the_other(tmp_path: Path) -> None:
    rows = [(f"{i} asks", {"a": f"{i} tells"}, i % 2) for i in range(120)]
    lines = (json.dumps(dict(zip(("q", "reply", "label"), row, strict=True))) for row in rows)
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines))
    task = Documents(data=str(path), text=("q", "reply.a"), length=40)
    found = {text for split in SPLITS for text, _ in decoded(task, split)}
    assert found == {f"{i} asks\x1f{i} tells" for i in range(120)}


def test_of_texts_that_are_too_long_each_has_its_part(tmp_path: Path) -> None:
    assert texts.joined(["a" * 9, "b" * 9], 9) == b"aaaa\x1fbbbb"
    assert texts.joined(["a" * 4, "b" * 4], 9) == b"aaaa\x1fbbbb"
    assert texts.joined(["a" * 99], 9) == b"a" * 99  # cut where it is encoded


class Hub:
    """Stands for the library's loader: keeps what it is asked for, gives small tables."""

    def __init__(self, columns: list[str]) -> None:
        self.columns, self.asked = columns, []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from datasets import Dataset

        self.asked.append((args, kwargs.get("data_files")))
        rows = [{name: f"{name} {i}" for name in self.columns} | {"idx": i} for i in range(200)]
        for i, row in enumerate(rows):
            row[self.columns[-1]] = i % 2
        return {"train": Dataset.from_list(rows), "odd": Dataset.from_list(rows)}


@pytest.mark.parametrize(
    ("name", "place", "columns", "metric"),
    [
        ("glue:cola", ("nyu-mll/glue", "cola"), ["sentence", "label"], "matthews"),
        ("nyu-mll/glue:mrpc", ("nyu-mll/glue", "mrpc"), ["sentence1", "sentence2", "label"], "macro_f1"),
        ("super_glue:boolq", ("aps/super_glue", "boolq"), ["question", "passage", "label"], "accuracy"),
        ("code_x_glue_cc_defect_detection", ("google/code_x_glue_cc_defect_detection", None), ["func", "target"], "accuracy"),
        ("some/where:else", ("some/where", "else"), ["text", "label"], "accuracy"),
    ],
)  # fmt: skip
def test_benchmarks_go_by_their_names(
    name: str, place: tuple, columns: list[str], metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(columns)
    monkeypatch.setattr("datasets.load_dataset", hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    task = Documents(data=f"hub:{name}", length=64)
    task.prepare()
    assert hub.asked == [(place, None)]
    assert task.primary == metric
    text, _ = decoded(task, "train")[0]
    assert [part.split()[0] for part in text.split("\x1f")] == columns[:-1]


def test_every_benchmark_has_columns_that_differ() -> None:
    tables = (benchmarks.GLUE, benchmarks.SUPER_GLUE, benchmarks.CODE_X_GLUE)
    for known in [known for table in tables for known in table.values()]:
        names = [*known.inputs, known.answer]
        assert len({*names}) == len(names)
    assert benchmarks.known("glue:stsb") is None
    assert benchmarks.known("scrolls:qasper") == benchmarks.Benchmark(("input",), "output")
    _, _, files = benchmarks.place("tau/scrolls:qasper")
    assert files is not None
    assert files["train"] == "zip://qasper/train.jsonl::hf://datasets/tau/scrolls/qasper.zip"


# --- the standard library ---------------------------------------------------------------------


def test_windows_of_the_library_are_of_their_package_and_of_files_of_one_split() -> None:
    task, sources = Documents(), documents("stdlib")
    assert task.classes == 6
    library = {name: path.read_bytes() for name, path in sources.items() if "/" in name}
    homes: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        rows, classes = task.examples(split)
        assert torch.bincount(classes, minlength=6).min() >= 10
        for row, number in [*zip(rows.tolist(), classes, strict=True)][::7]:
            found = {name for name, text in library.items() if bytes(row) in text}
            assert f"{task._texts.classes[number]}" in {name.split("/")[0] for name in found}
            homes[split] |= found if len(found) == 1 else set()
    assert not homes["train"] & homes["val"] | homes["val"] & homes["test"]
    assert not homes["train"] & homes["test"]
    assert min(map(len, homes.values())) > 10


def test_no_file_of_the_library_has_more_than_its_part() -> None:
    task = Documents()
    rows = {bytes(row) for split in SPLITS for row in task.examples(split)[0].tolist()}
    mock = documents("stdlib")["unittest/mock.py"].read_bytes()
    windows = [mock[i : i + 512] for i in range(0, len(mock) - 511, 512)]
    taken = [i for i, window in enumerate(windows) if window in rows]
    assert len(windows) > 100
    assert len(taken) == 40
    assert taken[0] == 0 and taken[-1] > 0.9 * len(windows)


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("gone.csv", None, "Unable to find"),
        ("gone", None, "its name ends in ''"),
        ("notes.txt", b"text", "its name ends in '.txt'"),
        ("empty.csv", b"", "it is empty"),
        ("empty.jsonl", b"", "it is empty"),
        ("blank.csv", b"\n", "No columns to parse"),
        ("latin.csv", "text,label\nä,1\n".encode("latin-1"), "can't decode byte 0xe4"),
        ("bad.jsonl", b"{no json\n", "JSON parse error"),
        ("bad.parquet", b"PAR?", "Parquet file size"),
    ],
)
def test_what_cannot_be_read(name: str, data: bytes | None, reason: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(TaskError, match=rf"data '.*{name}' cannot be read: .*({reason}).*hub:NAME"):
        Documents(data=str(tmp_path / name)).prepare()


def test_missing_columns(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "data", ROWS, ("review", "label"))
    message = r"has no columns \['text'\]; it has \['review', 'label'\]\. Name the right ones"
    with pytest.raises(TaskError, match=message):
        Documents(data=str(path)).prepare()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((None, "bad"), r"1 of 121 values of column 'text' are not text, such as None"),
        (("text", None), r"1 of 121 values of column 'label' are not text, a whole .* as None"),
        (("", "bad"), r"1 of 121 texts are empty; leave them out"),
    ],
)
def test_values_that_are_missing(row: tuple[Any, Any], message: str, tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "data", [*ROWS, row])
    with pytest.raises(TaskError, match=message):
        Documents(data=str(path)).prepare()


def test_labels_that_are_no_classes(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "data", [(text, i / 3) for i, (text, _) in enumerate(ROWS)])
    with pytest.raises(TaskError, match=r"120 of 120 values of column 'label' are not .* as 0\.0"):
        Documents(data=str(path)).prepare()


def test_too_few_texts(tmp_path: Path) -> None:
    path = as_csv(tmp_path / "data", ROWS[:20])
    with pytest.raises(
        TaskError, match=r"too small: its splits have {.*} texts, and 5 .* 100 or m"
    ):
        Documents(data=str(path)).prepare()
    (tmp_path / "none").mkdir()
    with pytest.raises(TaskError, match=r"too small: .*'train': 0"):
        Documents(data=str(tmp_path / "none")).prepare()


def test_one_class(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "data", [(text, "only") for text, _ in ROWS])
    with pytest.raises(TaskError, match=r"only one class in train, \['only'\]; two are the least"):
        Documents(data=str(path)).prepare()


def test_a_class_that_train_lacks(tmp_path: Path) -> None:
    as_csv(tmp_path / "train", ROWS)
    as_csv(tmp_path / "test", [*ROWS[:9], ("text", "new")])
    with pytest.raises(TaskError, match=r"train has no text of the classes \['new'\]"):
        Documents(data=str(tmp_path)).prepare()


def test_without_a_network_the_hub_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address, timeout):
        raise OSError(f"no route to {address[0]}")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    message = (
        r"'hub:a/b' needs a network, and .* cannot be reached: no route to .*\. "
        r"Set HF_HUB_OFFLINE=1 .* \.parquet file"
    )
    with pytest.raises(TaskError, match=message):
        Documents(data="hub:a/b").prepare()


def test_offline_the_hub_is_what_was_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args, **kwargs):
        raise ConnectionError(f"Couldn't reach {args}")  # what the library raises

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.load_dataset", offline)
    message = (
        r"'hub:a/b:c' cannot be read: Couldn't reach \('a/b', 'c'\)\. Allowed: 'stdlib', a \.j"
    )
    with pytest.raises(TaskError, match=message):
        Documents(data="hub:a/b:c").prepare()


def test_paths_start_at_the_yaml_file_and_hub_names_do_not(tmp_path: Path) -> None:
    for data, expected in (("a.csv", str(tmp_path / "a.csv")), ("hub:a", "hub:a")):
        task = Documents.model_validate({"data": data}, context={"folder": tmp_path})
        assert task.data == expected


@pytest.mark.parametrize("options", [{"data": ""}, {"length": 3}, {"batch": 0}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValidationError, match=rf"{name}\n +(Input|String) should"):
        Documents(**options)
