"""Layers that hold a request's context: its id, log line and metrics, its deadline, and its client's connection.

All layers are plain ASGI: `BaseHTTPMiddleware` hides disconnects. From the outside in: `RequestContext`, `PathGuard`,
`InFlightLimit`, `RequestDeadline`, `BodyLimit`, `DisconnectWatch`.
"""

import asyncio
import re
import time
import uuid

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import problem_response, service_error
from app.errors import DeadlineExceeded, Malformed, ServiceError
from app.runtime.telemetry import Telemetry, bind_request, get_logger

QUIET_ROUTES = frozenset({"/livez", "/readyz", "/startupz", "/healthz", "/health", "/metrics"})
"""Routes that probes call every few seconds: neither logged nor limited."""
CLIENT_CLOSED = 499  # nginx's status for a client that closed the connection before the response began
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_MAX_TIMINGS = 16


class HttpLayer:
    """Base of the layers: `handle` sees HTTP requests; lifespan and WebSocket scopes pass through."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the layer as an ASGI app."""
        await (self.handle if scope["type"] == "http" else self.app)(scope, receive, send)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request, by `self.app` or by a response of the layer's own."""
        raise NotImplementedError

    async def refuse(self, error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response that an error maps to."""
        await problem_response(error, HTTPConnection(scope))(scope, receive, send)


class RequestContext(HttpLayer):
    """Assigns the request id, counts and logs the request, and answers 500 to an unhandled error."""

    def __init__(self, app: ASGIApp, *, telemetry: Telemetry) -> None:
        super().__init__(app)
        self._telemetry = telemetry

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
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
            await self.app(scope, receive, send_with_headers)
        except Exception as err:
            get_logger().exception("request_failed")
            # A response that has begun cannot be replaced; uvicorn closes the connection.
            if status:
                raise
            await self.refuse(service_error(err), scope, receive, send_with_headers)
        finally:
            self._record(scope, status or CLIENT_CLOSED, time.perf_counter() - started_s)

    def _record(self, scope: Scope, status: int, duration_s: float) -> None:
        # The route's template, never the path: a label a path would be a metric a path.
        route = getattr(scope.get("route"), "path", "unmatched")
        self._telemetry.http_requests.labels(scope["method"], route, status).inc()
        self._telemetry.http_request_duration.labels(scope["method"], route).observe(duration_s)
        if route not in QUIET_ROUTES:
            duration_ms = round(duration_s * 1000, 2)
            get_logger().info("request", method=scope["method"], route=route, status=status, duration_ms=duration_ms)


class RequestDeadline(HttpLayer):
    """Answers 504 to a request whose response has not begun at its deadline.

    The deadline is the setting, or `X-Request-Timeout-Ms` where that is less. Endpoints read it as
    `state.deadline_at_s`, a time of the event loop's clock.
    """

    def __init__(self, app: ASGIApp, *, deadline_s: float) -> None:
        super().__init__(app)
        self._deadline_s = deadline_s

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed_s = self._allowed_s(HTTPConnection(scope).headers.get("x-request-timeout-ms"))
        if allowed_s is None:
            error = Malformed("X-Request-Timeout-Ms must be a whole number of milliseconds above zero.")
            await self.refuse(error, scope, receive, send)
            return
        scope["state"]["deadline_at_s"] = asyncio.get_running_loop().time() + allowed_s
        try:
            async with asyncio.timeout(allowed_s) as timeout:

                async def send_and_lift(message: Message) -> None:
                    # A response that has begun, such as an export, may take as long as it needs.
                    if message["type"] == "http.response.start":
                        timeout.reschedule(None)
                    await send(message)

                await self.app(scope, receive, send_and_lift)
        except TimeoutError:
            if not timeout.expired():
                raise
            late = DeadlineExceeded("The request took longer than its deadline.")
            await self.refuse(late, scope, receive, send)

    def _allowed_s(self, header: str | None) -> float | None:
        if header is None:
            return self._deadline_s
        if not (header.isascii() and header.isdigit() and 0 < len(header) < 10) or int(header) == 0:
            return None
        return min(self._deadline_s, int(header) / 1000)


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
        except asyncio.CancelledError:
            # Swallow the watch's own cancellation only; one from outside, such as a shutdown, goes on.
            if not is_gone.is_set() or worker is None or worker.uncancel() > 0:
                raise
        finally:
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return uuid.uuid4().hex
