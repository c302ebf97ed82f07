"""`Client` and `AsyncClient`: one connection pool each, and what waits; `routes` has their calls."""

import asyncio
import time
from collections.abc import Collection, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from vermouth_client.bulk import Batch, Bulk, ImportReport, NewItem
from vermouth_client.calls import AsyncSender, Call, SyncSender
from vermouth_client.live import Live
from vermouth_client.models import ItemsWritten, RetrieveResponse
from vermouth_client.retries import Attempts, Outcome
from vermouth_client.routes import Routes, add_items

T = TypeVar("T")
_GRACE_S = 5.0  # for the service's own answer that the time is over


class Client(Routes, SyncSender):
    """A blocking client; threads may share it.

    Args:
        base_url: of the service, with the prefix it has behind a proxy.
        key: an API key.
        timeout_s: of one attempt; the service drops the work then.
        retry_s: how long a call may be tried again: after a refusal when the service asks for it, after a lost
            connection where that does nothing twice.
        options: of `httpx.Client`, such as `verify`.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout_s: float = 30.0,
        retry_s: float = 60.0,
        **options: Any,
    ) -> None:
        self._http = httpx.Client(**_options(base_url, key, timeout_s), **options)
        self._retry_s = retry_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        attempts = Attempts(call, self._retry_s)
        while True:
            outcome = self._attempt(call)
            wait_s = attempts.wait_s(outcome)
            if wait_s is None:
                return _bound(attempts.result(outcome), self)
            time.sleep(wait_s)

    def import_items(
        self,
        gallery: str,
        items: Iterable[NewItem],
        *,
        skip: Collection[str] = (),
        batch: int = 32,
        concurrency: int = 4,
        wait_until_searchable: bool = True,
    ) -> ImportReport:
        """Add or replace any number of items; `concurrency` batches at a time are in memory.

        Args:
            skip: ids that are not sent, such as `item_ids(gallery)`.

        Raises:
            ImportStopped: a request failed for good.
        """
        bulk = Bulk(items, skip=skip, size=batch)
        running: dict[Future[ItemsWritten], Batch] = {}
        with ThreadPoolExecutor(concurrency) as pool:
            while True:
                while len(running) < concurrency and (part := bulk.next()):
                    running[pool.submit(self.send, add_items(gallery, part, wait=wait_until_searchable))] = part
                if not running:
                    return bulk.report
                for one in wait(running, return_when=FIRST_COMPLETED).done:
                    bulk.settle(running.pop(one), one.exception() or one.result())

    def _attempt(self, call: Call[Any]) -> Outcome:
        try:
            with self._http.stream(**_request(call)) as response:
                if call.target is None or not response.is_success:
                    response.read()
                else:
                    part = _part(call.target)
                    with part.open("wb") as file:
                        for chunk in response.iter_bytes():
                            file.write(chunk)
                    part.replace(call.target)
                return response
        except httpx.TransportError as err:
            return err


class AsyncClient(Routes, AsyncSender):
    """A client for asyncio, with the methods and arguments of `Client`; reading image files blocks."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout_s: float = 30.0,
        retry_s: float = 60.0,
        **options: Any,
    ) -> None:
        self._http = httpx.AsyncClient(**_options(base_url, key, timeout_s), **options)
        self._retry_s = retry_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        attempts = Attempts(call, self._retry_s)
        while True:
            outcome = await self._attempt(call)
            wait_s = attempts.wait_s(outcome)
            if wait_s is None:
                return attempts.result(outcome)
            await asyncio.sleep(wait_s)

    async def import_items(
        self,
        gallery: str,
        items: Iterable[NewItem],
        *,
        skip: Collection[str] = (),
        batch: int = 32,
        concurrency: int = 4,
        wait_until_searchable: bool = True,
    ) -> ImportReport:
        """As `Client.import_items`."""
        bulk = Bulk(items, skip=skip, size=batch)
        running: dict[asyncio.Task[ItemsWritten], Batch] = {}
        try:
            while True:
                while len(running) < concurrency and (part := bulk.next()):
                    sending = self.send(add_items(gallery, part, wait=wait_until_searchable))
                    running[asyncio.create_task(sending)] = part
                if not running:
                    return bulk.report
                for one in (await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))[0]:
                    bulk.settle(running.pop(one), one.exception() or one.result())
        finally:
            await asyncio.gather(*running, return_exceptions=True)

    def live(self) -> Live:
        """Search while the user draws, in `async with`; needs the extra `live`."""
        key = self._http.headers.get("X-API-Key")
        return Live(str(self._http.base_url), {} if key is None else {"X-API-Key": key})

    async def _attempt(self, call: Call[Any]) -> Outcome:
        try:
            async with self._http.stream(**_request(call)) as response:
                if call.target is None or not response.is_success:
                    await response.aread()
                else:
                    part = _part(call.target)
                    with part.open("wb") as file:
                        async for chunk in response.aiter_bytes():
                            file.write(chunk)
                    part.replace(call.target)
                return response
        except httpx.TransportError as err:
            return err


def _options(base_url: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    try:
        release = version("vermouth-client")
    except PackageNotFoundError:  # run from a checkout
        release = "unknown"
    headers = {"User-Agent": f"vermouth-client/{release}", "X-Request-Timeout-Ms": str(max(1, int(1000 * timeout_s)))}
    if key is not None:
        headers["X-API-Key"] = key
    return {"base_url": base_url, "headers": headers, "timeout": httpx.Timeout(timeout_s + _GRACE_S, connect=timeout_s)}


def _request(call: Call[Any]) -> dict[str, Any]:
    names = {"url": call.path, "params": call.params, "content": call.content}
    return {"method": call.method, "headers": call.headers, **names}


def _part(target: Path) -> Path:
    """Where a file is written until it is complete."""
    return target.with_name(f"{target.name}.part")


def _bound(answer: T, client: Client) -> T:
    """An answer that reads its images through the client."""
    if isinstance(answer, RetrieveResponse):
        answer._fetch = lambda path, params: client._http.get(path, params=params).raise_for_status().content
    return answer
