"""A few hundred of the cases of `make prove-hardening`."""

from collections.abc import Iterator

import pytest

from app.imaging.fork_server import ForkServer
from tests.hardening.images import LIMITS, run

pytestmark = pytest.mark.anyio
COUNT = 200


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer(limits=LIMITS)
    yield server
    server.stop()


async def test_damaged_images_and_odd_drawings_are_decoded_or_refused(fork_server: ForkServer) -> None:
    report = await run(COUNT, 1, fork_server)
    assert report.faults == [], str(report)
    assert sum(report.outcomes.values()) == 2 * COUNT
    assert {"image decoded", "image undecodable-image", "drawing decoded", "drawing invalid"} <= report.outcomes.keys()
