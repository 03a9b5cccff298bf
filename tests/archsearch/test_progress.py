"""The live view and the lines tell trial, rung, best, rejections and the time left."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from archsearch.cli import app
from archsearch.folder import StudyFolder
from archsearch.ledger import Entry, Ledger
from archsearch.progress import _Lines, follow, render
from archsearch.status import Status
from archsearch.workers import Job, Progress


def status() -> Status:
    ledger = Ledger([])
    ledger.add(Entry(0, "baseline", "retnet", "trained", summary="2 x retention", loss=2.0))
    ledger.add(Entry(1, "candidate", "trial 1", "trained", summary="mamba", loss=1.25))
    ledger.add(
        Entry(2, "candidate", "trial 2", "failed", cause="diverged", message="a\nloss is nan")
    )
    ledger.add(Entry(3, "candidate", "trial 3", "over_budget", cause="state"))
    ledger.add(Entry(4, "candidate", "trial 4", "training", summary="attention"))
    ledger.add(Entry(5, "candidate", "trial 5", "training", summary="mamba, attention"))
    job = Job(4, {}, [], {}, 0, "val", "cpu", "trials/4")
    running = {(4, 0): Progress(job, "language", 110, 2.5), (5, 0): None}
    return Status(ledger, running, "search", jobs=9, jobs_done=3, seconds_left=75.4)


def test_the_live_view() -> None:
    page = Console(file=io.StringIO(), width=120)
    page.print(render(status().snapshot()))
    text = page.file.getvalue()  # type: ignore[attr-defined]
    for part in (
        "search  3/9 runs  about 1:15 left",
        "best  trial 1      loss 1.250  mamba",
        "proposed 6  trained 2  pruned 0  failed 1  duplicate 0  invalid 0  over budget: state 1",
    ):
        assert part in text
    rows = [line.split() for line in text.splitlines()[-2:]]
    assert rows[0] == ["trial", "4", "0", "language", "110", "2.500", "attention"]
    assert rows[1] == ["trial", "5", "0", "starting", "mamba,", "attention"]


def test_lines_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines, now = _Lines(), status()
    lines(now)  # finished by an earlier process: no news
    assert capsys.readouterr().err == ""
    now.ledger.entries[4].state, now.ledger.entries[4].loss = "trained", 1.5
    now.ledger.entries[5].state, now.ledger.entries[5].cause = "failed", "died"
    lines(now)
    lines(now)
    assert (
        capsys.readouterr().err
        == "trial 4      loss 1.500  attention\ntrial 5      failed: died  \n"
    )


def test_a_rung_is_told_as_it_is_reached(capsys: pytest.CaptureFixture[str]) -> None:
    lines, now = _Lines(), status()
    lines(now)
    entry = now.ledger.entries[4]
    for loss in (2.0, 1.5):
        entry.state, entry.loss, entry.rungs = "paused", loss, [*entry.rungs, loss]
        lines(now)
        entry.state = "training"
        lines(now)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"trial 4      loss {x} at rung {n}  attention" for x, n in (("2.000", 1), ("1.500", 2))
    ]


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """A study in the middle of its search."""
    found = StudyFolder(tmp_path / "demo")
    counts = status().ledger.counts()
    found.write_record({"name": "demo", "finished": None, "counts": counts})
    found.write_status(status().snapshot())
    return found


def test_a_folder_says_how_its_study_stands(folder: StudyFolder) -> None:
    """Running while a process holds it, stopped without one, finished when its record says so."""
    with folder.locked():
        snapshot = folder.read_status()
    assert snapshot["state"] == "running"
    assert snapshot | status().snapshot() == snapshot
    stopped = folder.read_status()
    assert (stopped["state"], stopped["running"]) == ("stopped", [])
    folder.write_record(folder.read_record() | {"finished": "2026-11-22"})
    assert folder.read_status()["state"] == "finished"
    folder.status.unlink()  # as of a study by an earlier version, which pruned nobody
    counts = {k: v for k, v in status().ledger.counts().items() if not k.startswith("pruned")}
    folder.write_record(folder.read_record() | {"counts": counts})
    page = Console(file=io.StringIO(), width=120)
    page.print(render(folder.read_status()))
    assert "trained 2  pruned 0" in page.file.getvalue()  # type: ignore[attr-defined]


def test_the_command_status(folder: StudyFolder, tmp_path: Path) -> None:
    run = CliRunner()
    with folder.locked():
        text = run.invoke(app, ["status", str(folder.path)]).stdout
        data = json.loads(run.invoke(app, ["status", str(folder.path), "--json"]).stdout)
    assert "search  3/9 runs  about 1:15 left" in text
    assert data["running"][0] == {
        "name": "trial 4", "seed": 0, "task": "language", "step": 110, "loss": 2.5, "summary": "attention",
    }  # fmt: skip
    assert "stopped  3/9 runs" in run.invoke(app, ["status", str(folder.path)]).stdout
    assert run.invoke(app, ["status", str(tmp_path)]).exit_code != 0


def test_following_ends_with_the_study(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = iter([True, True, False])
    monkeypatch.setattr(StudyFolder, "busy", property(lambda self: next(states)))
    monkeypatch.setattr("archsearch.progress.time.sleep", lambda seconds: None)
    follow(folder, plain=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["state"] for line in lines] == ["running", "running", "stopped"]
