"""`timings_ms`: no phase is longer than the whole."""

import asyncio
from functools import partial
from pathlib import Path

import httpx
import pytest

from app.engine.entries import EntryQueue
from tests.app.api.images import BAR, CROSS, SQUARE
from tests.app.api.served import LIMIT_S, Watched, new_app, set_soon
from tests.app.fakes import FakeEncoder

pytestmark = pytest.mark.anyio
WAIT_S = 0.2
"""Long beside what else a request does."""


async def test_an_image_and_names_that_wait_together_wait_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, entered, loop = FakeEncoder(), asyncio.Event(), asyncio.get_running_loop()
    put = Watched(EntryQueue, "put", monkeypatch)
    app = new_app(encoder, tmp_path)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
        asyncio.timeout(LIMIT_S),
    ):
        await app.state.supervisor.settled()
        encoder.entered = partial(set_soon, loop, entered)
        encoder.gate.clear()
        first = asyncio.create_task(client.post("/embed", json={"images": [BAR]}))
        await put.wait()
        await entered.wait()
        segment = asyncio.create_task(client.post("/segment", json={"image": SQUARE, "classes": ["house"]}))
        joined = asyncio.create_task(client.post("/retrieve", json={"sketch": CROSS}))
        for _ in range(3):
            await put.wait()
        loop.call_later(WAIT_S, encoder.gate.set)
        await first
        for answer in (await segment, await joined):
            timings = answer.json()["timings_ms"]
            assert timings["queue"] > 0.9e3 * WAIT_S
            assert max(timings.values()) == timings["total"]
