import pytest

from app.telemetry import configure_logging


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _plain_logs() -> None:
    # The default renderer draws tracebacks with all locals, tensors included: seconds a failure.
    configure_logging(level="error", as_json=True)
