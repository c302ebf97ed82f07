"""`WS /retrieve/live`: search while the user draws."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.api.auth import Scope, check_query, requires
from app.api.bodies import run_if_large
from app.api.deps import Platform, Tasks, get_platform, get_tasks, new_budget
from app.api.problems import problem_body, service_error
from app.api.routers.retrieval import query_of, response_of
from app.api.schemas.retrieval import LiveAuth, LiveQuery, LiveResults, RetrieveOptions
from app.api.strict_json import parse_json
from app.errors import DeadlineExceeded, Invalid, Malformed, QueueFull, ServiceError, Unauthenticated
from app.runtime.telemetry import bind_request, get_logger

router = APIRouter(tags=["retrieval"])

AUTH_LIMIT_S = 10.0
"""How long a connection may take to authenticate."""
SUPERSEDED_TIMEOUT_S = 0.25
"""How long a query may run once a newer one has arrived."""
AT_ONCE = 2
"""How many queries of a connection may run, so that the whole stroke does not wait for a part of it."""
_MAX_AUTH_CHARACTERS = 2048
_CLOSE_CODES = {400: 4400, 401: 4401, 403: 4403, 422: 4422, 429: 4429}  # by HTTP status
_TRY_AGAIN_LATER = 1013
_MAX_REASON_BYTES = 123  # RFC 6455, 5.5


@router.websocket("/retrieve/live")
@requires(Scope.READ)
async def live(socket: WebSocket) -> None:
    """Answer queries until the client disconnects; queries that still run are cancelled then."""
    platform = await get_platform(socket)
    socket.state.request_id = uuid.uuid4().hex
    bind_request(socket.state.request_id)
    with contextlib.suppress(WebSocketDisconnect):
        await socket.accept()  # close codes reach the client only after the handshake
        try:
            check_query(socket.scope["query_string"], known=frozenset())
            platform.keys.sessions.check_origin(socket)
            # Separate slots: clients that never authenticate must not exclude those with a key.
            async with _slot(platform.live_greetings):
                key = await _authorise(socket, platform)
            tasks = await get_tasks(socket)
            async with _slot(platform.live_slots):
                with platform.telemetry.live_connections.track_inprogress(), _logged(socket, key):
                    await _Session(socket, platform, tasks).run()
        except ServiceError as err:
            reason = err.detail.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
            await socket.close(_CLOSE_CODES.get(err.status, _TRY_AGAIN_LATER), reason)


@contextlib.asynccontextmanager
async def _slot(slots: asyncio.Semaphore) -> AsyncIterator[None]:
    """Hold one of the slots. Raises QueueFull where none is free."""
    if slots.locked():
        raise QueueFull("Too many live connections.")
    async with slots:
        yield


@contextlib.contextmanager
def _logged(socket: WebSocket, key: str | None) -> Iterator[None]:
    """Log a connection when it ends, as the middleware does requests."""
    started_s = time.perf_counter()
    try:
        yield
    finally:
        duration_s = round(time.perf_counter() - started_s, 2)
        client = socket.client and socket.client.host
        get_logger().info("live", route="/retrieve/live", duration_s=duration_s, client=client, key=key)


async def _authorise(socket: WebSocket, platform: Platform) -> str | None:
    """Check the key of the handshake's headers, its session or, without one, the first message; returns its name."""
    try:
        platform.keys.authorise(socket, Scope.READ)
        return platform.keys.name_of(socket)
    except Unauthenticated:
        try:
            async with asyncio.timeout(AUTH_LIMIT_S):
                text = await _text_of(socket) or ""
                auth = LiveAuth.model_validate(parse_json(text[:_MAX_AUTH_CHARACTERS]), strict=True)
        except (TimeoutError, ValidationError, ServiceError) as err:
            raise Unauthenticated('Send {"type": "auth", "key": …} first.') from err
        return platform.keys.authorise_key(auth.key, Scope.READ)


