"""studies/<name>/: the files of a study, each written whole or not at all.

space.yaml    the space as resolved          study.db     Optuna's storage
trials/<n>/   spec.yaml, metrics.json (costs, every run, of a finalist its speed), model.safetensors
              (weights of the first task), and of each run examples-<split>-<seed>.safetensors:
              every metric, sequence by sequence
*.py          blocks of the user's own, as they were, beside every file that names them
best/         the same of the best candidate
record.json   versions, seeds, machine, every proposal counted          report.html
status.json   how it stands, once a second while it runs
"""

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from archsearch import reading
from archsearch.catalogue import block_files
from archsearch.durable import sync, write_atomic
from archsearch.errors import UserError
from archsearch.loading import load_spec
from archsearch.plugins import BlockFile
from archsearch.spec import ModelSpec


def _json(path: Path) -> Any:
    """What a file of a study holds; UserError where it is not what was written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, and of UTF-8
        raise UserError(
            f"{path}: damaged ({error}); put it back from a copy, or begin the study anew in "
            "another folder with --out"
        ) from None


class StudyFolder:
    """The paths of a study and how they are read and written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.space = self.path / "space.yaml"
        self.record = self.path / "record.json"
        self.report = self.path / "report.html"
        self.status = self.path / "status.json"
        self.best = self.path / "best"

    @property
    def storage(self) -> str:
        """Where Optuna keeps the study unless told otherwise."""
        return f"sqlite:///{self.path.absolute() / 'study.db'}"

    def trial(self, number: int) -> Path:
        return self.path / "trials" / str(number)

    def weights(self, number: int) -> Path:
        return self.trial(number) / "model.safetensors"

    def checkpoints(self) -> list[Path]:
        """Those of the trainings that were stopped, or are running."""
        return sorted(self.path.glob("trials/*/*.checkpoint"))

    def clear(self) -> None:
        """Removes what killed processes left half written."""
        for path in [*self.path.glob(".*.partial"), *self.path.glob("trials/*/.*.partial")]:
            if path.is_file():
                path.unlink(missing_ok=True)

    def drop_checkpoints(self, number: int) -> None:
        """Of a trial that is not trained further."""
        for path in self.trial(number).glob("*.checkpoint"):
            path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the study for this process; UserError when another one has it.

        A folder that was made for it does not stay if nothing was written.
        """
        made, lock = not self.path.exists(), self.path / ".lock"
        self.path.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as file:
            for wait in (0.1, 0.2, 0):  # who asks whether it is busy holds it for a moment
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(wait)
            else:
                raise UserError(
                    f"{self.path}: another process is running this study; wait for it or stop it"
                )
            try:
                yield
            finally:
                if made and [*self.path.iterdir()] == [lock]:
                    lock.unlink()
                    self.path.rmdir()

    @property
    def busy(self) -> bool:
        """Whether a process is running this study."""
        lock = self.path / ".lock"
        if not lock.exists():
            return False
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def write_blocks(self, blocks: dict[str, BlockFile]) -> None:
        for name, file in blocks.items():
            write_atomic(self.path / name, file.text)

    def write_space(self, data: dict[str, Any]) -> None:
        write_atomic(self.space, reading.write(data))

    def read_space(self) -> dict[str, Any] | None:
        """The space that this study searches, None if there is no study here yet."""
        if not self.space.exists():
            return None
        return reading.read(self.space).data

    def write_trial(self, number: int, spec: ModelSpec, metrics: dict[str, Any]) -> None:
        """Puts a trial's spec and metrics into its folder; metrics last, they mark it finished."""
        for name, file in block_files(spec).items():
            write_atomic(self.trial(number) / name, file.text)
        write_atomic(self.trial(number) / "spec.yaml", spec.to_yaml(f"trial {number}"))
        write_atomic(self.trial(number) / "metrics.json", json.dumps(metrics, indent=1))

    def read_trial(self, number: int) -> dict[str, Any] | None:
        path = self.trial(number) / "metrics.json"
        return _json(path) if path.exists() else None

    def read_trials(self) -> list[dict[str, Any]]:
        """The metrics of every trial that ended, by number."""
        root = self.path / "trials"
        numbers = (
            sorted(int(p.name) for p in root.iterdir() if p.name.isdigit()) if root.is_dir() else []
        )
        return [trial for n in numbers if (trial := self.read_trial(n)) is not None]

    def read_spec(self, number: int) -> ModelSpec:
        return load_spec(self.trial(number) / "spec.yaml")

    def read_record(self) -> dict[str, Any]:
        if not self.record.exists():
            raise UserError(
                f"{self.path}: no study here (record.json is missing); run "
                "`archsearch study SPACE.yaml` first, or name its folder"
            )
        return _json(self.record)

    def finished(self, trials: int) -> bool:
        """Whether it has all of a study of so many trials."""
        if not self.record.exists() or not self.read_record()["finished"]:
            return False
        return self.read_record()["trials"] == trials

    def write_record(self, record: dict[str, Any]) -> None:
        write_atomic(self.record, json.dumps(record, indent=1))

    def write_status(self, snapshot: dict[str, Any]) -> None:
        write_atomic(self.status, json.dumps(snapshot, indent=1))

    def read_status(self) -> dict[str, Any]:
        """How the study stands: "state" is running, stopped or finished.

        UserError if there is none here.
        """
        record = self.read_record()
        ended = "finished" if record["finished"] else "stopped"
        state = "running" if self.busy else ended
        known = _json(self.status) if self.status.exists() else {}
        now = {"name": record["name"], "state": state}
        if state == "running" and known:
            return known | now
        return known | now | {"counts": record["counts"], "running": []}

    @property
    def best_number(self) -> int | None:
        """Whose copy best/ is; None if there is none, or none that can be read: it is made anew."""
        try:
            return _json(self.best / "metrics.json")["number"]
        except (FileNotFoundError, UserError):
            return None

    def publish_best(self, number: int) -> None:
        """Copies a trial into best/, on disk before it takes the place of what was there.

        Who is killed between the two renames leaves none; whoever goes on publishes it again.
        """
        partial, old = self.path / ".best.partial", self.path / ".best.old"
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished = shutil.ignore_patterns("*.checkpoint", ".*.partial")  # of a further seed
        shutil.copytree(self.trial(number), partial, ignore=unfinished)
        for path in (*partial.iterdir(), partial):
            sync(path)
        if self.best.exists():
            self.best.rename(old)
        partial.rename(self.best)
        sync(self.path)
        shutil.rmtree(old, ignore_errors=True)
