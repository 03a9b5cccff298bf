"""Ray, for real: a head without cores and nodes of one core each, on this machine."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from archsearch import cluster as clusters
from archsearch import study
from archsearch.cluster import Cluster
from archsearch.driver import ATTEMPTS
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.space import Space
from archsearch.status import Status
from archsearch.workers import Done, Failed, Job, Message, Progress

if find_spec("ray") is None:
    pytest.skip("Ray is not installed: pip install 'archsearch[ray]'", allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own warnings

FIVE = {
    "exhaustive, trials: 8, eta: 2": "random, trials: 5, eta: null",
    "steps: 60": "steps: 40",
    "top: 1": "top: 2",
}


@pytest.fixture(scope="module", autouse=True)
def private() -> Iterator[None]:
    """A token of these tests alone; Ray looks for one when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture(scope="module")
def nodes(private: None) -> Iterator[Any]:
    from ray.cluster_utils import Cluster as Nodes

    started = Nodes(initialize_head=True, head_node_args={"num_cpus": 0})
    started.add_node(num_cpus=1)
    started.add_node(num_cpus=1)
    yield started
    started.shutdown()


def records(folder: Path) -> dict[int, Any]:
    """All that trials say but for times, and for what depends on times: who died, how fast it is."""
    timed = ("seconds", "spent", "speed", "deaths", "measured", "memory")

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(item) for key, item in value.items() if key not in timed}
        return [kept(item) for item in value] if isinstance(value, list) else value

    trials = StudyFolder(folder).read_trials()
    for trial in trials:
        trial["runs"].sort(key=lambda run: (run["split"], run["seed"]))  # as they came
    return {trial["number"]: kept(trial) for trial in trials}


def test_the_same_trials_as_on_this_machine(
    nodes: Any, small: Callable[..., Space], tmp_path: Path
) -> None:
    """Bit for bit: losses, curves, rungs and keys; and the report says where they were made."""
    space = small(**FIVE)
    study(space, out=tmp_path / "here", workers=2)
    heard: list[int] = []

    def watch(status: Status) -> None:
        heard.extend(word.step for word in status.running.values() if word is not None)

    study(space, out=tmp_path / "there", engine="ray", address=nodes.address, watch=watch)
    assert records(tmp_path / "here") == records(tmp_path / "there")
    assert len(records(tmp_path / "here")) == 6
    assert heard, "no word of how far trainings are"
    engine = StudyFolder(tmp_path / "there").read_record()["engine"]
    assert (engine["name"], engine["trial"]) == ("ray", {"CPU": 1.0})
    assert sum(node.get("CPU", 0) for node in engine["nodes"]) == 2
    import ray

    assert not ray.is_initialized()


def tasks_of(address: str) -> list[int]:
    """The processes of a cluster in which a job is done now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_work"):
                parent = path.with_name("stat").read_text().rpartition(")")[2].split()[1]
                if address in Path("/proc", parent, "cmdline").read_text():
                    found.append(int(path.parent.name))
        except OSError:  # it has just ended
            continue
    return found


DRIVER = """
import sys
from archsearch import load_space, speed, study
from archsearch.errors import UserError
speed.ALLOWANCE = 0.1
try:
    study(load_space("small.yaml"), out="killed", engine="ray", address={!r}, storage={!r})
except UserError as error:
    sys.exit(str(error))
"""
KILLS, KINDS = 16, ("driver", "database", "worker", "node")


def test_whatever_is_killed(
    nodes: Any, server: Any, small: Callable[..., Space], tmp_path: Path
) -> None:
    """The study's process, workers, nodes with all they have, the database: nothing is lost."""
    space = small(**FIVE | {"steps: 60": "steps: 100", "random": "exhaustive"})
    study(space, out=tmp_path / "whole", workers=2)
    command = [sys.executable, "-c", DRIVER.format(nodes.address, server.url)]
    rng, strikes, deaths = random.Random(0), Counter[str](), 0
    while True:
        with (tmp_path / "log").open("w") as log:
            driver = subprocess.Popen(command, cwd=tmp_path, stderr=log)
        while driver.poll() is None:
            if strikes.total() == KILLS:
                driver.wait()
                break
            while driver.poll() is None and not tasks_of(nodes.address):
                time.sleep(0.1)
            time.sleep(rng.uniform(0.2, 5.0))
            kind, pids = rng.choice(KINDS), tasks_of(nodes.address)
            if driver.poll() is not None:
                break
            if kind == "worker" and not pids:
                continue
            if kind == "driver" or deaths == ATTEMPTS - 1:
                kind = "driver"  # who begins with no job having died
                driver.kill()
                driver.wait()
            elif kind == "database":
                server.kill()
                server.start()
            elif kind == "worker":
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(pids), signal.SIGKILL)
                deaths += 1
            else:
                nodes.remove_node(nodes.worker_nodes.copy().pop(), allow_graceful=False)
                nodes.add_node(num_cpus=1)
                deaths += 1
            strikes[kind] += 1
        told = (tmp_path / "log").read_text()
        assert driver.returncode in (0, -signal.SIGKILL) or "storage" in told, told
        deaths = 0
        if driver.returncode == 0:
            break
    assert strikes.keys() == {*KINDS}, strikes
    whole, killed = (
        {t["hash"]: t for t in records(tmp_path / f).values()} for f in ("whole", "killed")
    )
    assert whole.keys() == killed.keys()
    assert all(killed[key]["runs"] == whole[key]["runs"] for key in whole)
    assert not StudyFolder(tmp_path / "killed").checkpoints()


