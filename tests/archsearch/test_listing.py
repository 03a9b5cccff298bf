"""`archsearch blocks`: what it says is read off the code, and its YAML is legal."""

import inspect
import sys
from pathlib import Path

import pytest
import torch

from archsearch import build, cli, listing
from archsearch.blocks import Block, Family, Mixer
from archsearch.blocks.attention import Attention
from archsearch.blocks.retention import Retention
from archsearch.catalogue import FAMILIES, options_of
from archsearch.listing import growth, snippet, traced
from archsearch.loading import load_spec

MEMBERS = [cls for family in FAMILIES.values() for cls in family.members.values()]
T = (1024, 2048, 4096)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["archsearch", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code if isinstance(left.value.code, int) else 0


@pytest.mark.parametrize(
    ("told", "of"),
    [
        ("constant", lambda t: 7),
        ("T", lambda t: 3 * t + 100),
        ("T log T", lambda t: 3 * t * t.bit_length() + 100),
        ("T²", lambda t: t * t),
        ("T²", lambda t: 2 * t * t + 64 * t + 9),
        ("T^1.5", lambda t: int(t**1.5)),
    ],
)
def test_growth_is_read_off_three_lengths(told: str, of) -> None:
    assert growth([of(t) for t in T]) == told


def test_costs_are_traced() -> None:
    whole = traced(Attention)
    assert whole == {"train": "T²", "step": "T", "state": "512 B × T"}  # keys and values, float32
    window = traced(lambda dim: Attention(dim, window=16))
    assert window["step"] == "constant"
    assert window["state"] == "7.5 KiB"  # 15 tokens
    assert traced(Retention)["train"] == "T"
    assert traced(Retention)["state"] == "4.0 KiB"


@pytest.mark.parametrize("cls", MEMBERS, ids=lambda c: c.__name__)
def test_a_snippet_is_a_spec(cls: type[Family], tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(snippet(cls))
    with torch.device("meta"):
        model = build(load_spec(tmp_path / "spec.yaml"), vocab=8)
    assert any(isinstance(module, cls) for module in model.modules())


def test_the_list_names_every_block_and_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "blocks") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    first = {line.split()[0] for line in lines if line.strip()}
    words = {word for line in lines for word in line.split()}
    for cls in MEMBERS:
        assert cls.name in first
        for option in options_of(cls):
            assert f"{option.name}={listing.default(option)}" in words


@pytest.mark.parametrize("cls", MEMBERS, ids=lambda c: c.__name__)
def test_one_block_is_shown_whole(
    cls: type[Family], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "blocks", cls.name) == 0
    told = capsys.readouterr().out
    equations = inspect.getdoc(sys.modules[cls.__module__]) or ""
    assert all(line.rstrip() in told for line in equations.splitlines())
    assert "Args:" not in told
    assert f"type: {cls.name}" in told
    assert ("one more token" in told) == issubclass(cls, Block)
    for option in options_of(cls):
        assert f" {option.name} " in told


def test_a_name_in_two_families_is_shown_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(Mixer.members, "gate", Retention)
    assert call(monkeypatch, "blocks", "gate") == 0
    told = capsys.readouterr().out
    assert "Merge, archsearch.blocks.merge.Gate" in told
    assert "Mixer, archsearch.blocks.retention.Retention" in told


def test_a_typo_gets_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "blocks", "retentoin") == 2
    assert "no block 'retentoin'; did you mean 'retention'?" in capsys.readouterr().err
