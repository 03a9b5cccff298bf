"""A study on PostgreSQL, for real, and what becomes of it when the server is killed."""

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import optuna
import pytest

from archsearch import load_space, speed, study
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.ledger import ATTRIBUTE, Entry
from archsearch.space import Space
from archsearch.storing import connected

SPACE = """
archsearch: 1
name: stored
model:
  dim: 8
  layers: 2
  topology:
    type: interleave
    major: {choice: [mamba, gru, attention, retention]}
    minor: {choice: [mamba, gru, lstm, rnn, hgrn]}
tasks: [{type: in_context_recall, vocab: 8, length: 16, batch: 4, extrapolate: [2]}]
train: {steps: 60, rungs: [20]}
search: {sampler: exhaustive, trials: 8, eta: 2}
baselines: [gla]
final: {top: 1, seeds: 2}
"""
KILLS = 8
FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
BINARIES = Path(shutil.which("initdb") or (FOUND[-1] / "initdb" if FOUND else "initdb")).parent
ABSENT = (
    "" if (BINARIES / "initdb").exists() else "no PostgreSQL server: apt-get install postgresql"
)
if find_spec("psycopg") is None:
    ABSENT = "no psycopg: pip install 'archsearch[postgresql]'"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(ABSENT), reason=ABSENT)]


class Server:
    """PostgreSQL on loopback, in a folder of its own, by a user that it accepts: not root."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.user = folder, None if os.getuid() else pwd.getpwnam("postgres").pw_name
        if self.user:
            shutil.chown(folder, self.user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.run("initdb", "-D", folder / "data", "-U", "postgres", "--auth=trust", "-N")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def run(self, name: str, *arguments: str | Path) -> None:
        command = [BINARIES / name, *arguments]
        done = subprocess.run(command, user=self.user, capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder}"
        log = self.folder / "log"
        for _ in range(100):  # what was killed holds its memory until its last child has ended
            try:
                self.run("pg_ctl", "-D", self.folder / "data", "-l", log, "-o", options, "start")
                return
            except AssertionError:
                time.sleep(0.2)
        raise AssertionError(log.read_text())

    def kill(self) -> None:
        """As a crash does; its children end by themselves, and what it holds is mended at start."""
        pid = int((self.folder / "data/postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
            time.sleep(0.05)

    def stop(self) -> None:
        self.run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "-w", "stop")


@pytest.fixture
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="archsearch-", dir="/tmp"))  # which others can enter
    there = Server(folder)
    there.start()
    yield there
    there.stop()
    shutil.rmtree(folder)


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Space:
    monkeypatch.setattr(speed, "ALLOWANCE", 0.1)
    (tmp_path / "stored.yaml").write_text(SPACE)
    return load_space(tmp_path / "stored.yaml")


def losses(folder: Path) -> dict[str, dict[tuple[str, int], float]]:
    trials = StudyFolder(folder).read_trials()
    assert len({trial["hash"] for trial in trials}) == len(trials)
    return {t["hash"]: {(r["split"], r["seed"]): r["loss"] for r in t["runs"]} for t in trials}


def test_a_server_that_is_killed(server: Server, space: Space, tmp_path: Path) -> None:
    """At moments drawn, while a study runs: it stops in words, and the same command goes on."""
    study(space, out=tmp_path / "whole", workers=1)
    rng, kills, finished = random.Random(0), 0, False
    while not finished:
        timer = threading.Timer(rng.uniform(0.5, 6.0), server.kill)
        if kills < KILLS:
            timer.start()
        try:
            study(space, out=tmp_path / "s", workers=1, storage=server.url)
            finished = True
        except UserError as error:
            assert "storage" in str(error)
        timer.cancel()
        if timer.ident is not None:
            timer.join()
        if timer.finished.is_set() and not finished:
            kills += 1
            server.start()
    assert kills == KILLS
    assert losses(tmp_path / "s") == losses(tmp_path / "whole")
    with connected(server.url) as storage:
        stored = optuna.load_study(study_name="stored", storage=storage)
        entries = [Entry(**trial.user_attrs[ATTRIBUTE]) for trial in stored.trials]
    counts = StudyFolder(tmp_path / "s").read_record()["counts"]
    assert sum(entry.state == "trained" for entry in entries) == counts["trained"]
    assert counts["trained"] + counts["pruned"] == len(losses(tmp_path / "s"))


def test_a_server_that_restarts_between_two_words(
    server: Server, space: Space, tmp_path: Path
) -> None:
    """A connection that has died while nobody spoke is made anew, and nobody hears of it."""
    down = []

    def watch(status: object) -> None:
        if not down:
            server.kill()
            server.start()
            down.append(True)

    result = study(space, out=tmp_path / "s", workers=1, storage=server.url, watch=watch)
    assert down
    assert result.counts["trained"] + result.counts["pruned"] == 9


def test_no_server(space: Space, tmp_path: Path) -> None:
    url = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    with pytest.raises(UserError, match=r"storage postgresql.*check the URL and its driver"):
        study(space, out=tmp_path / "s", storage=url)
