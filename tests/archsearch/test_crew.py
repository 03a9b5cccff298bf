"""A study by several processes that know only one PostgreSQL and one folder, for real."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from archsearch import study
from archsearch.crew import BARREN, Crew
from archsearch.driver import ATTEMPTS
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.ledger import ATTRIBUTE, Entry
from archsearch.space import Space
from archsearch.storing import connected
from archsearch.workers import Done, Failed, Job, Progress

pytestmark = pytest.mark.slow

MEMBER = """
import signal, sys
from archsearch import load_space, speed, study
from archsearch.errors import UserError
signal.signal(signal.SIGTERM, signal.default_int_handler)
speed.ALLOWANCE = 0.1
if __name__ == "__main__":
    try:
        study(load_space("small.yaml"), out="s", workers=1, engine="postgresql", storage={url!r})
    except UserError as error:
        sys.exit(str(error))
"""
KILLS, KINDS = 16, ("member", "worker", "leave", "database")


class Member:
    """A process of the crew."""

    def __init__(self, folder: Path, url: str) -> None:
        # a file, for its workers import it again
        (folder / "member.py").write_text(MEMBER.format(url=url))
        self.log = folder / f"{time.monotonic_ns()}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen([sys.executable, "member.py"], cwd=folder, stderr=log)

    @property
    def workers(self) -> list[int]:
        mine = psutil.Process(self.process.pid)
        with suppress(psutil.Error):
            return [p.pid for p in mine.children() if "spawn_main" in " ".join(p.cmdline())]
        return []


@contextmanager
def crew(folder: Path, url: str, size: int) -> Iterator[list[Member]]:
    members = [Member(folder, url) for _ in range(size)]
    try:
        yield members
    finally:
        for member in members:
            member.process.kill()
            member.process.wait()


def losses(folder: Path) -> dict[int, dict[tuple[str, int], float]]:
    trials = StudyFolder(folder).read_trials()
    runs = {t["number"]: [((r["split"], r["seed"]), r["loss"]) for r in t["runs"]] for t in trials}
    assert all(len({key for key, _ in of}) == len(of) for of in runs.values())  # none twice
    return {number: dict(of) for number, of in runs.items()}


@pytest.fixture
def space(small: Callable[..., Space]) -> Space:
    return small(**{"eta: 2": "eta: null, seeds: 2"})


@pytest.fixture
def boards(server: Any) -> Iterator[Callable[[], Any]]:
    from archsearch.board import Board

    with ExitStack() as stack:

        def made() -> Any:
            board = Board(server.url, "small")
            stack.callback(board.close)
            return board

        yield made


def test_three_do_what_one_does(server: Any, space: Space, tmp_path: Path) -> None:
    """Each to its end and with the same result; what was trained, and how, is as elsewhere."""
    study(space, out=tmp_path / "alone", workers=1)
    with crew(tmp_path, server.url, 3) as members:
        for member in members:
            assert member.process.wait(300) == 0, member.log.read_text()
    mine, its = losses(tmp_path / "s"), losses(tmp_path / "alone")
    assert mine.keys() == its.keys()
    first = [{n: runs["val", 0] for n, runs in of.items()} for of in (mine, its)]
    assert first[0] == first[1]
    shared = [(mine[n][key], its[n][key]) for n in mine for key in mine[n].keys() & its[n].keys()]
    assert all(one == other for one, other in shared)
    record = StudyFolder(tmp_path / "s").read_record()
    assert record["engine"] == {"name": "postgresql"}
    assert record["resumed"] == []  # the others found all of it done
    assert record["counts"]["trained"] == 9


def test_whoever_is_killed(server: Any, space: Space, tmp_path: Path) -> None:
    """Drivers, their workers, others, and the database; some leave in order. Others go on."""
    study(space, out=tmp_path / "alone", workers=1)
    rng, strikes, deaths, known = random.Random(0), Counter[str](), 0, {}
    with crew(tmp_path, server.url, 3) as members:
        while True:
            time.sleep(rng.uniform(0.5, 5.0))
            members[:] = [m for m in members if m.process.poll() is None or ended_well(m)]
            if any(m.process.poll() == 0 for m in members):
                break
            members += [Member(tmp_path, server.url) for _ in range(3 - len(members))]
            if strikes.total() < KILLS:
                kinds = ["database"] if deaths == ATTEMPTS - 1 else [*KINDS]
                kind = rng.choice(kinds)  # a job that dies three times has failed
                deaths = 0 if kind == "database" else deaths + 1
                strike(kind, rng.choice(members), server)
                strikes[kind] += 1
            now = losses(tmp_path / "s") if (tmp_path / "s/trials").exists() else {}
            assert all(now[n].items() >= runs.items() for n, runs in known.items())
            known = now
    assert strikes.keys() == {*KINDS}, strikes
    mine, its = losses(tmp_path / "s"), losses(tmp_path / "alone")
    assert mine.keys() == its.keys()
    assert all(its[n].get(key, loss) == loss for n in mine for key, loss in mine[n].items())
    with connected(server.url) as storage:
        stored = optuna.load_study(study_name="small", storage=storage)
        entries = [Entry(**trial.user_attrs[ATTRIBUTE]) for trial in stored.trials]
    assert [entry.state for entry in entries] == ["trained"] * 9
    assert not StudyFolder(tmp_path / "s").checkpoints()


def ended_well(member: Member) -> bool:
    """That it was killed, stopped, or lost its database, which are no faults of ours."""
    code = member.process.returncode
    if code == 1:
        assert "the same command goes on" in (told := member.log.read_text()) or "storage" in told
    early = -signal.SIGTERM  # before it listens
    assert code in (0, 1, early, -signal.SIGKILL, -signal.SIGINT, 130), member.log.read_text()
    return code == 0


def strike(kind: str, member: Member, server: Any) -> None:
    """One of the ways to go."""
    if kind == "database":
        server.kill()
        server.start()
    elif kind == "worker" and member.workers:
        with suppress(ProcessLookupError):
            os.kill(member.workers[0], signal.SIGKILL)
    else:
        member.process.send_signal(signal.SIGTERM if kind == "leave" else signal.SIGKILL)


def job(number: int, folder: Path) -> Job:
    return Job(number, {}, [], {"lr": [1e-3, 0.1]}, 0, "val", "cpu", str(folder / "trials/0"))


def test_a_job_is_one_workers(boards: Callable[[], Any], tmp_path: Path) -> None:
    """Posted twice it is one; two that ask get two; what one says of it is heard exactly."""
    from archsearch.board import key, message

    ours, one, other = boards(), boards(), boards()
    jobs = [job(number, tmp_path) for number in range(2)]
    for each in [*jobs, *jobs]:
        ours.post(key(each), each)
    one.enlist(1)
    other.enlist(2)
    assert ours.alive() == {1, 2}
    claimed = one.claim(1), other.claim(2)
    assert [found[1] for found in claimed] == jobs
    assert one.claim(1) is None
    number = claimed[0][0]
    run = {"loss": 0.1 + 0.2, "seconds": 1e-17, "curve": [[1, float("nan")]], "name": "ü"}
    for said in (Progress(jobs[0], "recall", 3, 1 / 3), Done(jobs[0], run)):
        assert one.say(number, 1, said)
        assert not other.say(number, 2, said)  # it is not its
        row = ours.rows()[0]
        heard = message(jobs[0], row.ended or row.said)
        assert repr(heard) == repr(said)
    assert not ours.bury(key(jobs[0]), 1)  # it has ended
    assert not ours.bury(key(jobs[1]), 1)  # it is another's
    assert ours.bury(key(jobs[1]), 2)
    ours.drop([key(jobs[0])])
    assert ours.rows() == []
    assert not one.say(number, 1, Failed(jobs[0], "died", ""))


def test_what_the_dead_had_is_for_others(boards: Callable[[], Any], tmp_path: Path) -> None:
    from archsearch.board import key

    ours, one, other = boards(), boards(), boards()
    first = job(0, tmp_path)
    ours.post(key(first), first)
    one.enlist(1)
    assert one.claim(1) is not None
    one.close()
    while ours.alive():
        time.sleep(0.01)
    ours.free([1])
    other.enlist(2)
    found = other.claim(2)
    assert found is not None
    assert found[1] == first


def test_what_no_trial_has_failed_by_is_not_heard_twice(
    boards: Callable[[], Any], server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next driver posts the job anew; what others ended meanwhile it hears at once.

    Of several that found no room the driver hears one, and stops: what the others say is old then.
    """
    from archsearch.board import key
    from archsearch.crew import Crew

    monkeypatch.setattr(Crew, "tend", lambda self: None)
    full, done, late = (job(number, tmp_path) for number in range(3))
    one = boards()
    one.enlist(1)
    number = 0  # of the last job that was taken
    with Crew("cpu", server.url, "small", 1) as crew:
        with suppress(OSError), crew.workers() as hands:
            for each, end in ((full, Failed(full, "disk_full", "full")), (done, Done(done, {}))):
                hands.submit(each)
                number, _ = one.claim(1)
                assert one.say(number, 1, end)
            hands.submit(late)
            number, _ = one.claim(1)
            assert next(hands.messages(0)).job == full
            raise OSError("full")  # as the driver does
        assert one.say(number, 1, Failed(late, "disk_full", "full"))
        assert [row.key for row in one.rows()] == [key(done), key(late)]
        with crew.workers() as hands:
            for each in (full, done, late):
                hands.submit(each)
            assert [message.job for message in hands.messages(0)] == [done]
            assert one.claim(1)[1] == full
        assert one.rows() == []


