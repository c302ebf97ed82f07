"""A real database and blob folder in a temporary place."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.stores.blobs import Blobs
from app.stores.database import Database, open_database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = open_database(data_dir=tmp_path / "data")
    yield database
    database.close()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(str(tmp_path / "data" / "blobs"))
