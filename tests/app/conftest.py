from collections.abc import Iterator

import pytest
from PIL import Image

from app.domain import Limits
from app.imaging import processes
from app.imaging.fork_server import ForkServer
from app.runtime.logging import configure_logging
from tests.app.postgres import PostgresServer, running_postgres


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _plain_logs() -> None:
    # The default renderer draws tracebacks with all locals, tensors included: seconds a failure.
    configure_logging(level="error", as_json=True)


@pytest.fixture(autouse=True)
def _pillows_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    # Opening a file sets it, in processes that do nothing else; tests open files in this one too.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this run."""
    with running_postgres() as server:
        yield server


class SharedForkServer(ForkServer):
    """Serves all decoders of a run: the imports take half a second."""

    def stop(self) -> None:
        """Nothing: others use it."""


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """A fork server of the run."""
    server = SharedForkServer(limits=Limits())
    yield server
    ForkServer.stop(server)


@pytest.fixture(autouse=True)
def _share_fork_server(fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(*, limits: Limits) -> ForkServer:
        del limits
        return fork_server

    monkeypatch.setattr(processes, "ForkServer", shared)
