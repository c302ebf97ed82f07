"""A server process over a fake device, with a key, for all tests that need no other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.api.auth import Scope, new_key
from tests.app.test_server import started

KEY, ENTRY = new_key("tests", [Scope.READ, Scope.WRITE])
LIMIT_S = 600


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The arguments of a client of the server."""
    folder: Path = tmp_path_factory.mktemp("data")
    with started("free", folder, limit_s=LIMIT_S, API_KEYS=ENTRY) as process, process.connect() as http:
        process.wait_for("ready")
        yield {"base_url": str(http.base_url), "key": KEY, "timeout_s": 60}
