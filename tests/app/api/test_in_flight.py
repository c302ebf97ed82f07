"""Clients that do not read, or send slowly, hold nothing that others need; one client leaves slots to others."""

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Send
from starlette.types import Scope as ASGIScope

from app.api.auth import ApiKeys, Scope, new_key
from app.api.in_flight import InFlightLimit
from app.api.transport.connections import ConnectionLimits
from app.runtime.telemetry import Telemetry
from tests.app.api.images import png
from tests.app.api.served import LIMIT_S, new_app, served, set_soon
from tests.app.api.wire import connect, is_closed, read_answer
from tests.app.fakes import FakeEncoder

pytestmark = pytest.mark.anyio
STROKES = {"strokes": [[[0, 9], [0, 9]]], "width": 10, "height": 10}
LIMITS = ConnectionLimits(max_connections=128, keep_alive_s=30)
IMPATIENT = ConnectionLimits(max_connections=128, keep_alive_s=30, grace_s=0.3, sweep_s=0.05)
POST = b"POST /embed HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{"
GET_EXPORT = b"GET /galleries/default/export HTTP/1.1\r\nHost: test\r\n\r\n"
ITEMS = 100
METADATA = {"text": "x" * 100_000}


async def filled(port: int) -> None:
    """Ten megabytes of items: more than the buffers of a connection hold."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client:
        items = [{"id": f"i{n}", "image": STROKES, "metadata": METADATA} for n in range(ITEMS)]
        assert (await client.post("/galleries/default/items", json=items)).status_code == 200


@contextlib.contextmanager
def connections(port: int, count: int, request: bytes) -> Iterator[list[socket.socket]]:
    """Clients that have sent some bytes and do not read."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(connect(port, receive_bytes=4096)) for _ in range(count)]
        for connection in found:
            connection.sendall(request)
        yield found


