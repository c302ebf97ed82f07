"""Compressed request bodies are decoded under the limit of a body."""

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from app.domain import MIB, Limits
from app.main import create_app
from app.settings import Settings
from tests.app.api.conftest import build_services
from tests.app.api.images import BAR, png

pytestmark = pytest.mark.anyio
QUERY = json.dumps({"sketch": BAR, "k": 1}).encode()


def deflated(data: bytes) -> bytes:
    return zlib.compress(data)


async def in_bytes(data: bytes) -> AsyncIterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("gzip", gzip.compress(QUERY)),
        ("GZIP", gzip.compress(QUERY)),
        ("x-gzip", gzip.compress(QUERY)),
        ("deflate", deflated(QUERY)),
        ("identity", QUERY),
        ("", QUERY),
    ],
    ids=["gzip", "GZIP", "x-gzip", "deflate", "identity", "none"],  # a name made of the bytes would hold the time
)
async def test_a_compressed_search_is_the_same_search(client: httpx.AsyncClient, coding: str, data: bytes) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    for content in (data, in_bytes(data)):
        answer = await client.post("/retrieve", content=content, headers=headers)
        assert answer.status_code == 200, answer.text


async def test_a_large_image_comes_out_whole(client: httpx.AsyncClient) -> None:
    image = png(900, 700)  # over a megabyte, which does not shrink
    form = client.build_request("POST", "/galleries/default/items", files=[("image", image)])
    data = gzip.compress(form.read(), compresslevel=1)
    headers = {"Content-Type": form.headers["content-type"], "Content-Encoding": "gzip"}
    answer = await client.post("/galleries/default/items", content=data, headers=headers)
    (result,) = answer.json()["results"]
    assert (await client.get(f"/galleries/default/items/{result['id']}/image")).content == image


@pytest.mark.parametrize(
    ("coding", "data", "status", "code"),
    [
        pytest.param("br", QUERY, 415, "unsupported-coding", id="brotli"),
        pytest.param("zstd", QUERY, 415, "unsupported-coding", id="zstd"),
        pytest.param("gzip, gzip", QUERY, 415, "unsupported-coding", id="twice"),
        pytest.param("gzip", QUERY, 400, "malformed", id="plain, with a false header"),
        pytest.param("deflate", gzip.compress(QUERY), 400, "malformed", id="another coding"),
        pytest.param("gzip", gzip.compress(QUERY)[:-4], 400, "malformed", id="cut"),
        pytest.param("gzip", gzip.compress(QUERY) + b"more", 400, "malformed", id="more"),
        pytest.param("gzip", gzip.compress(QUERY)[:-8] + bytes(8), 400, "malformed", id="wrong checksum"),
        pytest.param("gzip", b"", 400, "malformed", id="nothing"),
    ],
)
async def test_what_cannot_be_decoded_is_refused(
    client: httpx.AsyncClient, coding: str, data: bytes, status: int, code: str
) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    answer = await client.post("/retrieve", content=data, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (answer.headers.get("accept-encoding") == "gzip, deflate") is (status == 415)


async def test_a_bomb_is_413_and_does_not_hold_others_up(tmp_path: Path) -> None:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS + 16)
    zeros = bytes(MIB)
    bomb = b"".join(squeeze.compress(zeros) for _ in range(64)) + squeeze.flush()
    app = create_app(Settings(data_dir=tmp_path, limits=Limits(max_body_bytes=48 * MIB)), build_services)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        await app.state.supervisor.settled()
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        sent = asyncio.create_task(client.post("/retrieve", content=bomb, headers=headers))
        turns, longest_s = 0, 0.0
        while not sent.done():
            started_s = time.perf_counter()
            await asyncio.sleep(0)
            turns, longest_s = turns + 1, max(longest_s, time.perf_counter() - started_s)
        assert ((await sent).status_code, (await sent).json()["code"]) == (413, "body-too-large")
        assert turns > 100  # of the event loop, between pieces
