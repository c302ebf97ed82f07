from collections.abc import Iterator

import pytest

from app.runtime.logging import configure_logging
from tests.app.postgres import PostgresServer, running_postgres


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _plain_logs() -> None:
    # The default renderer draws tracebacks with all locals, tensors included: seconds a failure.
    configure_logging(level="error", as_json=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this run."""
    with running_postgres() as server:
        yield server
