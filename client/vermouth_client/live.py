"""Live search over a WebSocket: the newest drawing is answered, older ones are dropped."""

import asyncio
import json
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vermouth_client.errors import NoAnswer, error_of
from vermouth_client.images import Strokes, wire
from vermouth_client.models import LiveResults

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

_MAX_BYTES = 64 << 20  # 1000 results of 16 KiB of metadata, and more


class Live:
    """A connection that searches while the user draws: `async with client.live() as live`."""

    def __init__(self, base_url: str, headers: Mapping[str, str]) -> None:
        self._url = f"{base_url.rstrip('/')}/retrieve/live".replace("http", "ws", 1)
        self._headers = headers
        self._seq = 0
        self._waiting: dict[int, asyncio.Future[LiveResults | None]] = {}  # at most the newest, unanswered

    async def __aenter__(self) -> Self:
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidHandshake

        try:
            self._socket: ClientConnection = await connect(
                self._url, additional_headers=self._headers, max_size=_MAX_BYTES
            )
        except (OSError, InvalidHandshake) as err:
            raise NoAnswer(f"{self._url} does not answer: {err}.") from err
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._socket.close()
        await self._reader

    async def search(
        self,
        drawing: Strokes,
        *,
        text: str | None = None,
        gallery: str = "default",
        k: int = 10,
        filter: Mapping[str, Any] | None = None,
    ) -> LiveResults | None:
        """The results of the drawing; None where a newer search came before they did.

        Raises:
            ServiceError: the service reports a problem with this query.
            NoAnswer: the connection is closed.
        """
        from websockets.exceptions import ConnectionClosed

        self._settle(None)
        self._seq += 1
        answer: asyncio.Future[LiveResults | None] = asyncio.get_running_loop().create_future()
        self._waiting[self._seq] = answer
        query = {"type": "query", "seq": self._seq, **wire(drawing), "gallery": gallery, "k": k}
        options = {"text": text, "filter": filter}
        query |= {name: value for name, value in options.items() if value is not None}
        try:
            await self._socket.send(json.dumps(query, allow_nan=False))
        except ConnectionClosed:
            self._settle(_closed(self._socket))
        return await answer

    async def _read(self) -> None:
        """Hand the service's messages to their searches, until the connection closes."""
        from websockets.exceptions import ConnectionClosed

        try:
            async for text in self._socket:
                message = json.loads(text)
                seq = message["seq"]
                answer = self._waiting.pop(self._seq if seq is None else seq, None)
                if answer is None or answer.done():  # superseded, or nobody waits any more
                    continue
                if message["type"] == "results":
                    answer.set_result(LiveResults.model_validate(message))
                else:
                    problem = message["problem"]
                    answer.set_exception(error_of(problem, retry_after_s=problem.get("retry_after_s")))
        except ConnectionClosed:
            pass  # with a code that says why
        finally:
            self._settle(_closed(self._socket))

    def _settle(self, outcome: Exception | None) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(None) if outcome is None else answer.set_exception(outcome)
        self._waiting.clear()


def _closed(socket: "ClientConnection") -> NoAnswer:
    return NoAnswer(f"The live connection is closed: {socket.close_code} {socket.close_reason or ''}".rstrip() + ".")