def test_what_a_cluster_cannot_do_is_refused_at_once(
    nodes: Any, small: Callable[..., Space], tmp_path: Path
) -> None:
    space, where = small(**FIVE), {"engine": "ray", "address": nodes.address}
    with pytest.raises(UserError, match=r"a trial wants 1 CPU and 1 GPU, which no node .*CPU 1"):
        study(space, out=tmp_path / "s", device="cuda", **where)
    with pytest.raises(UserError, match=r"--workers 9: a trial wants 1 CPU, and .* has room for"):
        study(space, out=tmp_path / "s", workers=9, **where)
    with pytest.raises(UserError, match=r"--address 127.0.0.1:1: .*Give HOST:PORT"):
        study(space, out=tmp_path / "s", engine="ray", address="127.0.0.1:1")
    assert not (tmp_path / "s").exists()


def test_shares_of_gpus(nodes: Any) -> None:
    """What is no share of a whole GPU is not put together from two."""
    gpu = nodes.add_node(num_cpus=8, num_gpus=2)
    try:
        for share, room in ((1.0, 2), (0.5, 4), (0.4, 4), (2.0, 1)):
            with Cluster("cuda", nodes.address, share, room) as cluster:
                assert cluster.room() == room, share
                cluster.require()
        with (
            Cluster("cuda", nodes.address, 3.0) as cluster,
            pytest.raises(UserError, match="3 GPU"),
        ):
            cluster.require()
        with pytest.raises(UserError, match=r"--gpus-per-trial 1.5: a share"):
            Cluster("cuda", nodes.address, 1.5)
    finally:
        nodes.remove_node(gpu)


def job(folder: Path) -> Job:
    space = {"type": "in_context_recall", "vocab": 8, "length": 16, "batch": 4}
    model = {"dim": 8, "layers": 1, "topology": {"type": "stack", "layers": [{"mixer": "gru"}]}}
    return Job(0, model, [space], {"steps": 3}, 0, "val", "cpu", str(folder / "trials/0"))


def test_a_node_that_does_not_see_the_study(nodes: Any, tmp_path: Path) -> None:
    """It says so, and trains nothing that nobody would find."""
    with Cluster("cpu", nodes.address) as cluster, cluster.workers() as tasks:
        for folder, end in ((tmp_path / "nowhere", Failed), (tmp_path, Done)):
            tasks.submit(job(folder))
            said: list[Message] = []
            while tasks.running:
                said += tasks.messages(1)
            assert isinstance(said[-1], end)
        assert not (tmp_path / "nowhere").exists()


def test_leaving_ends_what_runs(nodes: Any, tmp_path: Path) -> None:
    """And SIGTERM stays what it was: a scheduler's stop is a Ctrl-C for a study."""
    before = signal.getsignal(signal.SIGTERM)
    long = replace(job(tmp_path), training={"steps": 100_000})
    with Cluster("cpu", nodes.address) as cluster:
        assert signal.getsignal(signal.SIGTERM) is before
        with cluster.workers() as tasks:
            tasks.submit(long)
            while not any(isinstance(said, Progress) for said in tasks.messages(1)):
                pass
            assert tasks_of(nodes.address)
        until = time.monotonic() + 30
        while tasks_of(nodes.address) and time.monotonic() < until:
            time.sleep(0.1)
        assert not tasks_of(nodes.address)


def test_a_cluster_without_nodes(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not waited for longer than PATIENCE."""
    monkeypatch.setattr(clusters, "PATIENCE", 0.2)
    with Cluster("cpu", nodes.address) as cluster, cluster.workers() as tasks:
        monkeypatch.setattr(cluster, "room", lambda: 0)
        assert not tasks.has_room
        assert not [*tasks.messages(0.3)]
        with pytest.raises(UserError, match="no node of the cluster can do a trial any more"):
            next(tasks.messages(0.1))