def test_one_drives(boards: Callable[[], Any]) -> None:
    one, other = boards(), boards()
    assert one.lead()
    assert not other.lead()
    one.close()
    while not other.lead():
        time.sleep(0.01)


def test_a_new_driver_waits_for_the_folder(server: Any, tmp_path: Path) -> None:
    """Of whoever drove before: a file server may tell late that it is gone."""
    folder = StudyFolder(tmp_path / "s")
    with Crew("cpu", server.url, "small", 1) as crew, ThreadPoolExecutor(1) as pool:
        with folder.locked():
            turn = pool.submit(crew.turn, folder)
            with pytest.raises(TimeoutError):
                turn.result(3)
        assert turn.result(30) is False  # nobody drove when it came


def test_workers_that_cannot_connect_end_their_process(server: Any) -> None:
    with Crew("cpu", server.url, "small", 2) as crew:
        crew.url = "postgresql+psycopg://nobody@127.0.0.1:1/none"  # what its workers are given

        def tend() -> None:
            while True:
                crew.tend()
                time.sleep(0.1)

        with pytest.raises(UserError, match=f"{BARREN} workers in a row could not .*max_conn"):
            tend()


def test_what_a_crew_wants(server: Any, space: Space, tmp_path: Path) -> None:
    for storage in (None, "sqlite:///x.db"):
        with pytest.raises(UserError, match=r"--engine postgresql: .*share one database"):
            study(space, out=tmp_path / "s", engine="postgresql", storage=storage)
    url = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    with pytest.raises(UserError, match=r"check the URL and its server"):
        study(space, out=tmp_path / "s", engine="postgresql", storage=url)
    assert not (tmp_path / "s").exists()
