"""The board: jobs of a study as rows of a PostgreSQL table, for processes that know only its URL.

    key      of all that it is: posted twice, by two drivers in turn, it is one job
    worker   who has it; whoever is free takes the oldest that nobody has
    said     its latest Progress          ended    its Done or Failed

Who lives is told by advisory locks, which the server takes back when a connection ends, however it
does: no clock, no heartbeat. (study, 0) is the driver's, (study, n) the worker n's.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from archsearch.errors import UserError
from archsearch.speed import SpeedJob
from archsearch.storing import masked
from archsearch.workers import Done, Failed, Job, Message, Progress

TABLE = """
create table if not exists archsearch_jobs (
    id bigserial primary key, study text not null, key text not null, job text not null,
    worker integer, said text, ended text, unique (study, key)
)
"""
KINDS: dict[str, type[Job]] = {"train": Job, "measure": SpeedJob}
SILENT = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "user_timeout": 25_000,
}
"""When either side takes a silent machine for gone: after 25 s, as TCP's options say it."""


class Row(NamedTuple):
    """A job as it stands."""

    key: str
    worker: int | None
    said: str | None
    ended: str | None


class Board:
    """One connection to the board of a study.

    Args:
        url: of the storage, postgresql+psycopg://...
        study: its name.

    Raises:
        UserError: nobody answers at the URL.
    """

    def __init__(self, url: str, study: str) -> None:
        self.study, self.place = study, zlib.crc32(study.encode()) & 0x7FFFFFFF
        address = make_url(url).set(drivername="postgresql")
        try:
            self.connection = psycopg.connect(
                address.render_as_string(hide_password=False),
                autocommit=True,
                connect_timeout=10,
                keepalives_idle=SILENT["keepalives_idle"],
                keepalives_interval=SILENT["keepalives_interval"],
                keepalives_count=SILENT["keepalives_count"],
                tcp_user_timeout=SILENT["user_timeout"],
            )
        except psycopg.Error as error:
            reason = str(error).splitlines()[0]
            told = f"storage {masked(url)}: {reason}; check the URL and its server"
            raise UserError(told) from None
        for name, value in SILENT.items():
            self._do(f"set tcp_{name} = {value}")
        with self.connection.transaction():  # two that create it at once would clash
            self._do("select pg_advisory_xact_lock(0)")
            self._do(TABLE)
        self.channel = sql.Identifier(f"archsearch_{self.place}")
        self.connection.execute(sql.SQL("listen {}").format(self.channel))

    def close(self) -> None:
        """Ends the connection, and with it every lock."""
        self.connection.close()

    def lead(self) -> bool:
        """Whether this connection is, or now becomes, the driver's."""
        return self._hold(0)

    def enlist(self, worker: int) -> None:
        """This connection is the worker's."""
        held = self._hold(worker)
        assert held, "a worker has one connection"

    def alive(self) -> set[int]:
        """The workers that have a connection."""
        rows = self._do(
            "select objid::bigint from pg_locks where locktype = 'advisory' and granted and"
            " classid::bigint = %s and objsubid = 2 and objid::bigint > 0 and database ="
            " (select oid from pg_database where datname = current_database())",
            self.place,
        )
        return {worker for (worker,) in rows}

    def post(self, key: str, job: Job) -> None:
        """Puts up a job, unless it is there: then what is known of it stands."""
        kind = next(kind for kind, cls in KINDS.items() if type(job) is cls)
        text = json.dumps({"kind": kind, "job": asdict(job)})
        self._do(
            "insert into archsearch_jobs (study, key, job) values (%s, %s, %s)"
            " on conflict do nothing",
            self.study, key, text,
        )  # fmt: skip
        self._notify()

    def rows(self) -> list[Row]:
        """All jobs, the oldest first."""
        query = "select key, worker, said, ended from archsearch_jobs where study = %s order by id"
        return [Row(*row) for row in self._do(query, self.study)]

    def claim(self, worker: int) -> tuple[int, Job] | None:
        """The oldest job that nobody has, with its id; now the worker's. None if there is none."""
        found = self._do(
            "update archsearch_jobs set worker = %s where id = (select id from archsearch_jobs"
            " where study = %s and worker is null and ended is null order by id"
            " for update skip locked limit 1) returning id, job",
            worker, self.study,
        )  # fmt: skip
        for number, text in found:
            data = json.loads(text)
            return number, KINDS[data["kind"]](**data["job"])
        return None

    def say(self, number: int, worker: int, message: Message) -> bool:
        """Writes what a worker says of its job; False if it is its job no longer."""
        ends = isinstance(message, Done | Failed)
        found = self._do(
            f"update archsearch_jobs set {'ended' if ends else 'said'} = %s"
            " where id = %s and worker = %s returning id",
            _text(message), number, worker,
        )  # fmt: skip
        if ends:
            self._notify()
        return bool(found)

    def free(self, dead: Sequence[int]) -> None:
        """Jobs that these workers had and did not end are for others to take."""
        self._do(
            "update archsearch_jobs set worker = null, said = null"
            " where study = %s and worker = any(%s) and ended is null",
            self.study, list(dead),
        )  # fmt: skip
        self._notify()

    def drop(self, keys: Sequence[str]) -> None:
        """Takes jobs down."""
        query = "delete from archsearch_jobs where study = %s and key = any(%s)"
        self._do(query, self.study, list(keys))

    def bury(self, key: str, worker: int) -> bool:
        """Takes down a job that a dead worker had; False where it ended it, or another has it."""
        found = self._do(
            "delete from archsearch_jobs where study = %s and key = %s and worker = %s"
            " and ended is null returning id",
            self.study, key, worker,
        )  # fmt: skip
        return bool(found)

    def wait(self, seconds: float) -> None:
        """Until somebody has done something to the board, at most so long."""
        for _ in self.connection.notifies(timeout=seconds, stop_after=1):
            pass

    def _hold(self, number: int) -> bool:
        return self._do("select pg_try_advisory_lock(%s, %s)", self.place, number) == [(True,)]

    def _notify(self) -> None:
        self.connection.execute(sql.SQL("notify {}").format(self.channel))

    def _do(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(query, values)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


def key(job: Job) -> str:
    """What tells a job from every other: all of it, but how often it was begun, and on what."""
    data = {k: value for k, value in asdict(job).items() if k not in ("attempt", "device")}
    return hashlib.sha256(json.dumps([type(job).__name__, data]).encode()).hexdigest()


def _text(message: Message) -> str:
    """Without its job, whose row it is written in."""
    data = {name: value for name, value in vars(message).items() if name != "job"}
    return json.dumps({"kind": type(message).__name__, **data})


def message(job: Job, text: str) -> Message:
    """What was written of a job."""
    data = json.loads(text)
    kinds: dict[str, Any] = {"Progress": Progress, "Done": Done, "Failed": Failed}
    return kinds[data.pop("kind")](job, **data)


def stops(text: str) -> bool:
    """Whether an end that was written is none of the trial's: the study stops by it."""
    return json.loads(text).get("cause") in ("disk_full", "unseen")


@contextmanager
def unless_lost() -> Iterator[None]:
    """Ends a worker whose server is gone: no failure of its job, whose checkpoint stays."""
    try:
        yield
    except psycopg.Error:
        raise SystemExit from None
