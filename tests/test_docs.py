"""What docs/blocks.md says runs: its file, its check, its space, its links."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from archsearch import build, load_space, plugins
from archsearch.checking import check, find_block
from archsearch.training import train

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "blocks.md"
TEXT = PAGE.read_text(encoding="utf-8")
(CODE,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
(SPACE,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    Path("moving_average.py").write_text(CODE)
    Path("averages.yaml").write_text(SPACE)
    yield tmp_path
    for name in list(plugins._loaded):
        plugins.forget(name)


def test_the_example_holds_every_law(home: Path) -> None:
    (block,) = re.findall(r"^archsearch check (\S+)", TEXT, re.M)
    broken = [verdict.law for verdict in check(find_block(block)) if verdict.broken]
    assert broken == []


def test_the_example_trains_in_its_space(home: Path) -> None:
    space = load_space("averages.yaml")
    spec = space.decide(lambda name, domain: domain.alternatives()[-1])
    assert spec.summary() == "2 x moving_average"
    outcome = train(
        spec, space.file.tasks[0], space.file.train, seed=0, split="val", device="cpu"
    )  # fmt: skip
    assert outcome.evaluation.loss < 3
    model = build(spec, vocab=8)
    assert model(torch.zeros(1, 5, dtype=torch.long))[0].shape == (1, 5, 8)


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (PAGE.parent / link).exists(), link
    assert "docs/blocks.md" in (ROOT / "README.md").read_text()
    assert "docs/blocks.md" in (ROOT / "CONTRIBUTING.md").read_text()
