"""Live search: the newest drawing is answered."""

import asyncio
import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from vermouth_client import AsyncClient, NoAnswer, Strokes
from vermouth_client.errors import Invalid, NotFound

pytestmark = pytest.mark.anyio
FOUND = {"gallery": "g", "index_seq": 1, "fingerprint": "f", "results": [], "total": 0, "timings_ms": {}}


def drawing(n: int) -> Strokes:
    return Strokes([[[0, 50 + n], [0, 90]]], 100, 100)


@pytest.mark.server
async def test_the_newest_drawing_is_answered(service: dict[str, Any]) -> None:
    async with AsyncClient(**service) as client, client.live() as live:
        await client.put_item("default", "line", drawing(1), metadata={"kind": "line"})
        searches = [live.search(drawing(n), k=3, filter={"kind": "line"}) for n in range(20)]
        answers = await asyncio.gather(*searches)
        assert answers[:-1] == [None] * 19
        assert answers[-1] is not None
        assert [one.id for one in answers[-1].results] == ["line"]
        with pytest.raises(NotFound):
            await live.search(drawing(1), gallery="none")
        with pytest.raises(Invalid):
            await live.search(Strokes([]))
        found = await live.search(drawing(1), text="line")
        assert found is not None


@pytest.mark.server
async def test_a_closed_connection_is_named_with_its_reason(service: dict[str, Any]) -> None:
    async with AsyncClient(**{**service, "key": "wrong"}) as client, client.live() as live:
        with pytest.raises(NoAnswer, match="4401"):
            await live.search(drawing(1))
        with pytest.raises(NoAnswer, match="4401"):
            await live.search(drawing(2))
    async with AsyncClient("http://127.0.0.1:9") as client:
        with pytest.raises(NoAnswer, match="does not answer"):
            async with client.live():
                pass
    async with AsyncClient("ftp://127.0.0.1") as client:
        with pytest.raises(NoAnswer, match="does not answer"):
            async with client.live():
                pass


@asynccontextmanager
async def answering(*texts: str, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The address of a peer that answers every message with `texts`."""

    async def answer(socket: ServerConnection) -> None:
        assert socket.request is not None
        assert socket.request.headers["X-API-Key"] == "k"
        assert socket.request.headers["Authorization"] == "Basic x"
        async for _ in socket:
            for text in texts:
                await socket.send(text)

    async with serve(answer, "127.0.0.1", 0, ssl=context) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"{'http' if context is None else 'https'}://127.0.0.1:{port}"


OPTIONS: dict[str, Any] = {"key": "k", "headers": {"Authorization": "Basic x"}}


@pytest.mark.parametrize(
    "text",
    ["no JSON", "[]", '{"seq": 1}', '{"seq": 1, "type": "results"}', '{"seq": 1, "type": "error", "problem": 3}'],
)
async def test_a_message_of_another_service_ends_the_connection(text: str) -> None:
    async with answering(text) as url, AsyncClient(url, **OPTIONS) as client, client.live() as live:
        for _ in range(2):
            with pytest.raises(NoAnswer, match="1002 a message that the client does not know"):
                await live.search(drawing(1))


async def test_a_search_waits_no_longer_than_an_attempt_may_take() -> None:
    async with answering() as url, AsyncClient(url, timeout_s=2, **OPTIONS) as client, client.live() as live:
        with pytest.raises(NoAnswer, match="not answered in 2 seconds"):
            await live.search(drawing(1))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_live_search_trusts_what_the_client_trusts(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    files = ["-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, [*make, *files], check=True, capture_output=True)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(certificate, key)
    async with answering(json.dumps({"type": "results", "seq": 1, **FOUND}), context=own) as url:
        trusting = ssl.create_default_context(cafile=str(certificate))
        async with AsyncClient(url, verify=trusting, **OPTIONS) as client, client.live() as live:
            found = await live.search(drawing(1))
            assert found is not None
            assert found.gallery == "g"
        async with AsyncClient(url, **OPTIONS) as client:
            with pytest.raises(NoAnswer, match="certificate verify failed"):
                async with client.live():
                    pass
