"""What the pages of docs/ say runs: their files, the check, the spaces, the links."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from archsearch import build, load_space, plugins, study
from archsearch.checking import check, find_block
from archsearch.errors import SpecError, UserError
from archsearch.export import export
from archsearch.folder import StudyFolder
from archsearch.tasks import benchmarks
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


@pytest.mark.parametrize("name", ["blocks", "tasks", "data", "search"])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / "docs" / f"{name}.md"
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
    assert f"docs/{name}.md" in (ROOT / "README.md").read_text()
    assert f"docs/{name}.md" in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_spaces_of_the_search_are_legal(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    found = re.findall(r"```yaml\n(.*?)```", text, re.S)
    assert len(found) == 2
    for space in found:
        (tmp_path / "space.yaml").write_text(space)
        assert load_space(tmp_path / "space.yaml").file.search.eta == 3


@pytest.fixture
def delays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The space of docs/tasks.md beside its task, in the working folder."""
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (code,), (space,) = (
        re.findall(rf"```{kind}\n(.*?)```", text, re.S) for kind in ("python", "yaml")
    )
    Path("delay.py").write_text(code)
    Path("delays.yaml").write_text(space)
    yield space
    for name in list(plugins._loaded):
        plugins.forget(name)


def test_a_task_of_ones_own_is_searched_with_and_exported(delays: str) -> None:
    result = study(load_space("delays.yaml"), out="out", workers=1)
    assert result.counts["trained"] == 2
    found = [t["speed"] for t in StudyFolder(result.folder).read_trials() if "speed" in t]
    assert found
    assert all("train" in speed for speed in found)  # a worker that trained nothing knows it, too
    record = json.loads((result.folder / "record.json").read_text())
    floor = record["tasks"]["delay"]["floors"]["the token just read"]["accuracy"]
    assert floor == pytest.approx(1 / 8, abs=0.02)
    export(result.folder, "mine")
    assert json.loads(Path("mine/config.json").read_text())["reads"]["vocab"] == 8
    Path("delay.py").write_text(Path("delay.py").read_text() + "# changed\n")
    with pytest.raises(UserError, match=r"the name 'delay' is taken by"):
        study(load_space("delays.yaml"), out="out", workers=1)


def test_a_wrong_option_of_ones_own_task_is_told_at_its_place(delays: str) -> None:
    for wrong, message in (
        ("{type: delay, lag: 32}", r"delays.yaml:8:9: tasks\[0\]: lag 32: must be below length"),
        ("{type: delay, lagg: 3}", r"unknown key 'lagg'; did you mean 'lag'\? allowed: batch, "),
        ("{type: dely}", r"unknown type 'dely'; did you mean 'delay'\?"),
    ):
        Path("delays.yaml").write_text(delays.replace("{type: delay, lag: 3}", wrong))
        with pytest.raises(SpecError, match=message):
            load_space("delays.yaml")


def test_a_name_that_is_taken_is_refused(delays: str) -> None:
    Path("delay.py").write_text(Path("delay.py").read_text().replace('"delay"', '"language"'))
    with pytest.raises(UserError, match=r"the name 'language' is taken by archsearch\.tasks"):
        load_space("delays.yaml")


def test_spaces_over_data_are_legal(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    spaces = re.findall(r"```yaml\n(.*?)```", page, re.S)
    assert len(spaces) == 2
    for text in spaces:
        (tmp_path / "space.yaml").write_text(text, encoding="utf-8")
        (task,) = load_space(tmp_path / "space.yaml").file.tasks
        assert task.model_dump()["data"].startswith("hub:")
    named = set(re.findall(r"`hub:([^`]+)`", page)) - {"NAME", "NAME:CONFIG"}
    assert {name for name in named if benchmarks.known(name) is None} == {
        "stanfordnlp/imdb",
        "uoft-cs/cifar10",
    }
