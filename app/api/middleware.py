"""The layers around all routes.

A request passes `RequestContext`, `HeadersOnly`, `PathGuard`, `BodyLimit` (app/api/bodies.py), `InFlightLimit`
(app/api/in_flight.py), `RequestDeadline` and `DisconnectWatch`; starlette's `CORSMiddleware` lies around them where
origins are allowed.

All are plain ASGI: `BaseHTTPMiddleware` hides disconnects.
"""

import asyncio
import re
import time
import uuid
from abc import ABC, abstractmethod
from urllib.parse import unquote

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import problem_response, service_error
from app.errors import DeadlineExceeded, Malformed, ServiceError
from app.runtime.process import Deadline
from app.runtime.telemetry import Telemetry, bind_request, get_logger

QUIET_ROUTES = frozenset({"/livez", "/readyz", "/startupz", "/healthz", "/health", "/metrics"})
"""Routes that probes call every few seconds: neither logged nor limited."""
LATE = "The request took longer than its deadline."
CLIENT_CLOSED = 499  # nginx's status for a client that closed the connection before the response began
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_TRACE = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<id>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_ENCODED_SEPARATOR = re.compile(rb"%(?:2f|5c|00)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")
_MAX_TIMINGS = 16


class HttpLayer(ABC):
    """Base of the layers: `handle` sees HTTP requests; lifespan and WebSocket scopes pass through.

    A layer refuses a request by raising a ServiceError, which the outermost layer answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the layer as an ASGI app."""
        await (self.handle if scope["type"] == "http" else self.app)(scope, receive, send)

    @abstractmethod
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request, by `self.app` or by a response of the layer's own."""


class RequestContext(HttpLayer):
    """Assigns the request id, counts and logs the request, and answers errors that no handler has answered."""

    def __init__(self, app: ASGIApp, *, telemetry: Telemetry) -> None:
        super().__init__(app)
        self._telemetry = telemetry

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_s = time.perf_counter()
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"], state["timings"] = request_id, []
        bind_request(request_id, _trace_id(scope))
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
            await self.app(scope, receive, send_with_headers)
        except Exception as err:
            if not isinstance(err, ServiceError):
                get_logger().exception("request_failed")
            # A response that has begun cannot be replaced; uvicorn closes the connection.
            if status:
                raise
            response = problem_response(service_error(err), HTTPConnection(scope))
            await response(scope, receive, send_with_headers)
        finally:
            self._record(scope, status or CLIENT_CLOSED, time.perf_counter() - started_s)

    def _record(self, scope: Scope, status: int, duration_s: float) -> None:
        # The route's template, never the path: a label a path would be a metric a path.
        route = getattr(scope.get("route"), "path", "unmatched")
        self._telemetry.http_requests.labels(scope["method"], route, status).inc()
        self._telemetry.http_request_duration.labels(scope["method"], route).observe(duration_s)
        if route not in QUIET_ROUTES:
            duration_ms = round(duration_s * 1000, 2)
            client = scope.get("client")
            get_logger().info(
                "request",
                method=scope["method"],
                route=route,
                status=status,
                duration_ms=duration_ms,
                client=client and client[0],
                key=scope["state"].get("key"),
            )


class HeadersOnly(HttpLayer):
    """Answers HEAD as GET without its body, and with 304 where `If-None-Match` names the version that GET returns."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head, known = scope["method"] == "HEAD", HTTPConnection(scope).headers.get("if-none-match")
        if not is_head and (known is None or scope["method"] != "GET"):
            await self.app(scope, receive, send)
            return
        is_bare = has_ended = False

        async def send_headers(message: Message) -> None:
            nonlocal is_bare, has_ended
            if message["type"] == "http.response.start":
                is_same = message["status"] == 200 and _stripped_if_current(known, message)
                if is_same:
                    message["status"] = 304
                is_bare = is_head or is_same
            elif is_bare and has_ended:
                raise _NoBodyWanted  # ends a stream, such as an export
            elif is_bare:
                has_ended, message = True, {"type": "http.response.body", "body": b""}
            await send(message)

        inner = {**scope, "method": "GET"}  # the server must see HEAD still, which has no body
        try:
            await self.app(inner, receive, send_headers)
        except _NoBodyWanted:
            pass
        finally:
            scope["route"] = inner.get("route")


class PathGuard(HttpLayer):
    """Refuses paths that a proxy or a client may resolve to another route."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_plain_path(scope.get("raw_path") or scope["path"].encode()):
            raise Malformed("The path holds dot segments, empty segments, encoded separators or controls.")
        await self.app(scope, receive, send)


