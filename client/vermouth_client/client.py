"""`Client` and `AsyncClient`: one connection pool each, and what waits; `routes` has their calls."""

import asyncio
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock
from typing import Any, BinaryIO, Generic, Self, TypeVar

import httpx

from vermouth_client.bulk import Batch, Bulk, ImportReport, NewItem
from vermouth_client.calls import Call
from vermouth_client.live import Live
from vermouth_client.models import ItemsWritten, RetrieveResponse
from vermouth_client.retries import Attempts, Outcome
from vermouth_client.routes import Filter, Routes, add_items

T = TypeVar("T")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
_GRACE_S = 5.0  # for the service's own answer that the time is over
_PAGE, _PART_BYTES = 1000, 1 << 20


class _Connected(Routes, Generic[Http]):
    """What both clients are made from.

    Args:
        base_url: of the service, with the prefix it has behind a proxy; else `VERMOUTH_URL`, else this machine's.
        key: an API key, else `VERMOUTH_API_KEY`.
        timeout_s: of one attempt; the service drops the work then.
        retry_s: how long a call may be tried again: after a refusal when the service asks for it, after a lost
            connection where that does nothing twice.
        headers: of every request, such as a proxy's.
        options: of `httpx.Client`, such as `verify`.
    """

    _open: Callable[..., Http]

    def __init__(
        self,
        base_url: str | None = None,
        *,
        key: str | None = None,
        timeout_s: float = 30.0,
        retry_s: float = 60.0,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        base_url = base_url or os.environ.get("VERMOUTH_URL", "http://127.0.0.1:8000")
        key = os.environ.get("VERMOUTH_API_KEY") if key is None else key
        own = {"User-Agent": "vermouth-client"} | ({"X-API-Key": key} if key else {})
        self._headers = {**own, **(headers or {})}
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._verify = options.get("verify", True)
        limits = {"timeout": httpx.Timeout(timeout_s + _GRACE_S, connect=timeout_s)}
        sent = {**self._headers, "X-Request-Timeout-Ms": str(max(1, int(1000 * timeout_s)))}
        self._http: Http = self._open(base_url=base_url, headers=sent, **{**limits, **options})


class Client(_Connected[httpx.Client]):
    """A blocking client; threads may share it."""

    _open = httpx.Client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def run(self, plan: Callable[[], Call[T]]) -> T:
        """Plan a call and send it. Raises as the plan, and VermouthError."""
        return self._send(plan(), Event())

    def item_ids(self, gallery: str = "default", *, filter: Filter = None) -> set[str]:
        """The ids of all items, as `import_items` takes them as `skip`."""
        ids: set[str] = set()
        cursor = None
        while True:
            page = self.items(gallery, cursor=cursor, limit=_PAGE, filter=filter)
            ids.update(item.id for item in page.items)
            if (cursor := page.next_cursor) is None:
                return ids

    def import_items(
        self,
        gallery: str,
        items: Iterable[NewItem],
        *,
        skip: Collection[str] = (),
        batch: int = 32,
        concurrency: int = 4,
        wait_until_searchable: bool = True,
        on_progress: Callable[[ImportReport], object] = lambda _: None,
    ) -> ImportReport:
        """Add or replace any number of items; `concurrency` batches at a time are in memory.

        Args:
            skip: ids that are not sent, such as `item_ids(gallery)`.
            on_progress: is called with the one report after each batch and at the end, also beside an error.

        Raises:
            ImportStopped: a request failed for good, or the source of the items did.
        """
        bulk = Bulk(items, skip=skip, size=batch)
        settled = SimpleQueue[None]()  # unlike `concurrent.futures.wait`, it may be interrupted anywhere
        stop, one_at_a_time = Event(), Lock()

        def send(part: Batch, call: Call[ItemsWritten]) -> None:
            outcome: ItemsWritten | BaseException
            try:
                outcome = self._send(call, stop)
            except BaseException as err:  # noqa: BLE001 - the import decides what it means
                outcome = err
            try:
                with one_at_a_time:  # counted here: Ctrl-C interrupts the main thread alone, at any point
                    bulk.settle(part, outcome)
            finally:
                settled.put(None)

        n_running = 0
        try:
            with ThreadPoolExecutor(concurrency) as pool:
                try:
                    while True:
                        while n_running < concurrency and (part := bulk.next()):
                            pool.submit(send, part, add_items(gallery, part, wait=wait_until_searchable))
                            n_running += 1
                        if not n_running:
                            return bulk.result()
                        settled.get()
                        n_running -= 1
                        on_progress(bulk.report)
                finally:
                    stop.set()  # after Ctrl-C the pool waits for attempts, not for retries
        finally:
            on_progress(bulk.report)

    def _send(self, call: Call[T], stop: Event) -> T:
        attempts = Attempts(call, self._retry_s)
        while True:
            outcome = self._attempt(call)
            wait_s = attempts.wait_s(outcome)
            if wait_s is None or stop.wait(wait_s):
                answer = attempts.result(outcome)
                if isinstance(answer, RetrieveResponse):
                    answer._fetch = self.item_image
                return answer

    def _attempt(self, call: Call[Any]) -> Outcome:
        try:
            with self._http.stream(**_request(call)) as response:
                if call.target is None or not response.is_success:
                    response.read()
                else:
                    with _whole(call.target) as file:
                        file.writelines(response.iter_bytes())
                return response
        except httpx.RequestError as err:
            return err


class AsyncClient(_Connected[httpx.AsyncClient]):
    """A client for asyncio, with the methods and arguments of `Client`."""

    _open = httpx.AsyncClient

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def run(self, plan: Callable[[], Call[T]]) -> T:
        """As `Client.run`; images are read and encoded in another thread."""
        return await self._send(await asyncio.to_thread(plan))

    async def item_ids(self, gallery: str = "default", *, filter: Filter = None) -> set[str]:
        """As `Client.item_ids`."""
        ids: set[str] = set()
        cursor = None
        while True:
            page = await self.items(gallery, cursor=cursor, limit=_PAGE, filter=filter)
            ids.update(item.id for item in page.items)
            if (cursor := page.next_cursor) is None:
                return ids

    async def import_items(
        self,
        gallery: str,
        items: Iterable[NewItem],
        *,
        skip: Collection[str] = (),
        batch: int = 32,
        concurrency: int = 4,
        wait_until_searchable: bool = True,
        on_progress: Callable[[ImportReport], object] = lambda _: None,
    ) -> ImportReport:
        """As `Client.import_items`; `items` are read in another thread."""
        bulk = Bulk(items, skip=skip, size=batch)
        running: dict[asyncio.Task[ItemsWritten], Batch] = {}
        try:
            while True:
                while len(running) < concurrency and (part := await asyncio.to_thread(bulk.next)):
                    call = await asyncio.to_thread(add_items, gallery, part, wait=wait_until_searchable)
                    running[asyncio.create_task(self._send(call))] = part
                if not running:
                    return bulk.result()
                for one in (await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))[0]:
                    bulk.settle(running.pop(one), one.exception() or one.result())
                    on_progress(bulk.report)
        finally:
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            on_progress(bulk.report)

    def live(self) -> Live:
        """Search while the user draws, in `async with`; needs the extra `live`."""
        return Live(str(self._http.base_url), self._headers, timeout_s=self._timeout_s, verify=self._verify)

    async def _send(self, call: Call[T]) -> T:
        attempts = Attempts(call, self._retry_s)
        while True:
            outcome = await self._attempt(call)
            wait_s = attempts.wait_s(outcome)
            if wait_s is None:
                return attempts.result(outcome)
            await asyncio.sleep(wait_s)

    async def _attempt(self, call: Call[Any]) -> Outcome:
        try:
            async with self._http.stream(**_request(call)) as response:
                if call.target is None or not response.is_success:
                    await response.aread()
                else:
                    with _whole(call.target) as file:
                        async for part in response.aiter_bytes(_PART_BYTES):
                            await asyncio.to_thread(file.write, part)
                return response
        except httpx.RequestError as err:
            return err


def _request(call: Call[Any]) -> dict[str, Any]:
    return {name: getattr(call, name) for name in ("method", "params", "headers", "content")} | {"url": call.path}


@contextmanager
def _whole(target: Path) -> Iterator[BinaryIO]:
    """A new file that takes the target's place once it is complete, and is removed otherwise."""
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with part.open("xb") as file:
            yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
