"""What leaves the toolkit: the best of a study, a trial of it, a spec; or why it cannot."""

from pathlib import Path

import pytest
import torch

from archsearch import build, reference
from archsearch.errors import UserError
from archsearch.export import export
from archsearch.folder import StudyFolder
from archsearch.origin import origin_of
from archsearch.workers import save_tensors

SPEC = reference("retnet", dim=8, layers=1)
OVER = {"number": 7, "kind": "candidate", "state": "over_budget", "message": "state is 9, max is 8"}


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    """Trials 4 and 5 trained, of which 5 is the best; 6 failed, 7 was over budget."""
    folder = StudyFolder(tmp_path / "study")
    folder.write_space({"tasks": [{"type": "language"}], "train": {"steps": 3}})
    left_out = [OVER, {"number": 8, "state": "duplicate"}]
    record = {"archsearch": "0.1.0", "counts": {"proposed": 9}, "untrained": left_out}
    folder.write_record({"name": "study"} | record)
    run = {"split": "val", "tasks": {"language": {"loss": 2.5, "metrics": {}}}}
    for number in (4, 5, 6):
        torch.manual_seed(number)
        save_tensors(build(SPEC, vocab=256).state_dict(), folder.weights(number))
        metrics = {"number": number, "name": f"trial {number}", "state": "trained", "runs": [run]}
        if number == 6:
            metrics |= {"state": "failed", "message": "Diverged: loss is nan\nTraceback"}
        folder.write_trial(number, SPEC, metrics)
    folder.publish_best(5)
    return folder


def test_any_trial_that_was_trained_can_leave(study: StudyFolder, tmp_path: Path) -> None:
    best, other = origin_of(study.path), origin_of(study.path, 4)
    assert best.told == "trial 5 of the study study, trained 3 steps on language"
    assert other.told.startswith("trial 4 of")
    for number, origin in ((5, best), (4, other)):
        torch.manual_seed(number)
        expected = build(SPEC, vocab=256).state_dict()
        found = origin.model().state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    folder = export(study.path, tmp_path / "fourth", trial=4)
    assert "trial 4 of the study study" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (6, r"trial 6 is failed \(Diverged: loss is nan\), so it has no weights"),
        (7, r"trial 7 is over budget \(state is 9, max is 8\), so it has no weights"),
        (8, "trial 8 is duplicate, so it has no weights"),
        (99, "trial 99 is none of its trials"),
    ],
)
def test_a_trial_without_weights_says_why(study: StudyFolder, number: int, says: str) -> None:
    with pytest.raises(UserError, match=f"{says}; trained are 4, 5$"):
        origin_of(study.path, number)


def test_a_spec_has_no_trials(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SPEC.to_yaml())
    with pytest.raises(UserError, match="a spec has no trials; leave --trial out"):
        origin_of(tmp_path / "s.yaml", 3)


@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "header", "another"])
def test_weights_that_are_missing_or_damaged_are_named(
    study: StudyFolder, tmp_path: Path, harm: str
) -> None:
    """And nothing is half written."""
    path = study.weights(5)
    data = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "another":
        save_tensors(build(SPEC, vocab=7).state_dict(), path)
    else:
        kept = {"empty": b"", "cut": data[:-10], "header": b"\xff" * 50 + data[50:]}
        path.write_bytes(kept[harm])
    with pytest.raises(UserError, match=r"5/model.safetensors: missing or damaged \(.+put it back"):
        export(study.path, tmp_path / "m")
    assert {p.name for p in tmp_path.iterdir()} == {"study"}
