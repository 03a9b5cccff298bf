"""A study end to end on a tiny space: what is trained, what is not, what survives being stopped."""

import json
import multiprocessing
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage

from archsearch import load_space, load_spec, reference, speed, study
from archsearch.blocks import ChannelMixer, Family, Merge, Mixer
from archsearch.driver import Driver
from archsearch.durable import write_atomic
from archsearch.engines import Local
from archsearch.errors import NoFeasibleCandidate, UserError
from archsearch.folder import StudyFolder
from archsearch.ledger import ATTRIBUTE, Entry, Ledger
from archsearch.preflight import first_difference
from archsearch.proposing import Proposer
from archsearch.search import Result
from archsearch.space import Space
from archsearch.standalone.weights import load_weights
from archsearch.status import Status
from archsearch.workers import Failed

SPACE = """# tiny
archsearch: 1
name: tiny
define:
  mixer: {choice: [$retention, $mamba, $attention]}
  retention: {type: retention, heads: {choice: [2, 4]}}
  mamba: {type: mamba, state: 4, expand: {choice: [1, 2]}}
  attention: {type: attention, heads: 2}
model:
  dim: 16
  layers: 1
  topology: {type: parallel, branches: [$mixer, $mixer], merge: {choose: {sum: {}, gate: {}}}}
budgets: {parameters: {max: MAXIMUM}}
tasks:
  - {type: in_context_recall, vocab: 8, length: 16, batch: 4, extrapolate: [2]}
train: {steps: 12, rungs: [6], lr: RATE}
baselines: [retnet, transformer]
search: {sampler: random, trials: 3, eta: null}
final: {top: 1, seeds: 1}
"""


def tiny(folder: Path, *, maximum: str = "6k", rate: str = "8e-3", dim: str = "16") -> Space:
    text = SPACE.replace("MAXIMUM", maximum).replace("RATE", rate).replace("dim: 16", f"dim: {dim}")
    (folder / "tiny.yaml").write_text(text)
    return load_space(folder / "tiny.yaml")


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    """Measures for a moment only: here it matters who is measured, not how well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "ALLOWANCE", 0.3)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, list[str]]:
    """One study, run to its end, and what its watcher was told."""
    root = tmp_path_factory.mktemp("study")
    phases: list[str] = []

    def watch(status: Status) -> None:
        phases.append(status.phase)
        assert status.phase != "speed" or len(multiprocessing.active_children()) <= 1

    return study(tiny(root), out=root / "out", workers=2, watch=watch), phases


def test_a_study_trains_what_it_says(done: tuple[Result, list[str]]) -> None:
    result, phases = done
    folder = StudyFolder(result.folder)
    trials = folder.read_trials()
    assert [t["name"] for t in trials if t["kind"] == "baseline"] == ["retnet", "transformer"]
    candidates = [t for t in trials if t["kind"] == "candidate"]
    assert len(candidates) == 3
    assert len({t["hash"] for t in candidates}) == 3
    for trial in trials:
        assert trial["state"] == "trained"
        assert trial["cost"]["parameters"] <= 6000
        run = trial["runs"][0]
        assert (run["seed"], run["split"]) == (0, "val")
        assert trial["loss"] == run["loss"] == run["tasks"]["in_context_recall"]["loss"]
        assert folder.read_spec(trial["number"]).hash() == trial["hash"]
    best = min(candidates, key=lambda t: t["loss"])
    assert result.best_entry is not None
    assert result.best_entry.number == best["number"]
    retrained = {t["name"] for t in trials if any(r["split"] == "test" for r in t["runs"])}
    assert retrained == {best["name"], "retnet", "transformer"}
    assert list(dict.fromkeys(phases)) == ["search", "final", "speed", "finished"]
    assert {t["name"] for t in trials if "train" in t.get("speed", {})} == retrained


EVERYTHING = """archsearch: 1
name: everything
model:
  dim: 16
  layers: 1
  mlp: {choice: MLPS}
  topology: {type: parallel, branches: [{choice: MIXERS}, short_conv], merge: {choice: MERGES}}
