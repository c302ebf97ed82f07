"""Layers that refuse a request before any handler runs: its path, the requests in flight, its body's size."""

import asyncio
import contextlib
import re
import time
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.middleware.context import QUIET_ROUTES, HttpLayer
from app.api.problems import problem_response
from app.engine.admission import MAX_RETRY_AFTER_S, DrainRate
from app.errors import BodyTooLarge, Malformed, QueueFull
from app.runtime.telemetry import Telemetry

LINGER_S = 2.0
"""How long the rest of a refused body is read and dropped before the connection closes."""
_ENCODED_SEPARATOR = re.compile(rb"%(?:2f|5c|00)", re.IGNORECASE)


class PathGuard(HttpLayer):
    """Refuses paths that a proxy or a client may resolve to another route."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_plain_path(scope.get("raw_path") or scope["path"].encode()):
            error = Malformed("The path holds dot segments, empty segments, encoded separators or controls.")
            await self.refuse(error, scope, receive, send)
            return
        await self.app(scope, receive, send)


class InFlightLimit(HttpLayer):
    """Bounds the requests in flight, and with them the memory of their bodies; health and metrics always pass.

    `Retry-After` is the time that the requests in flight take at the rate at which requests finished recently.
    """

    def __init__(self, app: ASGIApp, *, max_in_flight: int, telemetry: Telemetry) -> None:
        super().__init__(app)
        self._free = max_in_flight
        self._max_in_flight = max_in_flight
        self._rate = DrainRate()
        self._last_end_s = 0.0
        self._telemetry = telemetry

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in QUIET_ROUTES:
            await self.app(scope, receive, send)
            return
        if self._free <= 0:
            self._telemetry.requests_rejected.labels("in_flight").inc()
            wait_s = self._rate.seconds_for(self._max_in_flight) or 1.0
            error = QueueFull("Too many requests are in flight.", retry_after_s=min(MAX_RETRY_AFTER_S, wait_s))
            # The server drops what is left of the body and keeps the connection.
            await self.refuse(error, scope, receive, send)
            return
        # Idle time is not part of the rate: the clock starts with the first request in flight.
        if self._free == self._max_in_flight:
            self._last_end_s = time.monotonic()
        self._free -= 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._free += 1
            now_s = time.monotonic()
            self._rate.observe(1, now_s - self._last_end_s)
            self._last_end_s = now_s


class BodyLimit(HttpLayer):
    """Counts the body while it streams in, so that a chunked one is bounded too."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        super().__init__(app)
        self._max_body_bytes = max_body_bytes

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = HTTPConnection(scope).headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > self._max_body_bytes:
            error = BodyTooLarge(f"A request body may hold {self._max_body_bytes} bytes.")
            await _respond_and_close(problem_response(error, HTTPConnection(scope)), scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                # FastAPI turns any other exception raised while it reads a body into 400.
                raise HTTPException(413)
            return message

        await self.app(scope, receive_counted, send)


def is_plain_path(raw_path: bytes) -> bool:
    """Whether a path as sent has only ordinary segments once decoded."""
    path = raw_path.split(b"?", 1)[0]
    if b"//" in path or _ENCODED_SEPARATOR.search(path):
        return False
    decoded = unquote(path.decode("latin-1"), errors="replace")
    has_controls = any(character < " " or character in "\x7f\\" for character in decoded)
    return not has_controls and not any(segment in (".", "..") for segment in decoded.split("/"))


async def _respond_and_close(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a response while the body still arrives, then read on for `LINGER_S` and close the connection.

    A client that is still sending when the connection closes sees a reset instead of the response (RFC 9112, 9.6).
    """

    async def send_open(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    response.headers["Connection"] = "close"
    await response(scope, receive, send_open)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})
