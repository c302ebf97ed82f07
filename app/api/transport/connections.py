"""Open connections: how many there may be, and which are closed because their client is idle or slow.

One sweep a second looks at all of them; a timer for each would cost every request more.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

import uvicorn

from app.runtime.process import descriptor_limit
from app.runtime.telemetry import Telemetry, get_logger

MAX_CONNECTIONS = 8192  # of those chosen: a sweep over them takes the loop 5 ms
DESCRIPTOR_RESERVE = 256
"""Descriptors for files, databases and pipes, and for connections that are accepted before the first is counted."""
HEALTH_RESERVE = 16
"""Connections above the limit that are served health and metrics only."""
DRAIN_BYTES = 48 << 10
"""What a client has taken at least when asyncio resumes writing: from its high-water mark (64 KiB) to its low (16)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What a client may use before, between and beside its requests.

    Attributes:
        header_timeout_s: from the first byte of a request, or from a connection that sends none, to complete headers.
        keep_alive_s: between two requests.
        min_bytes_per_s: the least rate of a body and of a response.
        grace_s: how long a client may stay below it.
        linger_s: how long what a refused client still sends is read and dropped, so that it sees the response.
        max_torn_bytes: of all unfinished headers and chunk extensions together.
    """

    max_connections: int
    keep_alive_s: float
    header_timeout_s: float = 10.0
    min_bytes_per_s: int = 10_000
    grace_s: float = 10.0
    linger_s: float = 2.0
    sweep_s: float = 1.0
    max_torn_bytes: int = 4 << 20


def connection_limit(wanted: int) -> int:
    """The most connections: as set, or as many as the process's descriptors allow."""
    available = max(HEALTH_RESERVE, descriptor_limit() - DESCRIPTOR_RESERVE - HEALTH_RESERVE)
    return min(wanted or MAX_CONNECTIONS, available)


class Connection(Protocol):
    """What the register needs of a protocol."""

    def check(self, elapsed_s: float) -> None:
        """Close the connection if its client was too slow in the time since the last check."""

    def abort(self) -> None:
        """Close the connection at once, whatever was not sent yet."""


class Connections:
    """The register of open connections.

    At the limit, the connection that has been idle longest makes room for a new one; those that never completed a
    request go first. A request that has its headers is never closed for another.

    Attributes:
        now_s: a clock of the sweeps, which stands while the event loop is blocked: what clients sent meanwhile is
            still unread, so that the time is not theirs.
        torn_bytes: of unfinished headers, chunk extensions and trailers, all connections together.
    """

    def __init__(self, limits: ConnectionLimits, telemetry: Telemetry) -> None:
        self.limits = limits
        self.now_s = 0.0
        self.torn_bytes = 0
        self._telemetry = telemetry
        self._open: set[Connection] = set()
        self._new: dict[Connection, None] = {}  # idle, and no request yet
        self._idle: dict[Connection, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._swept_at_s = 0.0

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: Connection) -> bool:
        """Add a connection; False where it is above the limit, and only health may be served on it."""
        is_within = len(self._open) < self.limits.max_connections or self._make_room()
        if not is_within and len(self._open) >= self.limits.max_connections + HEALTH_RESERVE:
            self.count_refused("connections")
            connection.abort()
            return False
        self._open.add(connection)
        self._new[connection] = None
        if self._timer is None:
            self._start_sweep()
        return is_within

    def adopt(self, connection: Connection) -> None:
        """Add a WebSocket, whose handshake was admitted as an HTTP connection."""
        self._open.add(connection)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._open.discard(connection)
        self.set_busy(connection)

    def set_busy(self, connection: Connection) -> None:
        """Note that a request has its headers."""
        self._new.pop(connection, None)
        self._idle.pop(connection, None)

    def set_idle(self, connection: Connection) -> None:
        """Note that a connection has no request."""
        if connection in self._open:
            self._idle[connection] = None

    def count_refused(self, reason: str) -> None:
        """Count a request or connection that was refused before any route."""
        self._telemetry.requests_rejected.labels(reason).inc()

    def _make_room(self) -> bool:
        for idle in (self._new, self._idle):
            for connection in idle:
                self.count_refused("idle")
                self.remove(connection)
                connection.abort()
                return True
        return False

    def _start_sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._swept_at_s = loop.time()
        self._timer = loop.call_later(self.limits.sweep_s, self._sweep)

    def _sweep(self) -> None:
        elapsed_s = min(asyncio.get_running_loop().time() - self._swept_at_s, 2 * self.limits.sweep_s)
        self.now_s += elapsed_s
        self._timer = None
        if self._open:
            self._start_sweep()
        for connection in tuple(self._open):
            try:
                connection.check(elapsed_s)
            except Exception:  # noqa: BLE001 - one connection that fails must not leave the others unchecked
                get_logger().exception("check_failed")
                connection.abort()


class Config(uvicorn.Config):
    """uvicorn's configuration and the register of connections, which protocols find in it."""

    def __init__(self, app: Any, *, connections: Connections, **options: Any) -> None:
        super().__init__(app, **options)
        self.connections = connections


class Pace:
    """Whether a client is slower than the least rate for longer than its grace."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._left_s = limits.grace_s

    def reset(self) -> None:
        """Start again with the whole grace."""
        self._left_s = self._limits.grace_s

    def is_too_slow(self, n_bytes: int, elapsed_s: float) -> bool:
        """Account for what was transferred since the last call."""
        earned_s = n_bytes / self._limits.min_bytes_per_s
        self._left_s = min(self._limits.grace_s, self._left_s - elapsed_s + earned_s)
        return self._left_s < 0


class SendPace(Pace):
    """The pace at which a client takes what is written to its transport."""

    def __init__(self, limits: ConnectionLimits) -> None:
        super().__init__(limits)
        self._buffered = 0
        self._drains = 0

    def drained(self) -> None:
        """Note that writing was resumed."""
        self._drains += 1

    def is_stuck(self, transport: asyncio.Transport, elapsed_s: float) -> bool:
        """Whether the client was too slow to take what the transport's buffer holds."""
        before, self._buffered = self._buffered, transport.get_write_buffer_size()
        drains, self._drains = self._drains, 0
        if self._buffered == 0:
            self.reset()
            return False
        return self.is_too_slow(max(0, before - self._buffered) + drains * DRAIN_BYTES, elapsed_s)
