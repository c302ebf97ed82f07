"""HTTP/1.1 connections: uvicorn's protocol with bounds on headers, framing, pipelining and pace.

What cannot be parsed is answered by a problem document, and the connection closes.
"""

import asyncio
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app import errors
from app.api.middleware import QUIET_ROUTES
from app.api.transport.connections import Config, Pace, SendPace
from app.api.transport.refusals import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    head_error,
    headers_too_large,
    parse_error,
    refusal_bytes,
)
from app.api.transport.torn_message import TornMessage
from app.errors import ServiceError

MAX_TARGET_BYTES = 32 << 10  # filters are long
MAX_UPGRADE_LINE_BYTES = 8000  # the WebSocket library parses the handshake again and takes 8192
MAX_PIPELINED = 16  # requests that wait for one connection's responses; nearly no client pipelines
MAX_DROPPED_BYTES = 64 << 20  # of a body whose response is complete
MAX_DROPPED_HEAD_BYTES = 2 << 20  # of headers that were refused: no client sends more by mistake


class HttpProtocol(HttpToolsProtocol):
    """One HTTP connection."""

    config: Config

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        limits = config.connections.limits
        self._register = config.connections
        self._since_s = self._register.now_s  # idle, torn or refused since
        self._sending, self._receiving = SendPace(limits), Pace(limits)
        self._running: RequestResponseCycle | None = None  # of the request that is being answered
        self._is_surplus = False
        self._was_used = False
        self._newest = TornMessage(config.connections)
        self._has_cycle = False  # the newest message
        self._head_bytes = 0  # of the newest message, path and headers
        self._received_bytes = 0  # since the last check
        self._dropped_bytes = 0
        self._refusal: ServiceError | None = None
        self._is_refused = False  # the refusal was sent

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._is_surplus = not self._register.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._register.remove(self)
        self._newest.forget()
        self.pipeline.clear()
        # uvicorn tells the newest request only.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        self._sending.drained()
        super().resume_writing()
        if self._running is not None and self._running.response_complete:
            self._next()

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            self._drop(len(data))
            return
        self._received_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._refusal is None and self._should_upgrade():
                self._upgrade()
        except httptools.HttpParserError as err:
            self._refusal = self._refusal or parse_error(err, data)
        self._refusal = self._refusal or self._newest.account(len(data))
        if self._refusal is not None:
            self._refuse()

    def check(self, elapsed_s: float) -> None:
        """As in `Connection`."""
        limits, waited_s = self._register.limits, self._register.now_s - self._since_s
        received, self._received_bytes = self._received_bytes, 0
        if self._sending.is_stuck(self.transport, elapsed_s):
            self._register.count_refused("slow_reader")
            self.abort()
        elif self._refusal is not None:
            # One that waits behind a running response stays as it is.
            if self._is_refused and waited_s > limits.linger_s:
                self.abort()
        elif self._newest.is_torn and self.flow.read_paused:
            # What the client sends is not read: the time is not its own.
            self._receiving.reset()
            self._since_s = self._register.now_s
        elif self._newest.is_torn and self._newest.has_headers:
            if self._receiving.is_too_slow(received, elapsed_s):
                self._time_out(f"A body must arrive at {limits.min_bytes_per_s} bytes a second or more.")
        elif self._newest.is_torn:
            if waited_s > limits.header_timeout_s:
                self._time_out(f"The headers must arrive within {limits.header_timeout_s:g} s.")
        elif self._is_idle and waited_s > (limits.keep_alive_s if self._was_used else limits.header_timeout_s):
            self.transport.close()

    def abort(self) -> None:
        """As in `Connection`."""
        self.transport.abort()

    # Messages, as the parser reports them

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._newest.begin()
        self._has_cycle = False
        self._head_bytes = self._dropped_bytes = 0
        self._since_s = self._register.now_s

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        if self._head_bytes > MAX_TARGET_BYTES:
            self._refusal = self._refusal or errors.TargetTooLong(
                f"The path and query may hold {MAX_TARGET_BYTES} bytes."
            )
        else:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come after the headers: if they stayed, they would change a request that is being answered.
        if self._newest.has_headers or self._refusal is not None:
            return
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEADER_BYTES or len(self.headers) >= MAX_HEADERS:
            self._refusal = headers_too_large()
        else:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._newest.has_headers = True
        version, method = self.parser.get_http_version(), self.parser.get_method()
        self._refusal = self._refusal or head_error(version, method, self.headers) or self._surplus_error()
        if self._refusal is not None:
            return
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is before:
            return  # an upgrade
        self._has_cycle = True
        self._receiving.reset()
        self._register.set_busy(self)
        if len(self.pipeline) > MAX_PIPELINED:
            self.pipeline.popleft()
            self._has_cycle = False
            self._refusal = errors.QueueFull(f"At most {MAX_PIPELINED} requests may wait on one connection.")

    def on_body(self, body: bytes) -> None:
        self._newest.add_body(len(body))
        if self._has_cycle:
            if self.cycle.response_complete:
                self._drop(len(body))
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._newest.is_torn = False
        if self._has_cycle:
            super().on_message_complete()

    # Requests

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        self._was_used = True
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        # A client that sends on without reading waits for itself.
        if self.flow.write_paused:
            self.flow.pause_reading()
        else:
            self._next()

    def _next(self) -> None:
        """Go on after a response: with a pipelined request, a refusal, or nothing."""
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            self.flow.resume_reading()
        elif self._refusal is not None:
            self._send_refusal()
        else:
            self.flow.resume_reading()
            self._since_s = self._register.now_s if not self._newest.is_torn else self._since_s
            self._register.set_idle(self)

    @property
    def _is_idle(self) -> bool:
        return self._running is None or self._running.response_complete

    def _surplus_error(self) -> ServiceError | None:
        if self._is_surplus and self.url.partition(b"?")[0].decode("latin-1") not in QUIET_ROUTES:
            return errors.EngineUnavailable("Too many connections are open.", retry_after_s=1.0)
        return None

    def _upgrade(self) -> None:
        """Become a WebSocket."""
        if not self._is_idle or self.parser.get_method() != b"GET":
            self._refusal = errors.Malformed("A WebSocket handshake is a GET after the responses before it.")
        elif any(len(name) + len(value) > MAX_UPGRADE_LINE_BYTES for name, value in self.headers):
            self._refusal = headers_too_large()
        else:
            self._newest.forget()
            self._register.remove(self)
            self.handle_websocket_upgrade()

    # Bounds

    def _drop(self, n_bytes: int) -> None:
        self._dropped_bytes += n_bytes
        if self._dropped_bytes > (MAX_DROPPED_BYTES if self._newest.has_headers else MAX_DROPPED_HEAD_BYTES):
            self.abort()

    def _time_out(self, detail: str) -> None:
        self._refusal = errors.TooSlow(detail)
        self._refuse()

    def _refuse(self) -> None:
        """Send the refusal after the responses before it; a request whose body broke is refused itself."""
        self._newest.forget()
        if self._has_cycle and self._newest.is_torn:
            if self.pipeline and self.pipeline[0][0] is self.cycle:
                self.pipeline.popleft()
            else:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
                if self.cycle.response_started:
                    self.abort()  # a part of another response may have been sent
                    return
                self._send_refusal()
                return
        if self._is_idle and not self.pipeline:
            self._send_refusal()
        else:
            self.flow.pause_reading()

    def _send_refusal(self) -> None:
        if self._refusal is None or self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._since_s = self._register.now_s
        self._dropped_bytes = 0
        # What they hold of unfinished headers goes now, not when the connection does.
        self.parser = None  # type: ignore[assignment]  # as uvicorn does when a connection is lost
        self.headers = []
        self._register.count_refused(self._refusal.code)
        self.transport.write(refusal_bytes(self._refusal, self.server_state.default_headers))
        # The client sees the end of the response, and what it still sends is read: a reset would drop the response.
        self.transport.write_eof()
        self.flow.resume_reading()
        self._register.set_idle(self)
