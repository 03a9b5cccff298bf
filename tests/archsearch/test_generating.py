"""`archsearch generate`: a quick look at what a model writes."""

from pathlib import Path

import pytest
import torch

from archsearch import build, reference
from archsearch.errors import UserError
from archsearch.generating import generating
from archsearch.standalone.prompting import continued

SPEC = reference("retnet", dim=8, layers=1)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "s.yaml").write_text(SPEC.to_yaml())
    return tmp_path / "s.yaml"


def written(spec: Path, **settings: float | None) -> bytes:
    _, pieces = generating(spec, "def é", 12, trial=None, device="cpu", **settings)
    return b"".join(pieces)


def test_a_prompt_is_continued_byte_by_byte(spec: Path) -> None:
    told, pieces = generating(spec, "def é", 12, trial=None, device="cpu", seed=3)
    out = list(pieces)
    assert told == "s.yaml, untrained"
    assert len(out) == 13  # the prompt comes with the first, the last is the end of the line
    assert b"".join(out).startswith("def é".encode())
    assert len(b"".join(out)) == len("def é".encode()) + 12 + 1
    assert written(spec, seed=3) == b"".join(out)
    assert written(spec, seed=4) != b"".join(out)
    assert written(spec, seed=3, temperature=0) == written(spec, seed=4, top_k=1)


def test_tokens_that_are_no_bytes_are_ids() -> None:
    model = build(SPEC, vocab=13).eval()
    out = b"".join(continued(model, "3 12  0", 13, 4)).split()
    assert out[:3] == [b"3", b"12", b"0"]
    assert len(out) == 7
    assert all(0 <= int(token) < 13 for token in out)


@pytest.mark.parametrize(
    ("prompt", "vocab", "says"),
    [
        ("", 256, "the prompt '' is no token; it must be text"),
        ("3 13", 13, "'3 13' is no token; it must be ids below 13 with spaces between"),
        ("-1", 13, "'-1' is no token"),
        ("import", 13, "'import' is no token"),
        ("  ", 13, "'  ' is no token"),
    ],
)
def test_a_prompt_without_tokens_is_refused(prompt: str, vocab: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        next(continued(build(SPEC, vocab=vocab), prompt, vocab, 4))


def test_what_cannot_be_continued_says_why(spec: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="top_k is 0; must be 1 or more"):
        written(spec, top_k=0)
    with pytest.raises(UserError, match="a spec has no trials"):
        generating(spec, "a", 1, trial=2, device="cpu")
    with pytest.raises(UserError, match="device nowhere"):
        generating(spec, "a", 1, trial=None, device="nowhere")
    both = SPEC.model_copy(update={"causal": False})
    (tmp_path / "both.yaml").write_text(both.to_yaml())
    with pytest.raises(UserError, match="from the future too: it continues no prompt"):
        generating(tmp_path / "both.yaml", "a", 1, trial=None, device="cpu")


def test_the_command_writes_to_standard_output(
    spec: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    from archsearch import cli

    torch.manual_seed(0)
    cli.app(["generate", str(spec), "import ", "--steps", "5"], standalone_mode=False)
    out, err = capsysbinary.readouterr()
    assert out.startswith(b"import ")
    assert len(out) == len(b"import ") + 5 + 1
    assert err == b"s.yaml, untrained\n"
