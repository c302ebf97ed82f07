"""Real databases and blob folders in temporary places: the same suite for SQLite and PostgreSQL."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.stores.blobs import Blobs
from app.stores.database import Database, open_database
from tests.app.postgres import PostgresServer

OpenReplica = Callable[[], Database]


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
