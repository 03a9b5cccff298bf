"""Optuna's storage: a file beside the study, or a database server."""

from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from archsearch.errors import UserError


@contextmanager
def connected(url: str) -> Iterator[RDBStorage]:
    """The storage at a URL, whose connections are given back; UserError where there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _told(url):
        storage = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})  # a server may restart
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def study_in(storage: RDBStorage, name: str, objectives: int) -> optuna.Study:
    """The study of this name and so many objectives, created if it is not there."""
    with _told(storage.url):
        return optuna.create_study(
            storage=storage,
            study_name=name,
            directions=[StudyDirection.MINIMIZE] * objectives,
            load_if_exists=True,
        )


def masked(url: str) -> str:
    """A storage's URL without its password: files and logs are passed on."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return url if "@" not in url else f"{url.partition('://')[0]}://***"
    if "password" in parsed.query:
        parsed = parsed.update_query_dict({"password": "***"})
    return parsed.render_as_string()


def lost(error: BaseException | None) -> str | None:
    """What a database said that is gone, behind an error of whatever kind; None if none is."""
    while error is not None:
        said = error.orig if isinstance(error, DBAPIError) else error
        if said is not error or type(error).__module__.partition(".")[0] == "psycopg":
            return (str(said) or type(said).__name__).splitlines()[0]
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def _told(url: str) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, ImportError, ValueError, optuna.exceptions.OptunaError) as error:
        reason = str(error).splitlines()[0]
        told = f"storage {masked(url)}: {reason}; check the URL and its driver"
        raise UserError(told) from None
