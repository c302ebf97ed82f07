"""An `Idempotency-Key` over real connections: its claim ends with its request, never before a write that may commit."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from app.api.deps import Platform, Tasks
from app.stores.sql import database
from tests.app.api.served import LIMIT_S, new_app, served, set_soon
from tests.app.fakes import FakeEncoder

pytestmark = pytest.mark.anyio
ITEMS = "/galleries/default/items"
BODY = json.dumps([{"image": {"strokes": [[[0, 9], [0, 9]]], "width": 10, "height": 10}}])
HEADERS = {"Content-Type": "application/json", "Idempotency-Key": "k"}


class World:
    """A served app whose device and whose writer's thread can be held."""

    def __init__(self, encoder: FakeEncoder, port: int, tasks: Tasks) -> None:
        self.encoder, self.port, self.tasks = encoder, port, tasks
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S)

    async def begin(self, **headers: str) -> asyncio.StreamWriter:
        """A connection on which a write with the key was sent."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = {"Host": "x", "Content-Length": len(BODY), **HEADERS, **headers}
        lines = [f"POST {ITEMS} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", BODY]
        writer.write("\r\n".join(lines).encode())
        await writer.drain()
        return writer

    async def write(self, **headers: str) -> httpx.Response:
        return await self.client.post(ITEMS, content=BODY, headers={**HEADERS, **headers})

    async def written(self) -> httpx.Response:
        """Repeat the write until it is no longer being processed, and say how it went."""
        for _ in range(100):
            answer = await self.write()
            if "retry-after" not in answer.headers:
                return answer
            await asyncio.sleep(0.05)
        raise AssertionError("the key stays claimed")

    def count(self) -> int:
        return self.tasks.stores.galleries.get("default").count


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    encoder = FakeEncoder()
    app = new_app(encoder, tmp_path)
    async with served(app) as port:
        platform: Platform = app.state.platform
        assert platform.services is not None
        assert platform.services.tasks is not None
        world = World(encoder, port, platform.services.tasks)
        try:
            yield world
        finally:
            encoder.gate.set()
            await world.client.aclose()


async def held(world: World) -> asyncio.Event:
    """Hold the device; the event is set once a pass has begun."""
    entered = asyncio.Event()
    world.encoder.entered = partial(set_soon, asyncio.get_running_loop(), entered)
    world.encoder.gate.clear()
    return entered


async def test_a_deadline_releases_the_key_at_once(world: World) -> None:
    await held(world)
    late = await world.write(**{"X-Request-Timeout-Ms": "200"})
    assert late.status_code == 504
    world.encoder.gate.set()
    assert (await world.write()).status_code == 200
    assert world.count() == 1


async def test_a_disconnect_releases_the_key(world: World) -> None:
    entered = await held(world)
    writer = await world.begin()
    await asyncio.wait_for(entered.wait(), LIMIT_S)
    assert (await world.write()).status_code == 409
    writer.transport.abort()
    world.encoder.gate.set()
    assert (await world.written()).status_code == 200
    assert world.count() == 1


@contextlib.asynccontextmanager
async def slow_writes(tasks: Tasks) -> AsyncIterator[None]:
    """Until the block ends, the writer's thread waits in the transaction that it begins."""
    ends, held = threading.Event(), threading.Event()

    def hold() -> None:
        with tasks.stores.database.write():
            held.set()
            ends.wait(LIMIT_S)

    holding = asyncio.create_task(asyncio.to_thread(hold))
    await asyncio.to_thread(held.wait)
    try:
        yield
    finally:
        ends.set()
        await holding


async def test_a_claim_that_is_made_after_its_request_ended_is_released(world: World) -> None:
    async with slow_writes(world.tasks):
        late = asyncio.create_task(world.write(**{"X-Request-Timeout-Ms": "200"}))
        await asyncio.sleep(0.5)
    assert (await late).status_code == 504
    assert (await world.written()).status_code == 200
    assert world.count() == 1


async def test_a_client_that_leaves_while_its_key_is_claimed_releases_it(world: World) -> None:
    async with slow_writes(world.tasks):
        writer = await world.begin()
        await asyncio.sleep(0.2)
        writer.transport.abort()
        await asyncio.sleep(0.2)
    assert (await world.written()).status_code == 200
    assert world.count() == 1


async def test_a_write_that_commits_after_its_request_ended_is_done_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim stays until the write has ended: the answer to a repeat says that it was committed."""
    begun, ends = threading.Event(), threading.Event()

    def hold(point: str) -> None:
        if point == "rows.written":
            begun.set()
            ends.wait(LIMIT_S)

    monkeypatch.setattr(database, "failpoint_listeners", [hold])
    late = asyncio.create_task(world.write(**{"X-Request-Timeout-Ms": "1000"}))
    await asyncio.to_thread(begun.wait)
    await asyncio.sleep(1.2)
    repeated = asyncio.create_task(world.write(**{"X-Request-Timeout-Ms": "500"}))
    await asyncio.sleep(0.7)
    ends.set()
    assert (await late).status_code == 504
    assert (await repeated).status_code in (409, 504)
    again = await world.written()
    assert (again.status_code, "was committed at seq" in again.json()["detail"]) == (409, True)
    assert world.count() == 1


async def test_several_ends_at_once_release_the_key(world: World) -> None:
    entered = await held(world)
    writer = await world.begin(**{"X-Request-Timeout-Ms": "300"})
    await asyncio.wait_for(entered.wait(), LIMIT_S)
    async with slow_writes(world.tasks):
        writer.transport.abort()
        await asyncio.sleep(0.5)  # the deadline passes while the release waits for the writer's thread
    world.encoder.gate.set()
    assert (await world.written()).status_code == 200
    assert world.count() == 1
