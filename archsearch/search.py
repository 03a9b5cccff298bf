"""The study as one call: what is wrong is said before anything is written, then the driver runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archsearch import engines
from archsearch.driver import Driver
from archsearch.durable import is_full
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.ledger import Entry
from archsearch.space import Space
from archsearch.spec import ModelSpec
from archsearch.status import Watch
from archsearch.storing import connected, lost


@dataclass
class Result:
    """What a study found."""

    folder: Path
    best: ModelSpec | None
    """The leading candidate, if any was trained: see Ledger.ranking."""
    best_entry: Entry | None
    counts: dict[str, Any]
    exhausted: bool
    """True when the space had nothing new left within the budgets."""


def study(
    space: Space,
    *,
    trials: int | None = None,
    workers: int | None = None,
    out: str | Path | None = None,
    storage: str | None = None,
    device: str = "cpu",
    seed: int | None = None,
    engine: engines.Name = "local",
    address: str | None = None,
    gpus_per_trial: float | None = None,
    watch: Watch = lambda status: None,
) -> Result:
    """Runs a study to its end, or goes on with it where it stopped.

    Args:
        space: what is searched.
        trials: candidates to train; the space's own number if None.
        workers: trainings at a time. If None, one per core, at most 8, or one on an accelerator; of
            a cluster, all it has room for; of a crew, so many by each of its processes.
        out: the study's folder; studies/<name> if None.
        storage: an Optuna storage URL; SQLite in the folder if None.
        device: where models are trained.
        seed: the space's own if None.
        engine: local, for processes of this machine; ray, for the nodes of a cluster; postgresql,
            for all processes that run this study on one storage: one drives, all work.
        address: of the Ray cluster; if None, the one that RAY_ADDRESS or this machine knows, else
            one that is started here.
        gpus_per_trial: what a training on CUDA has of a GPU, on a cluster; a whole one if None.
        watch: called with a Status whenever something happened.

    Raises:
        NoFeasibleCandidate: nothing fits the budgets.
        UserError: the folder holds a study of another space, a task cannot be prepared, no worker
            could do a training, there is no room to write, or the storage is lost.
    """
    folder = StudyFolder(out or Path("studies") / space.name)
    place = engines.make(
        engine, device, workers,
        address=address, gpus=gpus_per_trial, storage=storage, study=space.name,
    )  # fmt: skip
    with place, _kept(folder.path):
        driver = Driver(space, folder, place, seed=seed, trials=trials)
        driver.preflight()
        waited = place.turn(folder)
        with folder.locked(), connected(storage or folder.storage) as opened:
            driver.open(opened)
            if not (waited and driver.settled):  # the one before it has done all of it
                driver.run(watch)
    best = next(iter(driver.ledger.ranking()), None)
    spec = ModelSpec.model_validate(best.spec) if best else None
    return Result(folder.path, spec, best, driver.ledger.counts(), driver.proposer.exhausted)


@contextmanager
def _kept(path: Path) -> Iterator[None]:
    """Tells that there is nowhere to write: no trial has failed by it, and none is lost."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if is_full(error):
            told = f"no room left to write ({why}); what finished is kept. Make room"
        elif (gone := lost(error)) is not None:
            told = f"the storage is lost ({gone}); what finished is kept. Bring it back"
        else:
            raise
        raise UserError(f"{path}: {told}, and the same command goes on") from None