tasks: [TASK]
train: {steps: 2}
baselines: []
search: {sampler: random, trials: COUNT}
final: {top: 1, seeds: 1}
"""


RECALL = "{type: in_context_recall, vocab: 8, length: 16, batch: 4, extrapolate: [2]}"
DIGITS = "{type: sequential_digits, batch: 4}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "causal"), [(Mixer, True), (Mixer, False), (Merge, True), (ChannelMixer, True)]
)
def test_every_block_runs_inside_a_study(
    family: type[Family], causal: bool, tmp_path: Path
) -> None:
    """A study of each family, whose every member is proposed and trained."""
    members = family.members.items()
    names = [n for n, cls in members if getattr(cls, "causal", True) == causal]
    text = EVERYTHING.replace("COUNT", str(len(names))).replace(
        "TASK", RECALL if causal else DIGITS
    )
    text = text if causal else text.replace("model:", "model:\n  causal: false")
    for key, of, plain in (
        ("MIXERS", Mixer, "gru"),
        ("MERGES", Merge, "sum"),
        ("MLPS", ChannelMixer, "mlp"),
    ):
        text = text.replace(key, str(names if of is family else [plain]))
    (tmp_path / "everything.yaml").write_text(text)
    result = study(load_space(tmp_path / "everything.yaml"), out=tmp_path / "out", workers=2)
    assert result.counts["trained"] == len(names), result.counts


def test_best_is_a_whole_trial(done: tuple[Result, list[str]]) -> None:
    result, _ = done
    assert result.best is not None
    assert load_spec(result.folder / "best" / "spec.yaml") == result.best
    assert len(load_weights(result.folder / "best" / "model.safetensors")) > 5
    metrics = json.loads((result.folder / "best" / "metrics.json").read_text())
    assert metrics["hash"] == result.best.hash()
    hidden = {p.name for p in result.folder.iterdir() if p.name.startswith(".")}
    assert hidden == {".lock"}


def test_the_ledger_counts_every_proposal(done: tuple[Result, list[str]]) -> None:
    """Optuna's trials, the record and the result tell the same story."""
    result, _ = done
    record = StudyFolder(result.folder).read_record()
    stored = optuna.load_study(study_name="tiny", storage=f"sqlite:///{result.folder / 'study.db'}")
    counts = record["counts"]
    assert counts == result.counts
    parts = ("trained", "pruned", "failed", "over_budget", "duplicate", "invalid", "unfinished")
    assert counts["proposed"] == len(stored.trials) == sum(counts[p] for p in parts)
    assert (
        counts["over_budget_by"] == {"parameters": counts["over_budget"]}
        or not counts["over_budget"]
    )
    for trial in stored.trials:
        entry = Entry(**trial.user_attrs[ATTRIBUTE])
        if entry.state == "over_budget":
            assert trial.state == optuna.trial.TrialState.PRUNED
            assert trial.constraints["parameters"] > 0
        if entry.state == "trained":
            assert trial.value == entry.loss
    assert record["finished"] is not None
    assert set(record["tasks"]["in_context_recall"]["floors"]) == {"most frequent value so far"}
    assert len(record["untrained"]) == counts["proposed"] - counts["trained"]


def test_the_same_command_finds_nothing_left_to_do(done: tuple[Result, list[str]]) -> None:
    result, _ = done
    before = StudyFolder(result.folder).read_trials()
    again = study(tiny(result.folder.parent), out=result.folder, workers=1)
    assert again.counts == result.counts
    assert StudyFolder(result.folder).read_trials() == before


def test_another_space_is_refused(done: tuple[Result, list[str]]) -> None:
    result, _ = done
    other = tiny(result.folder.parent, dim="24")
    with pytest.raises(
        UserError, match=r"another space; they differ first at model.dim \(16 there, 24"
    ):
        study(other, out=result.folder)


