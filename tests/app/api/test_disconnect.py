"""A client that goes away, over a real HTTP/1.1 connection: its samples never cost device time."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from app.api.deps import Platform
from app.api.services import Services
from app.build_services import assemble_services
from app.engine.batcher import WorkQueue
from app.engine.rates import PassTimes
from app.engine.work import Work
from app.lifecycle import Phase
from app.main import create_app
from app.settings import Settings
from models.heads.prototype import PrototypeHead
from tests.app.api.conftest import FakeSegmentationHead, bundle_info
from tests.app.fakes import FakeEncoder

pytestmark = pytest.mark.anyio
LIMIT_S = 30


class Watched:
    """Events of an object's method: `wait` returns when it was called so often in all."""

    def __init__(self, owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._calls = asyncio.Semaphore(0)
        plain: Callable[[WorkQueue, Work], None] = getattr(owner, name)

        def call(queue: WorkQueue, work: Work) -> None:
            plain(queue, work)
            self._calls.release()

        monkeypatch.setattr(owner, name, call)

    async def wait(self) -> None:
        await asyncio.wait_for(self._calls.acquire(), LIMIT_S)


def new_app(encoder: FakeEncoder, data_dir: Path) -> FastAPI:
    def build(settings: Settings, platform: Platform) -> Services:
        return assemble_services(
            settings,
            platform,
            encoder=encoder,
            bundle=bundle_info(),
            segmentation_head=FakeSegmentationHead(),
            prototype_head=PrototypeHead(),
        )

    return create_app(Settings(data_dir=data_dir, feature_cache_bytes=0), build)


class Server(uvicorn.Server):
    """uvicorn, and an event that says it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_listening.set()


@contextlib.asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[int]:
    """A port that uvicorn serves the app on."""
    server = Server(uvicorn.Config(app, port=0, log_config=None, ws="none", timeout_graceful_shutdown=5))
    running = asyncio.create_task(server._serve())
    assert await app.state.supervisor.settled() is Phase.READY
    await asyncio.wait_for(server.is_listening.wait(), LIMIT_S)
    try:
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        await running


def _set_soon(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)


async def ask(port: int, text: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which `POST /embed` was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"texts": [text]}).encode()
    head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer


async def status_of(reader: asyncio.StreamReader) -> int:
    line = await asyncio.wait_for(reader.readline(), LIMIT_S)
    return int(line.split()[1])


async def test_a_closed_connection_takes_its_samples_out_of_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = FakeEncoder()
    # Nothing is prefetched, so that what waits waits in the queue.
    monkeypatch.setattr(PassTimes, "expected_s", lambda _self, _batch: None)
    put, dropped = Watched(WorkQueue, "put", monkeypatch), Watched(WorkQueue, "drop", monkeypatch)
    async with served(new_app(encoder, tmp_path)) as port:
        entered, loop = asyncio.Event(), asyncio.get_running_loop()
        encoder.entered = partial(_set_soon, loop, entered)
        encoder.gate.clear()
        encoder.text_batches.clear()
        first, first_writer = await ask(port, "first")
        await asyncio.wait_for(entered.wait(), LIMIT_S)
        for wait in (put, dropped):
            await wait.wait()
        _, gone = await ask(port, "gone")
        await put.wait()
        stays, stays_writer = await ask(port, "stays")
        await put.wait()
        gone.transport.abort()
        await dropped.wait()
        encoder.gate.set()
        assert [await status_of(first), await status_of(stays)] == [200, 200]
        for writer in (first_writer, stays_writer):
            writer.close()
    assert encoder.text_batches == [1, 1]


async def test_a_client_that_leaves_while_its_pass_runs_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = FakeEncoder()
    put = Watched(WorkQueue, "put", monkeypatch)
    async with served(new_app(encoder, tmp_path)) as port:
        entered, loop = asyncio.Event(), asyncio.get_running_loop()
        encoder.entered = partial(_set_soon, loop, entered)
        encoder.gate.clear()
        _, gone = await ask(port, "gone")
        await asyncio.wait_for(entered.wait(), LIMIT_S)
        await put.wait()
        gone.transport.abort()
        stays, writer = await ask(port, "stays")
        await put.wait()
        encoder.gate.set()
        assert await status_of(stays) == 200
        writer.close()
