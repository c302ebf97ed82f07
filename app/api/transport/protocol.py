"""HTTP/1.1 and WebSocket connections: uvicorn's protocols with bounds on headers, framing, pipelining and pace.

What cannot be parsed is answered by a problem document, and the connection closes.
"""

import asyncio
from typing import Any

import httptools
import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from app import errors
from app.api.middleware import QUIET_ROUTES
from app.api.transport.connections import Connections, Pace, SendPace
from app.api.transport.refusals import MAX_HEADER_BYTES, MAX_HEADERS, headers_too_large, parse_error, refusal_bytes
from app.errors import ServiceError

MAX_TARGET_BYTES = 32 << 10  # filters are long
MAX_UPGRADE_LINE_BYTES = 8000  # the WebSocket library parses the handshake again and takes 8192
MAX_PIPELINED = 16  # requests that wait for one connection's responses; nearly no client pipelines
MAX_TORN_BYTES = 128 << 10  # headers, chunk sizes and extensions and trailers of one unfinished message
FRAMING_PER_BYTE = 8  # of chunked bodies: a chunk of one byte takes five more
SMALL_TORN_BYTES = 4 << 10  # headers in two packets are refused to nobody
MAX_DROPPED_BYTES = 64 << 20  # of a body whose response is complete


class Config(uvicorn.Config):
    """uvicorn's configuration and the register of connections, which protocols find in it."""

    def __init__(self, app: Any, *, connections: Connections, **options: Any) -> None:
        super().__init__(app, http=HttpProtocol, ws=WebSocketProtocol, **options)
        self.connections = connections


class HttpProtocol(HttpToolsProtocol):
    """One HTTP connection.

    A message is torn while it is unfinished: its headers, or the rest of its body, are still to come.
    """

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
        self._is_torn, self._has_headers, self._has_cycle = False, False, False  # of the newest message
        self._head_bytes = 0
        self._body_bytes = 0  # of the newest message
        self._fed_body_bytes = 0  # of what was received last
        self._torn_bytes = 0
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
        self._forget_torn()
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
        self._fed_body_bytes = 0
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._refusal is None and self._should_upgrade():
                self._upgrade()
        except httptools.HttpParserError as err:
            self._refusal = self._refusal or parse_error(err, data)
        if self._is_torn:
            self._count_torn(len(data))
        elif self._torn_bytes:
            self._forget_torn()
        if self._refusal is not None:
            self._refuse()

    def check(self, elapsed_s: float) -> None:
        """As in `Connection`."""
        limits, waited_s = self._register.limits, self._register.now_s - self._since_s
        received, self._received_bytes = self._received_bytes, 0
        if self._sending.is_stuck(self.transport, elapsed_s):
            self._register.count_refused("slow_reader")
            self.abort()
        elif self._is_refused:
            if waited_s > limits.linger_s:
                self.abort()
        elif self._is_torn and self._has_headers:
            if self.flow.read_paused:
                self._receiving.reset()
            elif self._receiving.is_too_slow(received, elapsed_s):
                self._time_out(f"A body must arrive at {limits.min_bytes_per_s} bytes a second or more.")
        elif self._is_torn:
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
        self._is_torn, self._has_headers, self._has_cycle = True, False, False
        self._head_bytes = self._body_bytes = self._dropped_bytes = 0
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
        if self._has_headers or self._refusal is not None:
            return
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEADER_BYTES or len(self.headers) >= MAX_HEADERS:
            self._refusal = headers_too_large()
        else:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._has_headers = True
        self._refusal = self._refusal or self._head_error()
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
        self._fed_body_bytes += len(body)
        self._body_bytes += len(body)
        if self._has_cycle:
            if self.cycle.response_complete:
                self._dropped_bytes += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_torn = False
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
            self._since_s = self._register.now_s if not self._is_torn else self._since_s
            self._register.set_idle(self)

    @property
    def _is_idle(self) -> bool:
        return self._running is None or self._running.response_complete

    def _head_error(self) -> ServiceError | None:
        """Why a request with complete headers is refused."""
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            return errors.VersionNotSupported(f"HTTP/{version} is not supported.")
        hosts, coding = 0, b"chunked"
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                coding = value.strip().lower() if version == "1.1" else b""
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            return errors.Malformed("Send exactly one Host header.")
        if coding != b"chunked":
            return errors.NotImplementedInHttp("The only transfer coding is chunked, in HTTP/1.1.")
        if self.parser.get_method() == b"CONNECT":
            return errors.NotImplementedInHttp("The service is no proxy.")
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
            self._forget_torn()
            self._register.remove(self)
            self.handle_websocket_upgrade()

    # Bounds

    def _count_torn(self, n_bytes: int) -> None:
        """Account for what was received of an unfinished message beside its body."""
        framing = n_bytes - self._fed_body_bytes
        self._torn_bytes += framing
        self._register.torn_bytes += framing
        if not self._has_headers and self._torn_bytes > MAX_HEADER_BYTES:
            self._refusal = self._refusal or headers_too_large()
        elif self._torn_bytes > MAX_TORN_BYTES + FRAMING_PER_BYTE * self._body_bytes:
            self._refusal = self._refusal or errors.Malformed("The chunks have more framing than content.")
        elif self._register.torn_bytes > self._register.limits.max_torn_bytes and framing > SMALL_TORN_BYTES:
            self._refusal = self._refusal or errors.EngineUnavailable(
                "Too many requests with unfinished headers.", retry_after_s=1.0
            )
        if self._dropped_bytes > MAX_DROPPED_BYTES:
            self.abort()

    def _forget_torn(self) -> None:
        self._register.torn_bytes -= self._torn_bytes
        self._torn_bytes = 0

    def _drop(self, n_bytes: int) -> None:
        self._dropped_bytes += n_bytes
        if self._dropped_bytes > MAX_DROPPED_BYTES:
            self.abort()

    def _time_out(self, detail: str) -> None:
        self._refusal = errors.TooSlow(detail)
        self._refuse()

    def _refuse(self) -> None:
        """Send the refusal after the responses before it; a request whose body broke is refused itself."""
        self._forget_torn()
        if self._has_cycle and self._is_torn:
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


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket connection; a client that does not read is closed as over HTTP."""

    config: Config

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._sending = SendPace(self.config.connections.limits)
        self.config.connections.adopt(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.config.connections.remove(self)
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        self._sending.drained()
        super().resume_writing()

    def check(self, elapsed_s: float) -> None:
        """As in `Connection`."""
        if self._sending.is_stuck(self.transport, elapsed_s):
            self.config.connections.count_refused("slow_reader")
            self.abort()

    def abort(self) -> None:
        """As in `Connection`."""
        self.transport.abort()