def test_a_study_that_is_running_is_locked(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    with folder.locked(), pytest.raises(UserError, match="another process is running this study"):
        study(tiny(tmp_path), out=tmp_path / "s")


class Stop(KeyboardInterrupt):
    """Stands for Ctrl-C."""


def test_a_stopped_study_goes_on(done: tuple[Result, list[str]], tmp_path: Path) -> None:
    """Stopped after the first result; resumed, it holds what an undisturbed study holds."""

    def stop(status: Status) -> None:
        if status.ledger.having("trained"):
            raise Stop

    with pytest.raises(Stop):
        study(tiny(tmp_path), out=tmp_path / "s", workers=2, watch=stop)
    folder = StudyFolder(tmp_path / "s")
    kept = folder.read_trials()
    assert kept
    assert folder.read_record()["counts"]["unfinished"] >= 1
    result = study(tiny(tmp_path), out=tmp_path / "s", workers=2)
    after = {t["number"]: t for t in folder.read_trials()}
    for trial in kept:
        assert after[trial["number"]]["runs"][0] == trial["runs"][0]
    assert result.counts["unfinished"] == 0
    numbers = [t["number"] for t in after.values() if t["kind"] == "candidate"]
    assert len(numbers) == 3
    undisturbed = {t["hash"]: t["loss"] for t in StudyFolder(done[0].folder).read_trials()}
    for trial in after.values():  # the same architecture has the same loss, whatever happened
        assert undisturbed.get(trial["hash"], trial["loss"]) == trial["loss"]


def speeds(folder: StudyFolder) -> dict[int, Any]:
    """What was measured, by trial."""
    return {t["number"]: t["speed"] for t in folder.read_trials() if "speed" in t}


def test_each_finalist_is_measured_once_and_alone(
    done: tuple[Result, list[str]], tmp_path: Path
) -> None:
    """Stopped after the first, and gone on with: the first is kept, the others follow."""
    shutil.copytree(done[0].folder, tmp_path / "s")
    folder = StudyFolder(tmp_path / "s")
    finalists = set(speeds(folder))
    for number in finalists:
        trial = folder.read_trial(number)
        assert trial is not None
        del trial["speed"]
        folder.write_trial(number, folder.read_spec(number), trial)
    alive: list[int] = []

    def stop(status: Status) -> None:
        assert status.phase == "speed"
        alive.append(len(multiprocessing.active_children()))
        if speeds(folder):
            raise Stop

    with pytest.raises(Stop):
        study(tiny(tmp_path), out=folder.path, workers=2, watch=stop)
    kept = speeds(folder)
    assert len(kept) == 1
    assert max(alive) == 1
    numbers: list[set[int]] = []

    def note(status: Status) -> None:
        numbers.append({number for number, _ in status.running})

    study(tiny(tmp_path), out=folder.path, workers=2, watch=note)
    assert set().union(*numbers) == finalists - set(kept)
    assert max(map(len, numbers)) == 1
    assert set(speeds(folder)) == finalists
    assert speeds(folder).items() >= kept.items()


def test_a_measurement_that_fails_is_kept_with_its_reason(
    done: tuple[Result, list[str]], tmp_path: Path
) -> None:
    shutil.copytree(done[0].folder, tmp_path / "s")
    driver = Driver(tiny(tmp_path), StudyFolder(tmp_path / "s"), Local("cpu"))
    driver.open(RDBStorage(driver.folder.storage))
    number = next(iter(speeds(driver.folder)))
    trial = driver.folder.read_trial(number)
    assert trial is not None
    del trial["speed"]
    driver.folder.write_trial(number, driver.folder.read_spec(number), trial)
    (job,) = driver.jobs.speed(driver.ledger)
    counted, driver.running[number, job.seed] = driver.jobs_done, None
    driver.hear(Failed(job, "died", "the worker process ended with signal SIGKILL"))
    after = driver.folder.read_trial(number)
    assert after == trial | {"speed": {"left_out": "the worker process ended with signal SIGKILL"}}
    assert driver.jobs_done == counted
    assert driver.running == {}
    assert [*driver.jobs.speed(driver.ledger)] == []


def test_a_result_that_the_storage_never_heard_of_is_not_lost(tmp_path: Path) -> None:
    """Killed between the folder and the storage: the metrics on disk count."""
    driver = Driver(tiny(tmp_path), StudyFolder(tmp_path / "s"), Local("cpu"))
    driver.folder.path.mkdir()
    driver.open(RDBStorage(driver.folder.storage))
    entry = driver.proposer.next()
    assert entry is not None
    spec = reference("retnet", dim=16, layers=1)
    trial = driver._new_trial(entry) | {"state": "trained", "loss": 1.5}
    driver.folder.write_trial(entry.number, spec, trial)
    again = Driver(tiny(tmp_path), StudyFolder(tmp_path / "s"), Local("cpu"))
    again.open(RDBStorage(again.folder.storage))
    assert again.left_over == []
    assert again.ledger.entries[entry.number].state == "trained"
    assert again.proposer.trials.stored.trials[0].value == 1.5


def test_failures_are_kept_with_their_cause(tmp_path: Path) -> None:
    """A learning rate out of this world: every run diverges, the study goes on to its end."""
    result = study(tiny(tmp_path, rate="1e30"), out=tmp_path / "s", workers=1, trials=1)
    assert result.best is None
    assert result.counts["failed"] == 3
    assert result.counts["failed_by"] == {"diverged": 3}
    for trial in StudyFolder(tmp_path / "s").read_trials():
        assert trial["state"] == "failed"
        assert re.search("loss is (nan|inf)", trial["message"])


def test_a_budget_nothing_meets(tmp_path: Path) -> None:
    with pytest.raises(
        NoFeasibleCandidate, match=r"none of 200 .* budgets.parameters.max = 10 rejects 200"
    ):
        study(tiny(tmp_path, maximum="10"), out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def proposer(space: Space, trials: int = 50) -> Proposer:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Proposer(space, optuna.create_study(), seed=0, trials=trials)


def test_a_small_space_is_exhausted(tmp_path: Path) -> None:
    """Two decisions left: every architecture is let through once, repeats are duplicates."""
    text = SPACE.replace("MAXIMUM", "60k").replace("RATE", "8e-3")
    text = text.replace(
        "{choice: [$retention, $mamba, $attention]}", "{choice: [$attention, mamba]}"
    )
    (tmp_path / "s.yaml").write_text(text)
    asking = proposer(load_space(tmp_path / "s.yaml"))
    entries = []
    while (entry := asking.next()) is not None:
        entries.append(entry)
    assert asking.exhausted
    candidates = [e.hash for e in entries if e.kind == "candidate"]
    assert len(set(candidates)) == len(candidates) == 6  # 3 pairs without order x 2 merges
    assert len(asking.ledger.having("duplicate")) >= 200


def test_a_duplicate_gets_the_score_of_its_twin(tmp_path: Path) -> None:
    asking = proposer(tiny(tmp_path, maximum="60k"), trials=10)
    entry = asking.next()
    while entry is not None and entry.kind == "baseline":
        entry = asking.next()
    assert entry is not None
    entry.state, entry.loss = "trained", 0.75
    asking.settle(entry, optuna.trial.TrialState.COMPLETE, (0.75,))
    while (
        not (twins := asking.ledger.having("duplicate")) or twins[-1].duplicate_of != entry.number
    ):
        assert asking._candidate(None) is None or len(asking.ledger.entries) < 2000
    twin = asking.trials.stored.trials[twins[-1].number]
    assert (twin.value, twin.state) == (0.75, optuna.trial.TrialState.COMPLETE)


def test_the_ledger_survives_the_storage(tmp_path: Path) -> None:
    asking = proposer(tiny(tmp_path))
    for _ in range(4):
        asking.next()
    again = Ledger(asking.trials.stored.get_trials())
    assert again.entries == asking.ledger.entries


def test_differences_are_found_where_they_are() -> None:
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) is None
    assert (
        first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == "a[1].b (2 there, 3 here)"
    )
    assert first_difference({"a": 1}, {"a": True}) == "a (1 there, True here)"
    assert first_difference({"a": 1}, {}) == "a (1 there, None here)"
    assert first_difference([1], [1, 2]) == " ([1] there, [1, 2] here)"


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "a.json", "new \udcff")
    assert (tmp_path / "a.json").read_text() == "old"


