"""A key is of everything that a score depends on; a study goes on only with the same sources."""

from pathlib import Path

import pytest

from archsearch import load_space, provenance, reference, source, task
from archsearch.driver import Driver
from archsearch.engines import Local
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.provenance import score_key, source_versions
from archsearch.spec import ModelSpec
from archsearch.training import Run, Training, train

SPEC = reference("retnet", dim=16, layers=1)
TASK = task("in_context_recall", vocab=8, length=16, batch=4)
OTHER = task("in_context_recall", vocab=8, length=16, batch=5)
LONGER = Training(steps=7)
SPACE = """archsearch: 1
name: tiny
model: {dim: 16, layers: 1, topology: {type: interleave, major: {choice: [retention, mamba]}}}
tasks: [{type: in_context_recall, vocab: 8, length: 16, batch: 4}]
"""


def edit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a file of ours had another text."""
    read = source.source_text

    def edited(asked: str) -> str | None:
        return f"{read(asked)}# edited\n" if asked == name else read(asked)

    for module in (source, provenance):
        monkeypatch.setattr(module, "source_text", edited)


def test_a_key_is_of_everything() -> None:
    keys = [
        score_key(SPEC, [TASK], Training(), 0, "val"),
        score_key(reference("retnet", dim=16, layers=2), [TASK], Training(), 0, "val"),
        score_key(SPEC, [OTHER], Training(), 0, "val"),
        score_key(SPEC, [TASK], LONGER, 0, "val"),
        score_key(SPEC, [TASK], Training(), 1, "val"),
        score_key(SPEC, [TASK], Training(), 0, "test"),
    ]
    assert len({*keys}) == len(keys)
    words = [
        {"type": "parallel", "branches": [{"type": "retention", "key_heads": 4}]},
        {"type": "interleave", "major": "retention"},
    ]
    specs = [ModelSpec.model_validate({"dim": 16, "layers": 1, "topology": top}) for top in words]
    assert len({score_key(spec, [TASK], LONGER, 0, "val") for spec in specs}) == 1


def test_a_key_is_of_the_sources_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks, what they import, the kernels below; no other."""
    used = set(source_versions(SPEC))
    assert used >= {"blocks/retention.py", "blocks/decay.py", "blocks/gate.py", "kernels/scan.py"}
    assert "blocks/mamba.py" not in used
    before = score_key(SPEC, [TASK], Training(), 0, "val")
    for name, changes in (("kernels/scan.py", True), ("blocks/mamba.py", False)):
        with monkeypatch.context() as patch:
            edit(name, patch)
            assert (score_key(SPEC, [TASK], Training(), 0, "val") != before) == changes


def test_a_study_goes_on_with_the_same_sources_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the files and the trials; what has no versions yet is of an older study."""
    (tmp_path / "tiny.yaml").write_text(SPACE)
    folder = StudyFolder(tmp_path / "s")
    driver = Driver(load_space(tmp_path / "tiny.yaml"), folder, Local("cpu"))
    runs = [{"sources": source_versions(SPEC)}, {}]
    for number in (3, 4):
        folder.write_trial(number, SPEC, {"number": number, "runs": runs})
    driver.preflight()
    edit("kernels/scan.py", monkeypatch)
    with pytest.raises(UserError, match=r"another version of kernels/scan.py \(trials 3, 4\); sco"):
        driver.preflight()


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The checkpoint of a trial that was stopped half way, in a study that has no other."""
    file = tmp_path / "s" / "trials" / "7" / "in_context_recall-0.008-0.checkpoint"
    run = Run(SPEC, TASK, Training(), 8e-3, 0, "cpu")
    run.learn(lambda step, loss: None)
    run.save(file)
    return file


MIXED = r"0.checkpoint: saved .*with another version of kernels/scan.py; a training by two versions"


def test_a_training_goes_on_with_the_same_sources_only(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was saved is left as it is, for who goes back to them."""
    before = stopped.read_bytes()
    with monkeypatch.context() as patch:
        edit("blocks/mamba.py", patch)  # of which it has nothing
        Run(SPEC, TASK, Training(), 8e-3, 0, "cpu").load(stopped)
    edit("kernels/scan.py", monkeypatch)
    with pytest.raises(UserError, match=f"{MIXED} is one by neither. Go back to that one, or del"):
        train(SPEC, TASK, Training(), seed=0, checkpoint=stopped)
    assert stopped.read_bytes() == before


def test_a_study_looks_at_its_checkpoints_first(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.yaml").write_text(SPACE)
    driver = Driver(load_space(tmp_path / "tiny.yaml"), StudyFolder(tmp_path / "s"), Local("cpu"))
    driver.preflight()
    edit("kernels/scan.py", monkeypatch)
    with pytest.raises(
        UserError, match=f"{MIXED} is one by neither. Go back to the commit or vers"
    ):
        driver.preflight()
    stopped.unlink()  # as it says
    driver.preflight()
