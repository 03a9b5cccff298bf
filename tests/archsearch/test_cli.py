"""The command line as a user meets it: exit codes, one clear message, nothing half-written."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from archsearch import cli, load_spec, reference
from archsearch.folder import StudyFolder

SPACE = """archsearch: 1
name: tiny
model:
  dim: 16
  layers: 1
  topology:
    type: interleave
    major: {choose: {mamba: {state: 2}, retention: {heads: {choice: [1, 2, 4]}}}}
budgets: {parameters: {max: 60k}}
tasks:
  - {type: in_context_recall, vocab: 8, length: 16, batch: 4, extrapolate: [2]}
train: {steps: 6}
baselines: [retnet]
search: {sampler: random, trials: 2}
final: {top: 1, seeds: 1}
"""


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "archsearch", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["archsearch", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code if isinstance(left.value.code, int) else 0


BAD = {
    "a misspelt key": ("dim: 16", "dmi: 16", "tiny.yaml:4:3: model.dmi: unknown key 'dmi'; did you mean 'dim'?"),
    "a wrong type": ("dim: 16", "dim: wide", "tiny.yaml:4:8: model.dim: got 'wide'; must be a valid integer"),
    "an impossible width": ("heads: {choice: [1, 2, 4]}", "heads: 3", "tiny.yaml:8:52: model.topology.major: retention: heads (3) must divide dim (16); allowed: 1, 2, 4, 8, 16"),
    "an empty choice": ("[1, 2, 4]", "[]", "tiny.yaml:8:60: model.topology.major.choose.retention.heads: choice needs a list of one or more values, got []"),
    "an unreadable data file": ("type: in_context_recall, vocab: 8, length: 16, batch: 4, extrapolate: [2]", "type: language, data: nowhere.txt", "nowhere.txt"),
    "a value that is a list": ("steps: 6", "steps: [6]", "tiny.yaml:12:16: train.steps: got [6]; must be a valid integer"),
    "no tasks": ("tasks:\n", "task:\n", "tiny.yaml:10:1: task: unknown key 'task'; did you mean 'tasks'?"),
    "a duplicate key": ("name: tiny", "name: tiny\nname: other", "tiny.yaml:3:1: name: a second 'name'; the first is at"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_exits_with_2_and_one_message(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, message = BAD[case]
    assert old in SPACE
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(SPACE.replace(old, new))
    assert call(monkeypatch, "study", "tiny.yaml") == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.out == ""
    assert "Traceback" not in told.err
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


def test_nothing_feasible_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(SPACE.replace("60k", "60"))
    assert call(monkeypatch, "study", "tiny.yaml") == 1
    err = capsys.readouterr().err
    assert (
        "none of 200 random candidates is feasible: budgets.parameters.max = 60 rejects 200" in err
    )
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "none.yaml"], "none.yaml: cannot be read (No such file or directory)"),
        (["report", "nowhere"], "no study here"),
        (["export", "nowhere", "--out", "m"], "nowhere: cannot be read"),
        (["stdy", "x"], "Did you mean 'study'?"),
        (
            ["study", "tiny.yaml", "--trials", "0"],
            "Invalid value for '--trials': Input should be greater than or equal to 1",
        ),
        (["study", "tiny.yaml", "--device", "cuda:77"], "device cuda:77"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(SPACE)
    assert call(monkeypatch, *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


def test_references_are_specs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert call(monkeypatch, "reference") == 0
    assert "retnet              Sun et al. 2023: " in capsys.readouterr().out
    assert call(monkeypatch, "reference", "hymba", "--size", "small") == 0
    (tmp_path / "hymba.yaml").write_text(capsys.readouterr().out)
    assert load_spec(tmp_path / "hymba.yaml") == reference("hymba", size="small")
    assert call(monkeypatch, "reference", "hymbo") == 2
    assert "no reference architecture 'hymbo'; did you mean 'hymba'?" in capsys.readouterr().err


def test_the_whole_way(tmp_path: Path) -> None:
    """Validate, study, report, export, cost, as the README says them."""
    (tmp_path / "tiny.yaml").write_text(SPACE)
    checked = run("validate", "tiny.yaml", cwd=tmp_path)
    assert checked.stdout == "tiny.yaml: legal, 2 decisions\n"
    studied = run("study", "tiny.yaml", "--workers", "1", cwd=tmp_path)
    assert studied.returncode == 0, studied.stderr
    assert re.search(r"3 trained of \d+ proposed: studies/tiny", studied.stdout)
    assert "best  trial" in studied.stdout
    assert re.search(r"^retnet +loss \d\.\d{3}  retention$", studied.stderr, re.M)
    folder = tmp_path / "studies" / "tiny"
    (folder / "report.html").unlink()
    reported = run("report", "studies/tiny", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert (folder / "report.html").stat().st_size > 10**6
    exported = run("export", "studies/tiny", "--out", "my_model", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    costed = run("cost", "studies/tiny/best/spec.yaml", "--vocab", "8", cwd=tmp_path)
    metrics = json.loads((folder / "best" / "metrics.json").read_text())
    assert re.search(rf"^parameters +{metrics['cost']['parameters']:,}$", costed.stdout, re.M)
    assert "training memory" in costed.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_study_can_be_stopped_at_any_moment(kill: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C and a scheduler's stop say so and exit with 130; whatever it was, the command resumes."""
    (tmp_path / "tiny.yaml").write_text(SPACE.replace("steps: 6", "steps: 60"))
    command = [sys.executable, "-m", "archsearch", "study", "tiny.yaml", "--workers", "2"]
    first = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell's is off
    )  # fmt: skip
    folder = StudyFolder(tmp_path / "studies" / "tiny")
    until = time.monotonic() + 100
    while not folder.read_trials() and time.monotonic() < until:
        time.sleep(0.1)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    assert children
    os.kill(first.pid, kill)
    _, told = first.communicate(timeout=60)
    if kill != signal.SIGKILL:
        assert first.returncode == 130
        assert "stopped; what finished is in studies/tiny, the same command resumes" in told
        assert "Traceback" not in told
    kept = folder.read_trials()
    time.sleep(3)
    for child in children:  # no worker outlives its driver
        assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text()
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert second.returncode == 0, second.stderr
    after = {t["number"]: t for t in folder.read_trials()}
    for trial in kept:
        assert after[trial["number"]]["runs"][0] == trial["runs"][0]
    assert folder.read_record()["counts"]["trained"] == 3


def test_costs_as_numbers_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(reference("transformer", dim=16, layers=1).to_yaml())
    assert call(monkeypatch, "cost", path, "--json", "--measure", "--seq-len", "8") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["seq_len"] == 8
    assert sum(told["memory"].values()) == told["train_memory"]
    for name in ("train_time", "decode_latency"):
        assert 0 < told[name]["lower"] <= told[name]["median"] <= told[name]["upper"]
