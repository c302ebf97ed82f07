"""Live search over a WebSocket: the newest drawing is answered, older ones are dropped."""

import asyncio
import json
from collections.abc import Mapping
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, Self

import httpx

from vermouth_client.calls import given, json_of
from vermouth_client.errors import NoAnswer, error_of
from vermouth_client.images import Strokes, wire
from vermouth_client.models import RetrieveResponse

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

_MAX_BYTES = 64 << 20  # 1000 results of 16 KiB of metadata, and more


class Live:
    """A connection that searches while the user draws: `async with client.live() as live`."""

    def __init__(
        self, base_url: str, headers: Mapping[str, str], *, timeout_s: float, verify: SSLContext | str | bool
    ) -> None:
        self._url = f"{base_url.rstrip('/')}/retrieve/live".replace("http", "ws", 1)
        self._headers = headers
        self._timeout_s = timeout_s
        self._verify = verify
        self._seq = 0
        self._newest: asyncio.Future[RetrieveResponse | None] | None = None

    async def __aenter__(self) -> Self:
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidHandshake, InvalidURI

        ssl = httpx.create_ssl_context(verify=self._verify) if self._url.startswith("wss:") else None
        limits: dict[str, Any] = {"max_size": _MAX_BYTES, "open_timeout": self._timeout_s}
        try:
            self._socket: ClientConnection = await connect(
                self._url, ssl=ssl, additional_headers=self._headers, user_agent_header=None, **limits
            )
        except (OSError, InvalidHandshake, InvalidURI) as err:  # a TimeoutError is an OSError
            raise NoAnswer(f"{self._url} does not answer: {err}.") from err
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
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
    ) -> RetrieveResponse | None:
        """The results of the drawing; None where a newer search came before they did.

        Raises:
            ServiceError: the service reports a problem with this query.
            NoAnswer: the connection is closed, or the client's `timeout_s` passed.
        """
        from websockets.exceptions import ConnectionClosed

        self._settle(None)
        self._seq += 1
        answer = self._newest = asyncio.get_running_loop().create_future()
        query = {"type": "query", "seq": self._seq, **wire(drawing), "gallery": gallery, "k": k}
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._socket.send(json_of(query | given({"text": text, "filter": filter})).decode())
                found: RetrieveResponse | None = await answer
                return found
        except ConnectionClosed as err:
            raise _closed(self._socket) from err
        except TimeoutError as err:
            raise NoAnswer(f"The live search was not answered in {self._timeout_s:g} seconds.") from err
        finally:
            answer.cancel()  # nobody waits for it any more

    async def _read(self) -> None:
        """Hand the service's messages to their searches, until the connection closes."""
        from websockets.exceptions import ConnectionClosed

        try:
            async for text in self._socket:
                message = json.loads(text)
                if message["seq"] not in (self._seq, None):  # superseded
                    continue
                if message["type"] == "results":
                    self._settle(RetrieveResponse.model_validate(message))
                else:
                    problem = message["problem"]
                    self._settle(error_of(problem, retry_after_s=problem.get("retry_after_s")))
        except ConnectionClosed:
            pass  # with a code that says why
        except (AttributeError, KeyError, TypeError, ValueError):
            await self._socket.close(1002, "a message that the client does not know")
        finally:
            self._settle(_closed(self._socket))

    def _settle(self, outcome: RetrieveResponse | Exception | None) -> None:
        """End the newest search, unless it has ended."""
        if self._newest is None or self._newest.done():
            return
        if isinstance(outcome, Exception):
            self._newest.set_exception(outcome)
        else:
            self._newest.set_result(outcome)


def _closed(socket: "ClientConnection") -> NoAnswer:
    return NoAnswer(f"The live connection is closed: {socket.close_code} {socket.close_reason or ''}".rstrip() + ".")
