"""A client that is refused while it still sends a large body reads the answer, over a real HTTP/1.1 connection."""

import asyncio
import http.client
import json
from functools import partial
from pathlib import Path

import pytest

from tests.app.api.served import LIMIT_S, new_app, served, set_soon
from tests.app.fakes import FakeEncoder

pytestmark = pytest.mark.anyio
LARGE = b"x" * (8 << 20)
"""More than the buffers of a connection hold."""


def statuses(port: int, bodies: list[bytes]) -> list[tuple[int, str | None]]:
    """Status and `Connection` header of one POST after another, on one connection for as long as it stays."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    found = []
    for body in bodies:
        connection.request("POST", "/embed", body=body, headers={"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        found.append((answer.status, answer.getheader("Connection")))
    connection.close()
    return found


async def test_too_large_a_body(tmp_path: Path) -> None:
    async with served(new_app(FakeEncoder(), tmp_path, limits={"max_body_bytes": 1024})) as port:
        assert await asyncio.to_thread(statuses, port, [LARGE]) == [(413, "close")]


async def test_too_many_at_work_keeps_the_connection(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    async with served(new_app(encoder, tmp_path, max_in_flight=1)) as port:
        entered, loop = asyncio.Event(), asyncio.get_running_loop()
        encoder.entered = partial(set_soon, loop, entered)
        encoder.gate.clear()
        body = json.dumps({"texts": ["held"]}).encode()
        held = asyncio.create_task(asyncio.to_thread(statuses, port, [body]))
        await asyncio.wait_for(entered.wait(), LIMIT_S)
        assert await asyncio.to_thread(statuses, port, [LARGE, body]) == [(429, None), (429, None)]
        encoder.gate.set()
        assert await held == [(200, None)]