class RequestDeadline(HttpLayer):
    """Answers 504 to a request whose response has not begun at its deadline, or begins after it.

    The deadline is the setting, or `X-Request-Timeout-Ms` where that is less. Endpoints read it as
    `state.deadline_at_s`, a time of the event loop's clock.
    """

    def __init__(self, app: ASGIApp, *, deadline: Deadline) -> None:
        super().__init__(app)
        self._deadline = deadline

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed_s = self._allowed_s(HTTPConnection(scope).headers.get("x-request-timeout-ms"))
        loop = asyncio.get_running_loop()
        deadline_at_s = scope["state"]["deadline_at_s"] = loop.time() + allowed_s
        try:
            async with asyncio.timeout(allowed_s) as timeout:

                async def send_and_lift(message: Message) -> None:
                    # A response that has begun, such as an export, may take as long as its client keeps pace.
                    if message["type"] == "http.response.start":
                        # The timer is late where the event loop was blocked. It cancels the request here: an error
                        # raised in `send` would be one of a response that has begun, to Starlette.
                        if loop.time() > deadline_at_s:
                            await loop.create_future()
                        timeout.reschedule(None)
                    await send(message)

                await self.app(scope, receive, send_and_lift)
        except TimeoutError as err:
            if not timeout.expired():
                raise
            raise DeadlineExceeded(LATE) from err

    def _allowed_s(self, header: str | None) -> float:
        if header is None:
            return self._deadline.seconds
        if not (header.isascii() and header.isdigit() and 0 < len(header) < 10) or int(header) == 0:
            raise Malformed("X-Request-Timeout-Ms must be a whole number of milliseconds above zero.")
        return min(self._deadline.seconds, int(header) / 1000)


class DisconnectWatch(HttpLayer):
    """Cancels the handler of a request whose client disconnects before the response begins."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
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
            # Only one task may call `receive`: the watch takes over after the last part of the body.
            if message["type"] == "http.request" and not message.get("more_body", False):
                watch = asyncio.create_task(wait_for_disconnect())
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive_and_watch, send_and_note)
        except ClientDisconnect:
            pass  # in the middle of the body: there is nobody to answer
        except asyncio.CancelledError:
            # Swallow the watch's own cancellation only; one from outside, such as a shutdown, goes on.
            if not is_gone.is_set() or worker is None or worker.uncancel() > 0:
                raise
        finally:
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)


def is_plain_path(raw_path: bytes) -> bool:
    """Whether a path as sent has only ordinary segments once decoded."""
    path = raw_path.split(b"?", 1)[0]
    if b"//" in path or _ENCODED_SEPARATOR.search(path):
        return False
    decoded = unquote(path.decode("latin-1"), errors="replace")
    return not _CONTROL.search(decoded) and not any(segment in (".", "..") for segment in decoded.split("/"))


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return uuid.uuid4().hex


def _trace_id(scope: Scope) -> str | None:
    """The trace of a `traceparent` header (W3C Trace Context); None where there is no valid one."""
    for name, value in scope["headers"]:
        if name == b"traceparent" and (match := _TRACE.fullmatch(value)):
            return str(match["id"].decode())
    return None


class _NoBodyWanted(OSError):
    """Ends a response whose body nobody reads; starlette's streams take it for a client that disconnected."""


def is_current(known: str | None, tag: str) -> bool:
    """Whether an `If-None-Match` header names an entity tag (RFC 9110, 13.1.2: weak comparison)."""
    tags = {one.strip().removeprefix("W/") for one in (known or "").split(",")}
    return tag.removeprefix("W/") in tags or tags == {"*"}


def _stripped_if_current(known: str | None, message: Message) -> bool:
    """As `is_current`; the start of a response that is current loses the headers of its body.

    Only what says how it may be cached: the version of an item or an episode is for `If-Match`, and its signed
    addresses and its fingerprint change without one.
    """
    headers = MutableHeaders(raw=message["headers"])
    if known is None or not {"etag", "cache-control"} <= set(headers) or not is_current(known, headers["etag"]):
        return False
    for name in ("content-length", "content-type"):
        del headers[name]
    message["headers"] = headers.raw
    return True
