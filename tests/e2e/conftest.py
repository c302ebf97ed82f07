"""The shipped command with the shipped model and the whole demo gallery, started once; a browser for each module."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from rich.console import Console

from app.cli.gallery import fill
from app.cli.main import progress
from app.imaging.demo import demo_images
from tests.app.test_server import COMMAND, started
from vermouth_client import Client

if TYPE_CHECKING:
    from tests.e2e.browser import Page

ROOT = Path(__file__).parents[2]
LIMIT_S = 900


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with weights/mini and the demo gallery."""
    data_dir = tmp_path_factory.mktemp("data")
    server = started("", data_dir, COMMAND, limit_s=LIMIT_S, BUNDLE=str(ROOT / "weights/mini"))
    with server as process, process.connect() as connected:
        assert connected.get("/startupz").status_code == 503
        process.wait_for("ready")
        images = demo_images()
        with Client(str(connected.base_url)) as filler, progress(Console(quiet=True)) as bar:
            added, rejected = fill(filler, "default", images, 64, bar)
        assert (added, rejected) == (len(images), [])
        yield connected


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from tests.e2e.browser import launched  # here: without playwright its tests alone are skipped

    with launched() as found:
        yield found


@pytest.fixture
def opened(browser: Any, client: httpx.Client) -> Iterator["Page"]:
    """A wide page of the playground, not opened yet."""
    from tests.e2e.browser import WIDE, Page

    page = Page(browser, str(client.base_url), viewport=WIDE)
    yield page
    page.close()
