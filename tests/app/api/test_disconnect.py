"""A client that goes away, over a real HTTP/1.1 connection: its samples never cost device time."""

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest

from app.api.middleware import CLIENT_CLOSED
from app.engine.admission import PassTimes
from app.engine.entries import EntryQueue
from tests.app.api.served import LIMIT_S, Watched, new_app, served, set_soon
from tests.app.fakes import FakeEncoder

pytestmark = pytest.mark.anyio


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
    put, dropped = Watched(EntryQueue, "put", monkeypatch), Watched(EntryQueue, "drop", monkeypatch)
    async with served(new_app(encoder, tmp_path)) as port:
        entered, loop = asyncio.Event(), asyncio.get_running_loop()
        encoder.entered = partial(set_soon, loop, entered)
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


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
async def test_a_client_that_leaves_in_the_middle_of_its_body_is_a_499_without_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    app = new_app(FakeEncoder(), tmp_path)
    counted = asyncio.Event()
    counter = app.state.platform.telemetry.http_requests.labels("POST", "/retrieve", CLIENT_CLOSED)
    counter.inc = counted.set
    async with served(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: 1000\r\n\r\n"
        writer.write(head.encode() + b"--x\r\n")
        await writer.drain()
        writer.close()
        await asyncio.wait_for(counted.wait(), LIMIT_S)
    assert not [record for record in caplog.records if record.exc_info or "failed" in record.getMessage()]


async def test_a_client_that_leaves_while_its_pass_runs_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = FakeEncoder()
    put = Watched(EntryQueue, "put", monkeypatch)
    async with served(new_app(encoder, tmp_path)) as port:
        entered, loop = asyncio.Event(), asyncio.get_running_loop()
        encoder.entered = partial(set_soon, loop, entered)
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
