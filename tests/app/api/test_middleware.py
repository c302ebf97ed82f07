"""The layers round a request: limits, deadlines, disconnects, ids, metrics."""

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message

from app.api.auth import Scope, ScopedRoute, requires
from app.api.deps import Platform, Services, remaining_s_of
from app.domain import Limits
from app.errors import NotFound
from app.main import create_app
from app.settings import Settings

pytestmark = pytest.mark.anyio


class Seen:
    def __init__(self) -> None:
        self.waits = asyncio.Event()
        self.was_cancelled = False
        self.remaining_s = 0.0


def make_app(seen: Seen) -> FastAPI:
    def never_loads(settings: Settings, platform: Platform) -> Services:
        del settings, platform
        raise AssertionError

    app = create_app(Settings(limits=Limits(max_body_bytes=1024), max_in_flight=2), never_loads)
    router = APIRouter(route_class=ScopedRoute)

    @router.post("/echo")
    @requires(Scope.OPEN)
    async def echo(request: Request) -> int:
        seen.remaining_s = remaining_s_of(request)
        return len(await request.body())

    @router.post("/wait")
    @requires(Scope.OPEN)
    async def wait(request: Request) -> None:
        await request.body()
        seen.waits.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.was_cancelled = True
            raise

    @router.post("/stream")
    @requires(Scope.OPEN)
    async def stream(request: Request) -> StreamingResponse:
        await request.body()

        async def lines() -> AsyncIterator[str]:
            for number in range(3):
                yield f"{number}\n"

        return StreamingResponse(lines())

    @router.post("/late/{kind}")
    @requires(Scope.OPEN)
    async def late(kind: str) -> Response:
        time.sleep(0.05)  # noqa: ASYNC251 - a blocked event loop, whose timers are late
        if kind == "error":
            raise NotFound("There is none.")
        return StreamingResponse(chunks(1)) if kind == "stream" else Response()

    app.include_router(router)
    return app


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def app(seen: Seen) -> FastAPI:
    return make_app(seen)


@pytest.fixture
def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 100


async def test_a_declared_body_over_the_limit_is_refused_unread(client: httpx.AsyncClient) -> None:
    answer = await client.post("/echo", content=b"x" * 1025)
    assert (answer.status_code, answer.json()["code"]) == (413, "body-too-large")
    assert answer.headers["connection"] == "close"
    assert (await client.post("/echo", content=b"x" * 1024)).json() == 1024


async def test_a_chunked_body_is_counted_as_it_comes(client: httpx.AsyncClient) -> None:
    assert (await client.post("/echo", content=chunks(10))).json() == 1000
    answer = await client.post("/echo", content=chunks(11))
    assert (answer.status_code, answer.json()["code"]) == (413, "body-too-large")
    assert answer.json()["detail"] == "A request body may hold 1024 bytes."


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"nonsense", "²".encode()])
async def test_an_odd_content_length_is_refused(app: FastAPI, length: bytes) -> None:
    sent = await speak(app, "/echo", [], headers=[(b"content-length", length)])
    assert sent[0]["status"] in (400, 413)


async def test_the_callers_timeout_shortens_the_deadline(client: httpx.AsyncClient, seen: Seen) -> None:
    await client.post("/echo")
    assert 25 < seen.remaining_s <= 30
    await client.post("/echo", headers={"X-Request-Timeout-Ms": "5000"})
    assert 4 < seen.remaining_s <= 5
    await client.post("/echo", headers={"X-Request-Timeout-Ms": "99999999"})
    assert 25 < seen.remaining_s <= 30


async def test_a_deadline_that_passes_is_504(client: httpx.AsyncClient, seen: Seen) -> None:
    answer = await client.post("/wait", headers={"X-Request-Timeout-Ms": "1"})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline-exceeded")
    assert seen.was_cancelled or not seen.waits.is_set()


@pytest.mark.parametrize("kind", ["response", "stream", "error"])
async def test_a_response_that_begins_after_its_deadline_is_504(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post(f"/late/{kind}", headers={"X-Request-Timeout-Ms": "10"})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline-exceeded")


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "soon", "", "9" * 30, "²"])
async def test_an_odd_timeout_is_refused(client: httpx.AsyncClient, value: str) -> None:
    answer = await client.post("/echo", headers={b"X-Request-Timeout-Ms": value.encode()})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")


async def test_a_client_that_goes_away_cancels_its_work(app: FastAPI, seen: Seen) -> None:
    sent = await speak(app, "/wait", [body(b"x")], leave_when=seen.waits)
    assert seen.was_cancelled
    assert sent == []
    metrics = app.state.platform.telemetry.exposition().decode()
    assert 'http_requests_total{method="POST",route="/wait",status="499"} 1.0' in metrics


async def test_requests_at_work_are_bounded_and_health_is_not(
    app: FastAPI, client: httpx.AsyncClient, seen: Seen
) -> None:
    held = [asyncio.create_task(client.post("/wait")) for _ in range(2)]
    await seen.waits.wait()
    await asyncio.sleep(0)
    answer = await client.post("/echo")
    assert (answer.status_code, answer.json()["code"]) == (429, "queue-full")
    assert answer.headers["retry-after"] == "1"
    assert (await client.get("/livez")).status_code == 200
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    assert (await client.post("/echo")).status_code == 200
    assert 'rejected_total{reason="in_flight"} 1.0' in app.state.platform.telemetry.exposition().decode()


async def test_a_stream_is_sent_whole(client: httpx.AsyncClient) -> None:
    assert (await client.post("/stream")).text == "0\n1\n2\n"


@pytest.mark.parametrize("given", ["", "has space", "x" * 129, 'a"b'])
async def test_an_odd_request_id_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    answer = await client.post("/echo", headers={"X-Request-ID": given})
    assert answer.headers["x-request-id"] not in ("", given)


async def test_timings_and_metrics_tell_the_route(app: FastAPI, client: httpx.AsyncClient) -> None:
    answer = await client.post("/echo")
    assert "total;dur=" in answer.headers["server-timing"]
    await client.get("/no/such/place")
    metrics = app.state.platform.telemetry.exposition().decode()
    assert 'http_requests_total{method="POST",route="/echo",status="200"} 1.0' in metrics
    assert 'route="unmatched",status="404"' in metrics
    assert "/no/such/place" not in metrics


def body(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": data, "more_body": more}


async def speak(
    app: FastAPI,
    path: str,
    messages: list[Message],
    *,
    headers: list[tuple[bytes, bytes]] | None = None,
    leave_when: asyncio.Event | None = None,
) -> list[Message]:
    """Speak ASGI as a client that sends `messages` and goes away when the event is set."""
    waiting, sent = list(messages), list[Message]()

    async def receive() -> Message:
        if waiting:
            return waiting.pop(0)
        if leave_when is not None:
            await leave_when.wait()
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        return {}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"test"), *(headers or [])], "client": None, "server": ("test", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    return sent
