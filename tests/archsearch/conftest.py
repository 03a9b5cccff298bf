"""What several test files ask for by name.

fusion, ends    every way to fuse, and ends of every kind but language's
by_rule         a rule as a model, for the tests of tasks
command         `archsearch ...` within this process
server          a PostgreSQL of its own
small           a space of twenty that train in a second, and changes of it
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from archsearch import cli, load_space, speed
from archsearch.ends import Classes, Decoded, Ends, Forecast, Series, Tags, Tokens
from archsearch.space import Space
from archsearch.spec import ModelSpec
from archsearch.tasks import Evaluation
from archsearch.tasks.synthetic import Synthetic

Rule = Callable[[list[int]], list[int]]

RETENTION = {"type": "retention", "heads": 2}
MAMBA = {"type": "mamba", "state": 4}
WINDOW = {"type": "attention", "window": 4, "heads": 2}
TWO = {"parallel": {"branches": ["retention", "short_conv"], "merge": "concat"}}


def stages(*rates: int) -> dict[str, Any]:
    kinds = [{"mixer": MAMBA}, TWO, {"mixer": "attention"}]
    levels = {f"s{i}": kinds[i] | {"rate": rate} for i, rate in enumerate(rates)}
    return {"type": "hierarchical", "stages": levels, "depth": dict.fromkeys(levels, 1)}


GRAPH = {
    "low": {"mixer": MAMBA, "reads": ["input"]},
    "left": {"mixer": "retention", "reads": ["low"]},
    "right": {**TWO, "reads": ["low", "input"]},
    "top": {"split": {"parts": [WINDOW, "gru"]}, "reads": ["left", "right"], "join": "gate"},
}
FUSIONS: dict[str, dict[str, Any]] = {
    "interleave": {"type": "interleave", "major": MAMBA, "minor": "attention", "ratio": "2:1"},
    "pattern": {"type": "pattern", "mixers": {"M": MAMBA, "W": WINDOW}, "pattern": "MW"},
    "parallel": {"type": "parallel", "branches": ["retention", MAMBA, WINDOW], "merge": "route"},
    "split_channels": {"type": "split", "parts": [RETENTION, MAMBA], "ratio": 0.75},
    "split_heads": {
        "type": "split",
        "parts": [RETENTION, WINDOW],
        "ratio": 0.25,
        "over": "heads",
    },
    "split_in_three": {
        "type": "split",
        "parts": [RETENTION, MAMBA, "gru"],
        "ratio": [0.5, 0.25, 0.25],
    },
    "stack": {
        "type": "stack",
        "layers": [{"mixer": MAMBA}, {"split": {"parts": [WINDOW, "gru"]}}, TWO],
    },
    "hierarchical": stages(1, 1, 1),
    "slower": stages(1, 2, 1),
    "slower_first": stages(2, 4, 4),
    "graph": {"type": "graph", "nodes": GRAPH},
}


ENDS = {
    "class": Ends(Tokens(13), Classes(3)),
    "class_padded": Ends(Tokens(13, pad=0), Classes(3)),
    "tags": Ends(Tokens(13), Tags(3)),
    "tags_of_series": Ends(Series(2), Tags(3)),
    "class_of_series": Ends(Series(2), Classes(3)),
    "decoded": Ends(Tokens(13), Decoded(7)),
    "forecast": Ends(Series(2), Forecast(5)),
    "forecast_from_last": Ends(Series(2, "last"), Forecast(5)),
    "forecast_instance": Ends(Series(2, "instance"), Forecast(5)),
}


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`archsearch ...` within this process: its exit code, and what it wrote to out and err."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["archsearch", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        code, told = left.value.code, capsys.readouterr()
        return code if isinstance(code, int) else 0, told.out, told.err

    return run


def specs() -> dict[str, ModelSpec]:
    """A spec of every fusion."""
    return {
        name: ModelSpec.model_validate(
            {"dim": 16, "layers": 4 if name == "graph" else 3, "topology": topology}
            | ({"conv": [3, 5]} if name == "pattern" else {})
        )
        for name, topology in FUSIONS.items()
    }


@pytest.fixture
def fusions() -> list[ModelSpec]:
    """All of them, for laws of two."""
    return [*specs().values()]


class Predictor(nn.Module):
    """A rule, tokens of a sequence -> answers, as a model that is sure of it."""

    def __init__(self, vocab: int, rule: Rule) -> None:
        super().__init__()
        self.vocab, self.rule = vocab, rule

    def forward(self, tokens, state=None):
        answers = torch.tensor([self.rule(row) for row in tokens.tolist()])
        return 100.0 * F.one_hot(answers.clamp(min=0), self.vocab), state


@pytest.fixture
def by_rule() -> Callable[[Synthetic, Rule], Evaluation]:
    """by_rule(task, rule): what the task says of a model that follows the rule."""
    return lambda task, rule: task.evaluate(Predictor(task.vocab_size, rule))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fusion" in metafunc.fixturenames:
        found = specs()
        metafunc.parametrize("fusion", found.values(), ids=found)
    if "ends" in metafunc.fixturenames:
        metafunc.parametrize("ends", ENDS.values(), ids=ENDS)


SMALL = """
archsearch: 1
name: small
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


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Space]:
    """Writes small.yaml, with each text that is named replaced by another, and loads it."""
    monkeypatch.setattr(speed, "ALLOWANCE", 0.1)

    def load(**changes: str) -> Space:
        text = SMALL
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "small.yaml").write_text(text)
        return load_space(tmp_path / "small.yaml")

    return load


FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
BINARIES = Path(shutil.which("initdb") or (FOUND[-1] / "initdb" if FOUND else "initdb")).parent


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
    if not (BINARIES / "initdb").exists():
        pytest.skip("no PostgreSQL server: apt-get install postgresql")
    if find_spec("psycopg") is None:
        pytest.skip("no psycopg: pip install 'archsearch[postgresql]'")
    folder = Path(tempfile.mkdtemp(prefix="archsearch-", dir="/tmp"))  # which others can enter
    there = Server(folder)
    there.start()
    yield there
    there.stop()
    shutil.rmtree(folder)
