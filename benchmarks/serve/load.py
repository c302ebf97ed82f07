"""An open-loop HTTP/1.1 load generator, kept lean because it shares the cores with what it measures."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MAX_CONNECTIONS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One request as the client saw it.

    Attributes:
        sent_s: from the start of the run, when it was due.
        latency_s: from when it was due, so that a stalled generator does not flatter anyone.
        status: 0 where the connection failed or the client's patience ended.
        retry_after_s: of a refusal.
    """

    sent_s: float
    latency_s: float
    status: int
    retry_after_s: float | None


class Client:
    """Keeps connections alive and sends prepared requests."""

    def __init__(self, port: int, images: Sequence[bytes], *, patience_s: float, deadline_s: float) -> None:
        self._port = port
        self._patience_s = patience_s
        self._requests = [_request(image, deadline_s) for image in images]
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()
        self._next = 0

    async def open_loop(self, rate: float, seconds: float, seed: int) -> list[Shot]:
        """Poisson arrivals at `rate` a second, whether or not earlier ones were answered."""
        gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 2) + 10)
        due = np.cumsum(gaps)
        started_s = time.perf_counter()
        shots = []
        for at_s in due[due < seconds]:
            await asyncio.sleep(max(0.0, at_s - (time.perf_counter() - started_s)))
            shots.append(asyncio.create_task(self._shoot(started_s, float(at_s))))
        return list(await asyncio.gather(*shots))

    async def closed_loop(self, clients: int, seconds: float) -> list[Shot]:
        """So many clients, each with one request at a time: the throughput they get is the capacity."""
        started_s = time.perf_counter()

        async def one() -> list[Shot]:
            shots = []
            while (now_s := time.perf_counter() - started_s) < seconds:
                shots.append(await self._shoot(started_s, now_s))
            return shots

        return [shot for shots in await asyncio.gather(*(one() for _ in range(clients))) for shot in shots]

    async def until_answered(self, check: Callable[[], None]) -> None:
        """Returns once a request was answered; `check` raises when waiting is in vain."""
        while not any(shot.status == 200 for shot in await self.closed_loop(1, 0.5)):  # another process
            check()
            await asyncio.sleep(0.5)

    async def health(self, path: str, every_s: float, seconds: float) -> list[float]:
        """Latencies in seconds of a GET on a connection of its own, again and again."""
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        found, started_s = [], time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        while time.perf_counter() - started_s < seconds:
            begun_s = time.perf_counter()
            writer.write(request)
            await _answer(reader)
            found.append(time.perf_counter() - begun_s)
            await asyncio.sleep(every_s)
        writer.close()
        return found

    def close(self) -> None:
        """Drop idle connections."""
        while self._idle:
            self._idle.pop()[1].close()

    async def _shoot(self, started_s: float, due_s: float) -> Shot:
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        status, retry_after_s, connection = 0, None, None
        try:
            async with asyncio.timeout(self._patience_s):
                connection = await self._connection()
                connection[1].write(request)
                status, headers = await _answer(connection[0])
                retry_after = headers.get(b"retry-after")
                retry_after_s = float(retry_after) if retry_after else None
                if headers.get(b"connection") != b"close":
                    self._idle.append(connection)
                    connection = None
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            if connection is not None:
                connection[1].close()
        latency_s = time.perf_counter() - started_s - due_s
        return Shot(sent_s=due_s, latency_s=latency_s, status=status, retry_after_s=retry_after_s)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
        return await asyncio.open_connection("127.0.0.1", self._port)


def _request(image: bytes, deadline_s: float) -> bytes:
    boundary = "bench-boundary"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="x.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    ).encode()
    body += image + f"\r\n--{boundary}--\r\n".encode()
    head = (
        f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={boundary}\r\n"
        f"X-Request-Timeout-Ms: {int(deadline_s * 1000)}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes]]:
    """Status and headers; the body is read and dropped."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    headers = {name.lower(): value.strip().lower() for name, _, value in pairs}
    if headers.get(b"transfer-encoding") == b"chunked":
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    else:
        await reader.readexactly(int(headers.get(b"content-length", b"0")))
    return int(first.split()[1]), headers