def test_a_storage_without_its_folder_is_refused(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    first = Driver(tiny(tmp_path), StudyFolder(tmp_path / "a"), Local("cpu"))
    first.open(RDBStorage(storage))
    entry = first.proposer.next()
    assert entry is not None
    spec = reference("retnet", dim=16, layers=1)
    trial = first._new_trial(entry) | {"state": "trained", "loss": 1.5}
    first.folder.write_trial(entry.number, spec, trial)
    first.close(entry, trial)
    other = Driver(tiny(tmp_path), StudyFolder(tmp_path / "b"), Local("cpu"))
    with pytest.raises(UserError, match=r"shared.db: its study has trials \[0\] that"):
        other.open(RDBStorage(storage))


def test_a_folder_of_another_study_is_left_as_it_was(tmp_path: Path) -> None:
    """The same numbers, other architectures: nothing is written, and no trial has their losses."""
    trials = {}
    for name, dim in (("a", 24), ("b", 16)):
        driver = Driver(tiny(tmp_path), StudyFolder(tmp_path / name), Local("cpu"))
        driver.open(RDBStorage(f"sqlite:///{tmp_path / name}.db"))
        entry = driver.proposer.next()
        assert entry is not None
        spec = reference("retnet", dim=dim, layers=1)
        trials[name] = driver._new_trial(entry) | {"state": "trained", "hash": spec.hash()}
        driver.folder.write_trial(entry.number, spec, trials[name] | {"loss": 1.5})
    wrong = Driver(tiny(tmp_path), StudyFolder(tmp_path / "a"), Local("cpu"))
    with pytest.raises(UserError, match=r"its trials \[0\] are other architectures than those of"):
        wrong.open(RDBStorage(f"sqlite:///{tmp_path / 'b'}.db"))
    empty = Driver(tiny(tmp_path), StudyFolder(tmp_path / "c"), Local("cpu"))
    entry.state, entry.loss = "trained", 1.5
    driver.proposer.settle(entry, optuna.trial.TrialState.COMPLETE, (1.5,))
    with pytest.raises(UserError, match=r"its study has trials \[0\] that"):
        empty.open(RDBStorage(f"sqlite:///{tmp_path / 'b'}.db"))
    assert not (tmp_path / "c" / "space.yaml").exists()


def test_another_study_that_began_meanwhile_is_found(tmp_path: Path) -> None:
    """Between the check before a wait for others and the beginning."""
    late = Driver(tiny(tmp_path), StudyFolder(tmp_path / "s"), Local("cpu"), seed=7)
    late.preflight()
    (tmp_path / "s").mkdir()
    first = Driver(tiny(tmp_path), StudyFolder(tmp_path / "s"), Local("cpu"))
    first.open(RDBStorage(first.folder.storage))
    with pytest.raises(
        UserError, match="holds a study of another space; they differ first at seed"
    ):
        late.open(RDBStorage(late.folder.storage))


@pytest.mark.parametrize(
    "url", ["nonsense", "postgresql://nobody@127.0.0.1:1/x", "sqlite:////no/such/folder/x.db"]
)
def test_a_storage_that_cannot_be_opened(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"storage .*; check the URL and its driver"):
        study(tiny(tmp_path), out=tmp_path / "s", storage=url)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"address": "a:1"}, "--address a:1: of a Ray cluster; add --engine ray"),
        ({"gpus_per_trial": 0.5}, "--gpus-per-trial 0.5: of a Ray cluster and --device cuda"),
        ({"engine": "ray", "gpus_per_trial": 0.5}, "--gpus-per-trial 0.5: of a Ray cluster and"),
    ],
)
def test_what_an_engine_has_no_use_for_is_refused(told: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        study(tiny(tmp_path), out=tmp_path / "s", **told)


def test_a_soft_budget_is_trained_and_told(tmp_path: Path) -> None:
    space = tiny(tmp_path, maximum="10, soft: true")
    asking = proposer(space)
    entry = asking.next()
    assert entry is not None and entry.state == "training"
    constraints = asking.trials.stored.trials[entry.number].constraints
    assert constraints == {"parameters": entry.cost["parameters"] / 10 - 1}


def test_each_candidate_has_the_learning_rate_of_its_lowest_loss(tmp_path: Path) -> None:
    """Chosen on validation, once; the final runs take it as it is. One that diverges is none."""
    space = tiny(tmp_path, rate="[1e-9, 8e-3, 1e30]")
    result = study(space, out=tmp_path / "out", workers=2, trials=1)
    finals: list[dict] = []
    for trial in StudyFolder(result.folder).read_trials():
        search, *finals = trial["runs"]
        losses = dict(search["losses_by_lr"])
        assert (
            search["lr"] == 8e-3 == min((r for r in losses if losses[r]), key=lambda r: losses[r])
        )
        assert losses[1e30] is None or losses[1e30] > losses[8e-3]
        assert search["loss"] == losses[8e-3] < losses[1e-9]
        assert [run["losses_by_lr"] for run in finals] == [[[8e-3, run["loss"]]] for run in finals]
    assert len(finals) == 1
    assert not [*(tmp_path / "out").rglob("*.checkpoint")]


def test_a_trained_model_is_held_to_its_budgets(
    done: tuple[Result, list[str]], tmp_path: Path
) -> None:
    result, _ = done
    for trial in StudyFolder(result.folder).read_trials():
        search, *finals = trial["runs"]
        assert search["measured"] == {"parameters": trial["cost"]["parameters"]}
        assert all(run["measured"] == {} for run in finals)
        assert trial["breaches"] == []
    soft = study(tiny(tmp_path, maximum="10, soft: true"), out=tmp_path / "s", workers=1, trials=1)
    for trial in StudyFolder(soft.folder).read_trials():
        (breach,) = trial["breaches"]
        cost = trial["cost"]["parameters"]
        assert breach == {"budget": "parameters", "cost": cost, "max": 10, "reason": None}


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("record.json", "another folder"),
        ("trials/0/metrics.json", "another folder"),
        ("trials/9/recall-0.008-0.checkpoint", "delete it"),
        ("study.db", "check the URL"),
    ],
)
def test_a_damaged_file_is_named(
    name: str, remedy: str, done: tuple[Result, list[str]], tmp_path: Path
) -> None:
    shutil.copytree(done[0].folder, tmp_path / "s")
    path = tmp_path / "s" / name
    path.parent.mkdir(exist_ok=True)
    whole = path.read_bytes() if path.exists() else b""
    path.write_bytes(b"\x00" * 100 + whole[: len(whole) // 2])
    with pytest.raises(UserError, match=remedy) as told:
        study(tiny(tmp_path), out=tmp_path / "s")
    assert str(path.name) in str(told.value)
