"""A study on PostgreSQL, for real, and what becomes of it when the server is killed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archsearch import study
from archsearch.errors import UserError
from archsearch.record import environment
from archsearch.space import Space
from archsearch.storing import masked

pytestmark = pytest.mark.slow


@pytest.fixture
def space(small: Callable[..., Space]) -> Space:
    return small()


def test_a_server_that_restarts_between_two_words(
    server: Any, space: Space, tmp_path: Path
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


def test_no_password_is_told(
    small: Callable[..., Space], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in an error nor in a record."""
    url = "postgresql+psycopg://me:se:cret@127.0.0.1:1/none"
    assert masked(url) == "postgresql+psycopg://me:***@127.0.0.1:1/none"
    assert masked("sqlite:////tmp/x.db") == "sqlite:////tmp/x.db"
    for other in ("://me:se/cret@h/d", "://me@srv:se:cret@h/d", "://h/d?user=me&password=secret"):
        assert "cret" not in masked(f"postgresql{other}")
    for engine in ("local", "postgresql"):
        with pytest.raises(UserError) as told:
            study(small(), out=tmp_path / "s", storage=url, engine=engine)  # type: ignore[arg-type]
        assert "cret" not in str(told.value)
    for told in (["--storage", url], [f"--storage={url}"]):
        monkeypatch.setattr("sys.argv", ["archsearch", "study", *told])
        assert "cret" not in environment("cpu")["command"]


def test_no_server(space: Space, tmp_path: Path) -> None:
    url = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    with pytest.raises(UserError, match=r"storage postgresql.*check the URL and its driver"):
        study(space, out=tmp_path / "s", storage=url)
    assert not (tmp_path / "s").exists()