async def first_other_status(port: int, path: str = "/galleries") -> int:
    """What another client is answered, after at most a few refusals that say when to come back."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client:
        for _ in range(20):
            status = (await client.get(path)).status_code
            if status != 429:
                break
            await asyncio.sleep(0.05)
        return status


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not is_so():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.02)


def metrics_of(app: FastAPI) -> str:
    text: str = app.state.platform.telemetry.exposition().decode()
    return text


@pytest.fixture
async def app(tmp_path: Path) -> FastAPI:
    return new_app(FakeEncoder(), tmp_path, max_in_flight=4, limits={"max_metadata_bytes": 1 << 20})


async def test_clients_that_do_not_read_an_export_hold_no_slot(app: FastAPI) -> None:
    async with served(app, LIMITS) as port:
        await filled(port)
        with connections(port, 4, GET_EXPORT):
            await asyncio.sleep(0.3)
            with connections(port, 4, GET_EXPORT):
                assert await first_other_status(port) == 200


async def test_a_client_that_does_not_take_the_last_part_of_a_stream_holds_no_slot() -> None:
    is_taken = asyncio.Event()

    async def stream(scope: ASGIScope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await send({"type": "http.response.body", "body": b"last"})

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        if message.get("body") == b"last":
            await is_taken.wait()

    limit = InFlightLimit(stream, max_in_flight=1, keys=ApiKeys([]), telemetry=Telemetry())
    scope = {"type": "http", "path": "/stream", "headers": [], "client": ("test", 1)}
    held = asyncio.create_task(limit(scope, receive, send))
    await until(lambda: bool(limit.slow))
    assert limit.free == 1
    is_taken.set()
    await held
    assert limit.free == 1


async def test_clients_that_send_slowly_hold_no_slot(app: FastAPI) -> None:
    async with served(app, LIMITS) as port:
        with connections(port, 4, POST):
            assert await first_other_status(port) == 200


async def test_of_too_many_slow_clients_the_slowest_leaves(app: FastAPI) -> None:
    async with served(app, LIMITS) as port:
        with contextlib.ExitStack() as stack:
            held = []
            for _ in range(5):
                held += stack.enter_context(connections(port, 1, POST))
                await asyncio.sleep(0.2)
            started_s = time.monotonic()
            answer = await asyncio.to_thread(read_answer, held[0])
            assert time.monotonic() - started_s < 5, "no sweep was needed"
            assert answer is not None
            assert (answer.status, answer.code) == (408, "request-timeout")


async def test_a_response_that_nobody_reads_is_given_up(app: FastAPI) -> None:
    async with served(app, IMPATIENT) as port:
        await filled(port)
        with connections(port, 3, GET_EXPORT) as held:
            await until(lambda: 'rejected_total{reason="slow_reader"} 3.0' in metrics_of(app))
            assert all([await asyncio.to_thread(is_closed, connection) for connection in held])


async def test_a_client_that_reads_slowly_gets_all(app: FastAPI) -> None:
    def read_slowly(port: int) -> bytes:
        with connect(port, receive_bytes=65536) as connection:
            connection.sendall(GET_EXPORT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            data = bytearray()
            while part := connection.recv(65536):
                data += part
                if len(data) % 97 == 0:
                    os.sched_yield()
        return bytes(data)

    async with served(app, IMPATIENT) as port:
        await filled(port)
        data = await asyncio.to_thread(read_slowly, port)
    assert data.endswith(b"0\r\n\r\n")
    assert data.count(b'"vector"') == ITEMS


async def test_one_client_leaves_a_quarter_to_others(tmp_path: Path) -> None:
    keys = [new_key(name, [Scope.READ]) for name in ("many", "few")]
    encoder = FakeEncoder()
    app = new_app(encoder, tmp_path, max_in_flight=8, api_keys=",".join(entry for _, entry in keys))
    entered, loop = asyncio.Event(), asyncio.get_running_loop()
    encoder.entered = lambda: set_soon(loop, entered)
    async with served(app, LIMITS) as port:
        clients = [
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S, headers={"X-API-Key": key})
            for key, _ in keys
        ]
        many, few = clients
        encoder.gate.clear()
        held = [asyncio.create_task(many.post("/embed", json={"texts": [f"{n}"]})) for n in range(8)]
        done, held_on = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait_for(entered.wait(), LIMIT_S)
        assert (await few.get("/galleries")).status_code == 200
        encoder.gate.set()
        statuses = sorted([(await task).status_code for task in held])
        assert statuses == [200] * 6 + [429] * 2
        assert all("You have" in task.result().json()["detail"] for task in done if task.result().status_code == 429)
        for client in clients:
            await client.aclose()
        del held_on


@pytest.fixture
async def large_image(app: FastAPI) -> AsyncIterator[tuple[int, bytes, Path]]:
    """A port, the image of the item `large`, and its file: ten megabytes of which a PNG reader needs the start."""
    data = png() + os.urandom(10 << 20)
    async with served(app, IMPATIENT) as port:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client:
            files = {"image": ("large.png", data, "image/png")}
            answer = await client.put("/galleries/default/items/large", files=files)
            assert answer.status_code == 201, answer.text
        digest = hashlib.sha256(data).hexdigest()
        blobs = app.state.platform.services.tasks.stores.blobs
        yield port, data, Path(blobs._path(digest))


async def test_a_large_image_is_read_as_it_is_taken(large_image: tuple[int, bytes, Path]) -> None:
    port, data, file = large_image
    url = f"http://127.0.0.1:{port}/galleries/default/items/large/image"
    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        answer = await client.get(url)
        assert answer.content == data
        assert answer.headers["etag"] == f'"{file.name}"'
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["content-length"] == str(len(data))
        request = b"GET /galleries/default/items/large/image HTTP/1.1\r\nHost: test\r\n\r\n"
        with connections(port, 6, request):
            await until(lambda: file in _open_files())
            await until(lambda: file not in _open_files())
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        answer = await client.get(url)
        assert (answer.status_code, json.loads(answer.content)["code"]) == (500, "damaged")


def _open_files() -> list[Path]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(link.readlink())
    return found
