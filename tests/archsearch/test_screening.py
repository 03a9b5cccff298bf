"""The commands that answer before any training: what they print, and what they refuse."""

import sys
from pathlib import Path

import pytest

from archsearch import cli, load_spec

SPACE = """archsearch: 1
name: asked
define:
  decay: {choose: {fixed: {}, learned: {half_life: {float: [2, 64], log: true, prior: [4, 16]}}}}
model:
  dim: {choice: [16, 32], prior: [3, 1], doc: the width of everything}
  layers: 2
  mlp: {type: swiglu, expand: "=dim / 16"}
  topology: {type: interleave, major: {choose: {mamba: {state: 2}, retention: {heads: 2, decay: $decay}}}}
budgets: {parameters: {max: 14k}}
tasks: [{type: in_context_recall, vocab: 8, length: 16, batch: 4}]
"""


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "asked.yaml").write_text(SPACE)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["archsearch", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out + err

    return run


def test_validate_counts_decisions_and_warns(ask, tmp_path: Path) -> None:
    assert ask("validate", "asked.yaml") == (0, "asked.yaml: legal, 4 decisions\n")
    (tmp_path / "asked.yaml").write_text(SPACE.replace("define:", "define:\n  idle: 3"))
    code, told = ask("validate", "asked.yaml")
    assert code == 0 and "warning: asked.yaml:4:9: define.idle: idle is never used" in told


def test_spaces_and_specs_are_told_apart(ask, tmp_path: Path) -> None:
    assert ask("sample", "asked.yaml", "--out", ".")[0] == 0
    assert ask("validate", "asked-0.yaml") == (
        0,
        "asked-0.yaml: legal, one architecture: 2 x retention\n",
    )
    for command in ("count", "explain", "sample", "study"):
        code, told = ask(command, "asked-0.yaml")
        assert code == 2 and "asked-0.yaml: an architecture, not a space" in told
    code, told = ask("export", "asked.yaml", "--out", "out")
    assert code == 2 and "asked.yaml: a space, not an architecture; `archsearch sample" in told


def test_count_tells_size_share_and_what_rejects(ask) -> None:
    code, told = ask("count", "asked.yaml", "--draws", "30")
    assert code == 0
    assert told.startswith("asked.yaml: 6 draws, beside 1 range without a step\n")
    assert "within budget" in told and "over budget" in told and "parameters" in told


def test_sample_writes_specs_that_load(ask, tmp_path: Path) -> None:
    code, told = ask("sample", "asked.yaml", "-n", "3", "--out", "drawn", "--show")
    assert code == 0 and told.count("for each token of the vocabulary") >= 3
    files = sorted((tmp_path / "drawn").iterdir())
    assert [file.name for file in files] == [f"asked-{i}.yaml" for i in range(3)]
    assert all(load_spec(file).hash() in told for file in files)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        (
            "dim",
            ("asked.yaml:6:8 (model.dim)", "the width of everything", "one of 16, 32; default 16",
             "prior        16 75%, 32 25%", "made when    always", "of them      16 7"),
        ),
        (
            "topology/major/retention/decay/learned/half_life",
            ("a number from 2.0 to 64.0, log scale", "nine draws of ten in [4, 16]", "quartiles",
             "topology/major = retention and topology/major/retention/decay = learned"),
        ),
        ("mlp.expand", ("calculated   =dim / 16", "of them      1 7")),
        ("model.topology.major", ("one of mamba, retention", "below it     topology/major/ret")),
    ],
)  # fmt: skip
def test_explain_tells_where_when_and_what(ask, path: str, parts: tuple[str, ...]) -> None:
    code, told = ask("explain", "asked.yaml", path)
    assert code == 0
    for part in parts:
        assert part in told


def test_explain_lists_and_refuses(ask) -> None:
    code, told = ask("explain", "asked.yaml")
    assert code == 0 and told.count("asked.yaml:") == 4
    code, told = ask("explain", "asked.yaml", "topology/majr")
    assert code == 2 and "did you mean 'topology/major'?" in told
