"""Filling the demo gallery against the app itself."""

import asyncio
import io
import re
import shlex
from pathlib import Path

import anyio.to_thread
import httpx
import pytest
from click import unstyle
from fastapi import FastAPI
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from typer.testing import CliRunner

from app.api.deps import Tasks
from app.cli.gallery import curl_line, fill
from app.cli.main import app as vermouth_app
from app.imaging.demo import DemoImage, demo_images
from vermouth_client import Client

pytest_plugins: list[str] = []
pytestmark = pytest.mark.anyio


class LoopTransport(httpx.BaseTransport):
    """Requests of any thread, answered by an app that lives on the test's loop."""

    def __init__(self, app: FastAPI, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = httpx.ASGITransport(app)
        self._loop = loop

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        return asyncio.run_coroutine_threadsafe(self._answer(request), self._loop).result(30)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        twin = httpx.Request(request.method, request.url, headers=request.headers, content=request.content)
        answer = await self._transport.handle_async_request(twin)
        return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())


@pytest.fixture(scope="module")
def images() -> list[DemoImage]:
    return demo_images()


def test_skin_tones_and_flags_are_left_out(images: list[DemoImage]) -> None:
    ids = {image.id for image in images}
    assert len(ids) == len(images) > 1500
    assert {"1f436", "1f3e0", "1f41f", "2b50"} <= ids
    assert not any("1f3fb" in item_id or item_id.startswith(("1f1e6", "1f3f4")) for item_id in ids)
    assert next(image.name for image in images if image.id == "1f41f") == "fish"


def test_the_examples_find_their_images_while_the_gallery_fills(images: list[DemoImage]) -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r'"gallery":"default","id":"([0-9a-f]+)"', readme))
    assert len(named) > 4
    assert named <= {image.id for image in images[:16]}  # the first batch


def test_the_command_is_mounted() -> None:
    result = CliRunner().invoke(vermouth_app, ["gallery", "demo", "--help"])
    assert result.exit_code == 0
    assert "--limit" in unstyle(result.output)


def test_images_are_rendered(images: list[DemoImage]) -> None:
    assert Image.open(io.BytesIO(images[0].render())).size == (256, 256)
    for image in images[-5:]:
        assert image.metadata["kind"] == "photograph"
        assert max(Image.open(io.BytesIO(image.render())).size) >= 256


async def test_filling_resumes_where_it_stopped(app: FastAPI, tasks: Tasks, images: list[DemoImage]) -> None:
    loop = asyncio.get_running_loop()

    def run() -> tuple[int, int, set[str]]:
        bar = Progress(console=Console(quiet=True))
        with Client("http://test", transport=LoopTransport(app, loop)) as client:
            first, _ = fill(client, "emoji", images[:4], 3, bar)
            second, _ = fill(client, "emoji", images[:6], 3, bar)
            return first, second, client.item_ids("emoji")

    first, second, ids = await anyio.to_thread.run_sync(run)
    assert (first, second) == (4, 2)
    assert ids == {image.id for image in images[:6]}
    item = tasks.stores.items.item("emoji", images[0].id)
    assert item.metadata == {"name": images[0].name, "kind": "emoji", "hexcode": images[0].hexcode}


async def test_the_curl_line_is_a_valid_search(app: FastAPI) -> None:
    words = shlex.split(curl_line("http://test", "default"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        headers = {"content-type": "application/json"}
        answer = await client.post("/retrieve", content=words[words.index("-d") + 1], headers=headers)
    assert answer.status_code == 200
