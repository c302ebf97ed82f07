"""The outermost layer: request id, log line, metrics, and the response to an error that nothing else caught.

All layers are plain ASGI: `BaseHTTPMiddleware` hides disconnects. From the outside in: `RequestContext`, `PathGuard`,
`InFlightLimit`, `RequestDeadline`, `BodyLimit`, `DisconnectWatch`.
"""

import re
import time
import uuid

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import problem_response, service_error
from app.errors import ServiceError
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


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return uuid.uuid4().hex
