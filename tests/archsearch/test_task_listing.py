"""`archsearch tasks`: every task in the list, and one whole with what its rules reach."""

import inspect
from typing import Any

import pytest

from archsearch.tasks import TASKS, TaskError


def test_every_task_is_listed_with_its_options(command: Any) -> None:
    code, out, _ = command("tasks")
    out = " ".join(out.split())
    assert code == 0
    for name, cls in TASKS.items():
        assert name in out
        assert " ".join((inspect.getdoc(cls) or "").split()[:4]) in out
    assert "batch=32 length=64 extrapolate=[4]" in out


def test_one_is_told_whole(command: Any) -> None:
    code, out, _ = command("tasks", "in_context_recall")
    out = " ".join(out.split())
    assert code == 0
    assert "arXiv 2403.17844" in out
    assert "A model reads tokens (B, T) int64, and gives logits (B, T, 16)." in out
    assert "most frequent value so far 0.321 2.079" in out
    assert "- type: in_context_recall" in out
    for field in TASKS["in_context_recall"].model_fields.values():
        assert " ".join((field.description or "").split()[:2]) in out


def test_an_option_without_a_default_is_to_be_named(command: Any) -> None:
    code, out, _ = command("tasks", "images")
    assert code == 0
    assert "Its floors are not known here: they depend on data." in out
    assert "data: '...'" in out
    assert "required" in out


def test_what_is_missing_is_said_and_no_error(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(task: object) -> None:
        raise TaskError("its images come with scikit-learn")

    monkeypatch.setattr(TASKS["sequential_digits"], "prepare", refuse)
    code, out, _ = command("tasks", "sequential_digits")
    assert code == 0
    assert "Its floors are not known here: its images come with scikit-learn" in out


def test_an_unknown_name(command: Any) -> None:
    code, _, err = command("tasks", "langauge")
    assert code == 2
    assert "error: no task 'langauge'; did you mean 'language'? allowed: " in err
