"""What can be known to be wrong before a study writes anything or trains anyone."""

import pickle
import random
from collections import Counter
from typing import Any

import torch

from archsearch.errors import ConstraintBroken, NoFeasibleCandidate, SpecError, UserError
from archsearch.folder import StudyFolder
from archsearch.ledger import Ledger
from archsearch.provenance import changed_sources
from archsearch.space import Space
from archsearch.spec import ModelSpec
from archsearch.training import SAVED

DRAWS = 200
"""Random candidates tried before a space is said to hold none within its budgets."""


def require_device(device: str) -> None:
    """UserError when torch cannot put a tensor there."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's own way to say there is no CUDA
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device}: {reason}; use --device cpu, or one you have") from None


def feasible(space: Space, seed: int, count: int = 1) -> list[ModelSpec]:
    """The first distinct draws within the budgets: `count`, or fewer if DRAWS have no more.

    Raises:
        NoFeasibleCandidate: they have none; it says what rejects most.
    """
    rng, rejections = random.Random(seed), Counter[str]()
    found: dict[str, ModelSpec] = {}
    for _ in range(DRAWS):
        try:
            spec = space.decide(lambda _, domain: domain.draw(rng))
        except ConstraintBroken as error:
            rejections[f"constraint {error.constraint!r}"] += 1
            continue
        except SpecError:
            rejections["the sizes of blocks"] += 1
            continue
        excess = space.file.budgets.screen(spec, space.file.ends).excess  # what needs no clock
        if excess is not None:
            rejections[f"budgets.{excess.budget}.max = {excess.max}"] += 1
            continue
        found.setdefault(spec.hash(), spec)
        if len(found) == count:
            break
    if found:
        return [*found.values()]
    told = ", ".join(f"{name} rejects {n}" for name, n in rejections.most_common())
    raise NoFeasibleCandidate(
        f"{space.name}: none of {DRAWS} random candidates is feasible: {told}. Raise the budget "
        "or loosen the rule that rejects most, or make the space smaller (dim, layers, expand)"
    )


def require_same_space(folder: StudyFolder, here: dict[str, Any]) -> None:
    """UserError when the folder holds a study of another space; more trials only extend one."""
    if (there := folder.read_space()) is None:
        return
    there, here = (data | {"search": data["search"] | {"trials": None}} for data in (there, here))
    if (path := first_difference(there, here)) is not None:
        raise UserError(
            f"{folder.path}: holds a study of another space; they differ first at {path}. "
            "Choose another folder with --out, or delete this one"
        )


def require_same_trials(folder: StudyFolder, ledger: Ledger, url: str) -> None:
    """UserError when a storage and a folder are of two studies."""
    hashes = {trial["number"]: trial["hash"] for trial in folder.read_trials()}
    there = hashes.keys()
    missing, unknown = ledger.numbers("trained") - there, there - ledger.entries.keys()
    others = [n for n in there & ledger.entries.keys() if hashes[n] != ledger.entries[n].hash]
    if others:
        raise UserError(
            f"{folder.path}: its trials {sorted(others)} are other architectures than those of "
            f"{url}; name the storage it was run with by --storage, or another folder"
        )
    if missing:
        raise UserError(
            f"{url}: its study has trials {sorted(missing)} that {folder.path} has not; name the "
            "folder it was run in with --out, or another storage"
        )
    if unknown:
        raise UserError(
            f"{folder.path}: has trials {sorted(unknown)} that {url} does not know; name the "
            "storage it was run with by --storage, or another folder"
        )


def require_same_blocks(folder: StudyFolder, space: Space) -> None:
    """UserError when a file of blocks is not what the study began with."""
    for name, file in space.blocks.items():
        kept = folder.path / name
        if kept.exists() and kept.read_text(encoding="utf-8") != file.text:
            raise UserError(
                f"{file.path}: changed since {folder.path} began with it ({kept}); trials of two "
                "blocks do not compare. Choose another folder with --out, or undo the change"
            )


def require_same_sources(folder: StudyFolder) -> None:
    """UserError when a block or kernel of ours is not what a trial was trained with."""
    trials: dict[str, set[int]] = {}
    for trial in folder.read_trials():
        waiting = [trial["waiting"]] if "waiting" in trial else []
        for run in [*trial["runs"], *waiting]:
            for name in changed_sources(run.get("sources", {})):
                trials.setdefault(name, set()).add(trial["number"])
    if trials:
        told = ", ".join(f"{name} (trials {str(sorted(n))[1:-1]})" for name, n in trials.items())
        raise UserError(
            f"{folder.path}: trained with another version of {told}; scores of two versions do not "
            "compare. Go back to the commit or version that its record.json names, or choose "
            "another folder with --out"
        )


def require_same_checkpoints(folder: StudyFolder) -> None:
    """UserError when a trial was stopped half way with other blocks or kernels of ours."""
    for path in folder.checkpoints():
        try:
            saved = torch.load(path, "cpu", weights_only=True, mmap=True)
        except FileNotFoundError:  # of a study that is running, which is found out next
            continue
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(
                f"{path}: damaged ({str(error).splitlines()[0]}); delete it: its trial is then "
                "trained from the beginning, to the same weights"
            ) from None
        if missing := {*SAVED} - saved.keys():
            raise UserError(
                f"{path}: saved by another version of archsearch, without {sorted(missing)}; "
                "delete it: its trial is then trained from the beginning, to the same weights"
            )
        if changed := changed_sources(saved.get("sources", {})):
            raise UserError(
                f"{path}: saved half way with another version of {', '.join(changed)}; a training "
                "by two versions is one by neither. Go back to the commit or version that "
                f"{folder.record.name} names, or delete the file: its trial then begins anew"
            )


def first_difference(a: Any, b: Any, path: str = "") -> str | None:
    """The first path at which two plain trees differ, with both values; None if they are equal."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            below = f"{path}.{key}".lstrip(".")
            if (found := first_difference(a.get(key), b.get(key), below)) is not None:
                return found
        return None
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        found = (first_difference(x, y, f"{path}[{i}]") for i, (x, y) in pairs)
        return next((f for f in found if f is not None), None)
    return None if a == b and type(a) is type(b) else f"{path} ({a!r} there, {b!r} here)"
