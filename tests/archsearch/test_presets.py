"""Presets: legal spaces, told from what was measured at other settings, and a page that is theirs."""

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml

from archsearch import presets
from archsearch.bench import tasks as bench
from archsearch.loading import load_space
from archsearch.tasks import TASKS

ALL = [(name, kind) for name, kinds in presets.presets().items() for kind in kinds]
OURS = [name for name, cls in TASKS.items() if cls.__module__.startswith("archsearch.tasks.")]


def test_every_task_has_both() -> None:
    """But the one that has no data of its own."""
    assert sorted(presets.presets()) == sorted(OURS)
    assert {*ALL} == {(n, k) for n in OURS for k in presets.KINDS} - {("images", "cpu")}


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_a_preset_prints_a_legal_space(name: str, kind: str, command: Any, tmp_path: Path) -> None:
    code, out, _ = command("tasks", name, "--preset", kind)
    path = tmp_path / "space.yaml"
    path.write_text(out)
    assert code == 0
    space = load_space(path)
    assert space.file.search.trials == 20
    (task,) = space.file.tasks
    said = yaml.safe_load(out)["tasks"][0]
    assert all(task.model_dump(mode="json")[key] == value for key, value in said.items())


def test_what_is_kept_is_of_these_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (presets.FOLDER / "presets.yaml").read_text()
    (tmp_path / "presets.yaml").write_text(text)
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    found = {"key": presets.preset("parity", "cpu").key("parity"), "runs": {}, "where": "here"}
    bench.keep("parity", "cpu", found)
    bench.keep("dyck", "cpu", found)  # of other settings
    assert presets.expected("parity", "cpu") == found
    assert presets.expected("dyck", "cpu") is None
    assert presets.expected("parity", "gpu") is None
    (tmp_path / "presets.yaml").write_text(
        text.replace("parity:\n  cpu: {", "parity:\n  cpu: {dim: 8, ")
    )
    assert presets.expected("parity", "cpu") is None


def test_separation_by_hand() -> None:
    scores = {"a": [0.0, 0.2], "b": [0.9, 1.1]}
    noise = math.sqrt(statistics.mean([0.02, 0.02]))
    assert presets.separation(scores) == pytest.approx(0.9 / noise)
    assert presets.separation({"a": [1.0, 1.0], "b": [0.0, 0.0]}) == math.inf


def test_measuring_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Any) -> None:
    """The command trains every reference with every seed, keeps it, and writes the page."""
    small = "parity:\n  cpu: {task: {length: 16, batch: 4}, train: {steps: 2, warmup: 0}, dim: 8, layers: 1}\n"
    (tmp_path / "presets.yaml").write_text(small)
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    page = tmp_path / "page.md"
    code, out, _ = command("bench", "tasks", "--page", str(page))
    assert code == 0
    assert out.startswith("parity: transformer ")
    found = presets.expected("parity", "cpu")
    assert found is not None
    assert [*found["runs"]] == [*presets.REFERENCES]
    for run in found["runs"].values():
        assert len(run["scores"]) == len(run["seconds"]) == presets.SEEDS
    assert page.read_text() == presets.table()
    assert "not measured" not in page.read_text()
    code, out, _ = command("bench", "tasks")  # nothing is left
    assert (code, out) == (0, "")
    code, out, _ = command("tasks", "parity")
    assert "preset cpu: scores transformer" in " ".join(out.split())


def test_the_page_is_of_what_was_measured() -> None:
    page = Path(presets.__file__).parent.parent / "docs" / "presets.md"
    assert page.read_text(encoding="utf-8") == presets.table()


def test_a_task_without_data_of_its_own_has_one_preset(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = command("tasks", "images", "--preset", "cpu")
    assert code == 2
    assert "task 'images' has no preset cpu; take gpu" in err
    monkeypatch.setattr(bench, "presets", lambda: {"images": presets.presets()["images"]})
    assert [*bench.measure([], "cpu", "cpu", 1)] == []


@pytest.mark.parametrize(
    "arguments", [("tasks", "mqar", "--preset", "tpu"), ("tasks", "--preset", "cpu")]
)
def test_presets_that_are_not_there(arguments: tuple[str, ...], command: Any) -> None:
    code, _, err = command(*arguments)
    assert code == 2
    assert "name a task before it, and one of cpu, gpu" in err
