"""Requests in flight: how many there may be, how many of one client, and which count.

A request counts while it works. While its client is slow to send the body or to take the response, it lends its slot
to others, so that clients that do not read, or send a byte a second, hold nothing that others need.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.auth import ApiKeys
from app.api.middleware import QUIET_ROUTES, HttpLayer
from app.engine.admission import MAX_RETRY_AFTER_S, DrainRate
from app.errors import QueueFull, TooSlow
from app.runtime.telemetry import Telemetry

SHARE = 3
"""A client may take a slot while it holds fewer than this times the free ones: one alone takes three quarters."""
SLICE_BYTES = 64 << 10  # of a response: what the server holds for a client that does not read it
FAST_BYTES_PER_S = 1 << 20  # a client slower than this lends its slot
BEHIND_S = 0.1  # once it is so far behind
T = TypeVar("T")


class InFlightLimit(HttpLayer):
    """Bounds the requests in flight, and with them the memory of their bodies; health and metrics always pass.

    Clients are known by their API key or else by their address. The bound on one client follows the free slots
    (dynamic thresholds, Choudhury and Hahne 1998): it needs no setting, and something is always left for others.
    `Retry-After` is the time that the requests in flight take at the rate at which requests finished recently.
    """

    def __init__(self, app: ASGIApp, *, max_in_flight: int, keys: ApiKeys, telemetry: Telemetry) -> None:
        super().__init__(app)
        self.free = max_in_flight
        self.max_in_flight = max_in_flight
        self.held = Counter[str]()
        self.slow: dict[_Slot, None] = {}  # that lent their slot, longest first
        self._keys = keys
        self._rate = DrainRate()
        self._last_end_s = 0.0
        self._telemetry = telemetry

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in QUIET_ROUTES:
            await self.app(scope, receive, send)
            return
        client = self._client(scope)
        if self.held[client] >= SHARE * self.free:
            raise self._full()
        # Idle time is not part of the rate: the clock starts with the first request in flight.
        if self.free == self.max_in_flight:
            self._last_end_s = time.monotonic()
        slot = _Slot(self, client, receive, send)
        slot.take()
        try:
            await self.app(scope, slot.receive, slot.send)
        except asyncio.CancelledError as err:
            if not slot.was_evicted:
                raise
            slot.uncancel()
            # A response that has begun ends here; the server closes the connection.
            if not slot.has_begun:
                raise TooSlow("Too many requests arrive too slowly.") from err
        finally:
            slot.end()
            now_s = time.monotonic()
            self._rate.observe(1, now_s - self._last_end_s)
            self._last_end_s = now_s

    def _client(self, scope: Scope) -> str:
        # An unknown key says nothing about who sends it: anyone could have thousands.
        name = self._keys.name_of(HTTPConnection(scope)) if self._keys.are_on else None
        scope.setdefault("state", {})["key"] = name  # for the log
        address = scope.get("client")
        return f"key {name}" if name is not None else str(address and address[0])

    def _full(self) -> QueueFull:
        self._telemetry.requests_rejected.labels("in_flight").inc()
        wait_s = self._rate.seconds_for(self.max_in_flight) or 1.0
        detail = "Too many requests are in flight." if self.free <= 0 else "You have too many requests in flight."
        # The server drops what is left of the body and keeps the connection.
        return QueueFull(detail, retry_after_s=min(MAX_RETRY_AFTER_S, wait_s))


class _Slot:
    """The slot of one request, and the client's pace, which decides whether it holds the slot."""

    def __init__(self, owner: InFlightLimit, client: str, receive: Receive, send: Send) -> None:
        self.was_evicted = False
        self.has_begun = False  # the response
        self._owner = owner
        self._client = client
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._is_held = False
        self._has_body = False
        self._credit_s = BEHIND_S

    def take(self) -> None:
        """Hold the slot, if it does not yet: also above the limit, for a request that lent it."""
        if not self._is_held:
            self._is_held = True
            self._owner.free -= 1
            self._owner.held[self._client] += 1

    def end(self) -> None:
        """Leave."""
        self._owner.slow.pop(self, None)
        self._release()

    def uncancel(self) -> None:
        """Take back the cancellation of an eviction."""
        if self._task is not None:
            self._task.uncancel()

    async def receive(self) -> Message:
        """The next message; while it is awaited longer than the pace allows, the slot is lent."""
        if self._has_body:
            return await self._receive()  # for the disconnect, which may take until the response
        message = await self._at_pace(self._receive())
        self._credit(len(message.get("body", b"")))
        self._has_body = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a message, a large body in slices."""
        self.has_begun = True
        body = message.get("body", b"")
        if len(body) <= SLICE_BYTES:
            # The last part of a stream too: it waits for what the client has not taken of the others.
            await (self._paced_send(message) if message["type"] == "http.response.body" else self._send(message))
            return
        view = memoryview(body)
        for start in range(0, len(view), SLICE_BYTES):
            part = view[start : start + SLICE_BYTES]
            more = message.get("more_body", False) or start + SLICE_BYTES < len(view)
            await self._paced_send({"type": message["type"], "body": part, "more_body": more})

    async def _paced_send(self, message: Message) -> None:
        await self._at_pace(self._send(message))
        self._credit(len(message.get("body", b"")))

    async def _at_pace(self, transfer: Awaitable[T]) -> T:
        started_s = self._loop.time()
        timer = self._loop.call_later(max(0.0, self._credit_s), self._lend)
        try:
            return await transfer
        finally:
            timer.cancel()
            self._credit_s -= self._loop.time() - started_s
            if not self._is_held:
                self._owner.slow.pop(self, None)
                self.take()

    def _credit(self, n_bytes: int) -> None:
        self._credit_s = min(BEHIND_S, self._credit_s + n_bytes / FAST_BYTES_PER_S)

    def _lend(self) -> None:
        self._release()
        slow = self._owner.slow
        slow[self] = None
        if len(slow) > self._owner.max_in_flight:
            next(iter(slow))._evict()

    def _evict(self) -> None:
        self._owner.slow.pop(self, None)
        if self._task is not None and not self.was_evicted:
            self.was_evicted = True
            self._task.cancel()

    def _release(self) -> None:
        if self._is_held:
            self._is_held = False
            self._owner.free += 1
            self._owner.held[self._client] -= 1
            if not self._owner.held[self._client]:
                del self._owner.held[self._client]
