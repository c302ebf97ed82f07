"""Pure ASGI layers round every request; `BaseHTTPMiddleware` would hide disconnects.

Outermost first: `RequestContext` (id, log, metrics, last resort), `PathGuard`, `InFlightLimit`,
`RequestDeadline`, `BodyLimit`, `DisconnectWatch`.
"""

import asyncio
import contextlib
import re
import time
import uuid
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import problem_response, service_error
from app.engine.admission import MAX_RETRY_AFTER_S
from app.engine.rates import DrainRate
from app.errors import BodyTooLarge, DeadlineExceeded, Malformed, QueueFull
from app.runtime.telemetry import Telemetry, bind_request, get_logger

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_QUIET_ROUTES = frozenset({"/livez", "/readyz", "/startupz", "/healthz", "/health", "/metrics"})
_ENCODED_SEPARATOR = re.compile(rb"%(?:2f|5c|00)", re.IGNORECASE)
_MAX_TIMINGS = 16
_LINGER_S = 2.0
"""For which what a refused client still sends is read and dropped."""


class RequestContext:
    """Gives a request its id, counts and logs it, and answers 500 where nothing else caught the error."""

    def __init__(self, app: ASGIApp, *, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"], state["timings"] = request_id, []
        bind_request(request_id)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                timings = [*state["timings"][:_MAX_TIMINGS], ("total", (time.perf_counter() - started_s) * 1000)]
                server_timing = ", ".join(f"{name};dur={duration_ms:.2f}" for name, duration_ms in timings)
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"server-timing", server_timing.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as err:
            # The last resort: the log gets all of it, the client nothing.
            get_logger().exception("request_failed")
            if status:
                raise
            await problem_response(service_error(err), HTTPConnection(scope))(scope, receive, send_with_headers)
        finally:
            self._record(scope, status, time.perf_counter() - started_s)

    def _record(self, scope: Scope, status: int, duration_s: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        # 499 as in the field: the client went away before an answer began.
        self._telemetry.http_requests.labels(scope["method"], route, status or 499).inc()
        self._telemetry.http_request_duration.labels(scope["method"], route).observe(duration_s)
        if route not in _QUIET_ROUTES:
            get_logger().info(
                "request",
                method=scope["method"],
                route=route,
                status=status or 499,
                duration_ms=round(duration_s * 1000, 2),
            )


class PathGuard:
    """Refuses paths that a proxy or a client may read as another route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_plain_path(scope.get("raw_path") or scope["path"].encode()):
            error = Malformed("The path holds dot segments, empty segments, encoded separators or controls.")
            await problem_response(error, HTTPConnection(scope))(scope, receive, send)
            return
        await self._app(scope, receive, send)


class InFlightLimit:
    """Bounds the requests at work, and with them the memory of their bodies; health and metrics always pass.

    `Retry-After` is how long the requests at work now will take at the rate at which such were answered lately.
    """

    def __init__(self, app: ASGIApp, *, max_in_flight: int, telemetry: Telemetry) -> None:
        self._app = app
        self._free = max_in_flight
        self._max_in_flight = max_in_flight
        self._rate = DrainRate()
        self._last_end_s = 0.0
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _QUIET_ROUTES:
            await self._app(scope, receive, send)
            return
        if self._free <= 0:
            self._telemetry.requests_rejected.labels("in_flight").inc()
            wait_s = self._rate.seconds_for(self._max_in_flight) or 1.0
            error = QueueFull("Too many requests are at work.", retry_after_s=min(MAX_RETRY_AFTER_S, wait_s))
            # The server drops what is left of the body and keeps the connection.
            await problem_response(error, HTTPConnection(scope))(scope, receive, send)
            return
        if self._free == self._max_in_flight:
            self._last_end_s = time.monotonic()
        self._free -= 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._free += 1
            now_s = time.monotonic()
            self._rate.observe(1, now_s - self._last_end_s)
            self._last_end_s = now_s


class RequestDeadline:
    """Ends a request that has not begun to answer when its time is up.

    The time is the setting's, or `X-Request-Timeout-Ms` where that is less. It is told to the endpoints as
    `state.deadline_at_s`, a time of the loop's clock.
    """

    def __init__(self, app: ASGIApp, *, deadline_s: float) -> None:
        self._app = app
        self._deadline_s = deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        allowed_s = self._allowed_s(HTTPConnection(scope).headers.get("x-request-timeout-ms"))
        if allowed_s is None:
            error = Malformed("X-Request-Timeout-Ms must be a whole number of milliseconds above zero.")
            await problem_response(error, HTTPConnection(scope))(scope, receive, send)
            return
        scope["state"]["deadline_at_s"] = asyncio.get_running_loop().time() + allowed_s
        try:
            async with asyncio.timeout(allowed_s) as timeout:

                async def send_and_lift(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        timeout.reschedule(None)
                    await send(message)

                await self._app(scope, receive, send_and_lift)
        except TimeoutError:
            if not timeout.expired():
                raise
            late = DeadlineExceeded("The request took longer than its deadline.")
            await problem_response(late, HTTPConnection(scope))(scope, receive, send)

    def _allowed_s(self, header: str | None) -> float | None:
        if header is None:
            return self._deadline_s
        if not (header.isascii() and header.isdigit() and 0 < len(header) < 10) or int(header) == 0:
            return None
        return min(self._deadline_s, int(header) / 1000)


class BodyLimit:
    """Counts the body while it streams in, so that a chunked one is bounded too."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = HTTPConnection(scope).headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > self._max_body_bytes:
            error = BodyTooLarge(f"A request body may hold {self._max_body_bytes} bytes.")
            await _answer_and_close(problem_response(error, HTTPConnection(scope)), scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                # FastAPI passes this exception through its own handling of bad bodies, and no other.
                raise HTTPException(413)
            return message

        await self._app(scope, receive_counted, send)


class DisconnectWatch:
    """Cancels the work of a request whose client went away before an answer began."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        worker = asyncio.current_task()
        has_begun, is_gone = False, asyncio.Event()
        watch: asyncio.Task[None] | None = None

        async def wait_for_disconnect() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            is_gone.set()
            if not has_begun and worker is not None:
                worker.cancel()

        async def receive_and_watch() -> Message:
            nonlocal watch
            if watch is not None:
                await is_gone.wait()
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                watch = asyncio.create_task(wait_for_disconnect())
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive_and_watch, send_and_note)
        except asyncio.CancelledError:
            if not is_gone.is_set() or worker is None or worker.uncancel() > 0:
                raise
        finally:
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)


async def _answer_and_close(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers while a body too large to read comes in, and reads on for a moment before the connection is closed.

    A client that is still sending when a connection is closed sees it break, not the answer (RFC 9112, 9.6).
    """

    async def send_open(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    response.headers["Connection"] = "close"
    await response(scope, receive, send_open)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})


def is_plain_path(raw_path: bytes) -> bool:
    """Whether a path as sent has only ordinary segments once decoded."""
    path = raw_path.split(b"?", 1)[0]
    if b"//" in path or _ENCODED_SEPARATOR.search(path):
        return False
    decoded = unquote(path.decode("latin-1"), errors="replace")
    return not any(character < " " or character in "\x7f\\" for character in decoded) and not any(
        segment in (".", "..") for segment in decoded.split("/")
    )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return uuid.uuid4().hex
