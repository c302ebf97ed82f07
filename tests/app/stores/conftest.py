"""Real databases and blob folders in temporary places: the same suite for SQLite and PostgreSQL."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.stores.blobs import Blobs
from app.stores.sql.database import Database, attach_database, open_database
from benchmarks.report import header
from tests.app.postgres import PostgresServer

OpenReplica = Callable[[], Database]
Report = Callable[[str], None]
_REPORTED = pytest.StashKey[list[str]]()


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Report what was proven: lines at the end of the run, and in the file that `STATE_REPORT` names."""
    return request.config.stash.setdefault(_REPORTED, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    reported = terminalreporter.config.stash.get(_REPORTED, [])
    for line in reported:
        terminalreporter.write_line(line)
    path = os.environ.get("STATE_REPORT")
    if path and exitstatus == 0:
        title = ["# What the state withstands", "", header("make prove-state"), ""]
        Path(path).write_text("\n".join([*title, *(f"- {line}." for line in reported)]) + "\n", encoding="utf-8")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """None for SQLite in the data folder, or the URL of a fresh PostgreSQL database."""
    if request.param == "sqlite":
        yield None
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.new_database()
    yield url
    server.drop(url)


@pytest.fixture
def database(tmp_path: Path, database_url: str | None) -> Iterator[Database]:
    database = open_database(data_dir=tmp_path / "data", url=database_url)
    yield database
    database.close()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(str(tmp_path / "data" / "blobs"))


@pytest.fixture
def open_another(tmp_path: Path, database_url: str | None) -> Iterator[OpenReplica]:
    """Opens one more process's worth of one database, SQLite or PostgreSQL, as `vermouth db` would."""
    with ExitStack() as stack:
        stack.callback(open_database(data_dir=tmp_path, url=database_url).close)

        def open_one() -> Database:
            database = attach_database(data_dir=tmp_path, url=database_url)
            stack.callback(database.close)
            return database

        yield open_one


@pytest.fixture
def open_replica(tmp_path: Path, postgres: PostgresServer) -> Iterator[OpenReplica]:
    """Opens one more process's worth of the same PostgreSQL database."""
    url = postgres.new_database()
    with ExitStack() as stack:
        count = 0

        def open_one() -> Database:
            nonlocal count
            count += 1
            database = open_database(data_dir=tmp_path / f"replica{count}", url=url)
            stack.callback(database.close)
            return database

        yield open_one
    postgres.drop(url)