class _Session:
    """One connection: `AT_ONCE` queries run, and the newest of those that arrive meanwhile is next."""

    def __init__(self, socket: WebSocket, platform: Platform, tasks: Tasks) -> None:
        self._socket = socket
        self._platform = platform
        self._tasks = tasks
        self._newest = -1  # the greatest `seq` so far
        self._shown = -1  # the greatest whose results were sent
        self._next: LiveQuery | None = None  # the only query that waits
        self._has_come = asyncio.Event()
        self._running: dict[asyncio.Timeout, float] = {}  # until when, s, once a newer query has arrived

    async def run(self) -> None:
        """Serve the connection until the client disconnects. Raises WebSocketDisconnect."""
        workers = [asyncio.create_task(self._work()) for _ in range(AT_ONCE)]
        try:
            while True:
                await self._take(await _text_of(self._socket))
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _take(self, text: str | None) -> None:
        """Replace the waiting query by a message's, or report the message's error."""
        seq: int | None = None
        try:
            if text is None:
                raise Malformed("Messages must be JSON text.")
            limits = self._platform.limits
            content = await run_if_large(self._socket, len(text), parse_json, text, limits.max_json_values)
            if isinstance(content, dict) and content.get("type") == "auth":
                return  # of a client that sends it whether or not a key is needed
            seq = _seq_of(content)
            query = LiveQuery.model_validate(content, strict=True, context=limits)
            if query.seq <= self._newest:
                raise Invalid("Each `seq` must be greater than the one before.")
        except (ServiceError, ValidationError) as err:
            await self._send_error(seq, err)
            return
        self._newest, self._next = query.seq, query
        self._has_come.set()
        # A query that still waits in the engine's queue would answer an outdated drawing.
        for timeout, until_s in self._running.items():
            if not timeout.expired():
                timeout.reschedule(until_s)

    async def _work(self) -> None:
        """Answer the newest query, in a loop; a newer one limits the running ones to `SUPERSEDED_TIMEOUT_S`."""
        while True:
            await self._has_come.wait()
            self._has_come.clear()
            query, self._next = self._next, None
            if query is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None) as timeout:
                        self._running[timeout] = asyncio.get_running_loop().time() + SUPERSEDED_TIMEOUT_S
                        try:
                            await self._answered(query)
                        finally:
                            del self._running[timeout]

    async def _answered(self, query: LiveQuery) -> None:
        try:
            message = await self._results(query)
        except Exception as err:  # noqa: BLE001 - the client gets a response to every query
            await self._send_error(query.seq, err)
        else:
            if query.seq > self._shown:  # results never go back to an older drawing
                self._shown = query.seq
                await self._send(message)

    async def _send_error(self, seq: int | None, err: Exception) -> None:
        error = service_error(err)
        # The middleware that logs unhandled errors sees HTTP requests only.
        if error.status == 500:
            get_logger().error("live_query_failed", exc_info=err)
        problem = problem_body(error, self._socket)
        if error.retry_after_s is not None:
            problem["retry_after_s"] = error.retry_after_s
        await self._send({"type": "error", "seq": seq, "problem": problem})

    async def _send(self, message: Mapping[str, object]) -> None:
        # The reader, which waits in `receive`, handles the disconnect.
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._socket.send_json(message)

    async def _results(self, wire: LiveQuery) -> dict[str, Any]:
        options = RetrieveOptions(text=wire.text, gallery=wire.gallery, k=wire.k, filter=wire.filter)
        query, budget = query_of(options, self._platform.limits, sketch=wire.source), new_budget(self._platform.limits)
        timeout_s = self._platform.deadline.seconds
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._tasks.retrieval.retrieve(query, budget, timeout_s=timeout_s)
        except TimeoutError as err:
            raise DeadlineExceeded("The query took longer than its deadline.") from err
        return LiveResults(seq=wire.seq, **dict(response_of(answer, self._socket))).model_dump(mode="json")


async def _text_of(socket: WebSocket) -> str | None:
    """The next message, None for a binary one. Raises WebSocketDisconnect."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"], message.get("reason"))
    text: str | None = message.get("text")
    return text


def _seq_of(content: object) -> int | None:
    """The `seq` of a message that may be invalid otherwise."""
    seq = content.get("seq") if isinstance(content, dict) else None
    return seq if isinstance(seq, int) and not isinstance(seq, bool) else None  # True is an int in Python
