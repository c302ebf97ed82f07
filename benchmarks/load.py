"""HTTP/1.1 load generators, open loop and closed loop, small because they may share the cores with the server."""

import asyncio
import contextlib
import io
import itertools
import multiprocessing
import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.report import percentile_ms

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
TIMEOUT_FACTOR = 3.0  # a client gives up after so many deadlines; answers between one deadline and this count as late


def jpeg(seed: int, side: int = 1000) -> bytes:
    """Return a square JPEG with soft colours, texture and sensor noise: 180 KB at 1 megapixel, like a photograph."""
    generator = np.random.default_rng(seed)
    soft = Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    pixels = np.asarray(soft.resize((side, side), Image.Resampling.BICUBIC), np.int16)
    noise = generator.integers(-12, 13, (side // 2, side // 2, 1), dtype=np.int16).repeat(2, 0).repeat(2, 1)
    return encoded(Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)), "JPEG")


def encoded(image: Image.Image, format: str) -> bytes:
    """Return the image as a file of that format; JPEG in quality 85."""
    out = io.BytesIO()
    image.save(out, format, quality=85)
    return out.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One response, or its absence, as the client saw it."""

    sent_s: float  # when it was due, from the start of the load
    latency_s: float  # from when it was due, so that a stalled generator does not make a server look faster
    status: int  # 0 if the connection failed or the client gave up
    retry_after_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """All responses of one load, the time it took, and the CPU time of the busiest generator."""

    responses: Sequence[Response]
    seconds: float
    cpu_s: float

    @property
    def answered(self) -> list[Response]:
        """Responses with status 200."""
        return [response for response in self.responses if response.status == 200]

    def summary(self) -> dict[str, Any]:
        """Return `p50_ms`, `p95_ms` and `p99_ms` of the answers, None without any, and the number of each status."""
        latencies_s = [response.latency_s for response in self.answered]
        shares = {f"p{share}_ms": percentile_ms(latencies_s, share) if latencies_s else None for share in (50, 95, 99)}
        return {**shares, "statuses": dict(Counter(str(response.status) for response in self.responses))}


class Generators:
    """Load generators in processes of their own, so that one Python process does not limit a fast server.

    Each sends `POST /embed` with one of `images` JPEGs over connections that stay open.
    """

    def __init__(self, images: int, *, processes: int = 1, deadline_s: float = 5.0) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes = processes
        self._pool = context.Pool(processes, _prepare, (images, deadline_s, context.Barrier(processes)))

    def closed_loop(self, port: int, clients: int, seconds: float) -> LoadRun:
        """Run so many clients with one request at a time each: the throughput they get is the capacity."""
        each = (max(1, clients // self._processes), seconds)
        return self._run(port, "closed_loop", [each] * self._processes)

    def open_loop(self, port: int, rate: float, seconds: float, seed: int = 0) -> LoadRun:
        """Send requests at Poisson arrivals, `rate` a second, whether or not earlier ones were answered."""
        seeds = range(seed * self._processes, (seed + 1) * self._processes)
        return self._run(port, "open_loop", [(rate / self._processes, seconds, each) for each in seeds])

    def close(self) -> None:
        """Stop the processes."""
        self._pool.terminate()

    def _run(self, port: int, loop: str, arguments: Sequence[tuple[float, ...]]) -> LoadRun:
        runs = self._pool.starmap(_run, [(port, loop, each) for each in arguments], chunksize=1)
        return LoadRun(
            responses=[response for run in runs for response in run.responses],
            seconds=max(run.seconds for run in runs),
            cpu_s=max(run.cpu_s for run in runs),
        )


def _prepare(images: int, deadline_s: float, prepared: Barrier) -> None:
    global _client
    part = b'Content-Disposition: form-data; name="image"; filename="x.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    requests = []
    for number in range(os.getpid() * images, (os.getpid() + 1) * images):
        body = b"--bench-boundary\r\n" + part + jpeg(number) + b"\r\n--bench-boundary--\r\n"
        head = (
            "POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=bench-boundary\r\n"
            f"X-Request-Timeout-Ms: {int(deadline_s * 1000)}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        requests.append(head.encode() + body)
    _client = _Client(requests, timeout_s=TIMEOUT_FACTOR * deadline_s)
    prepared.wait()  # no process takes a load while another still makes its images


def _run(port: int, loop: str, arguments: tuple[float, ...]) -> LoadRun:
    async def run() -> list[Response]:
        try:
            return list(await getattr(_client, loop)(*arguments))
        finally:
            _client.close()

    _client.port = port
    started_s, cpu_s = time.perf_counter(), time.process_time()
    responses = asyncio.run(run())
    return LoadRun(responses=responses, seconds=time.perf_counter() - started_s, cpu_s=time.process_time() - cpu_s)


class _Client:
    port = 0

    def __init__(self, requests: Sequence[bytes], timeout_s: float) -> None:
        self._requests, self._timeout_s = itertools.cycle(requests), timeout_s
        self._idle: deque[Connection] = deque()

    async def open_loop(self, rate: float, seconds: float, seed: int) -> list[Response]:
        due = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 2) + 10))
        started_s = time.perf_counter()
        responses = []
        for at_s in due[due < seconds]:
            await asyncio.sleep(max(0.0, at_s - (time.perf_counter() - started_s)))
            responses.append(asyncio.create_task(self._send(started_s, float(at_s))))
        return list(await asyncio.gather(*responses))

    async def closed_loop(self, clients: int, seconds: float) -> list[Response]:
        started_s = time.perf_counter()

        async def one() -> list[Response]:
            responses = []
            while (now_s := time.perf_counter() - started_s) < seconds:
                responses.append(await self._send(started_s, now_s))
            return responses

        return [
            response for responses in await asyncio.gather(*(one() for _ in range(clients))) for response in responses
        ]

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    async def _send(self, started_s: float, due_s: float) -> Response:
        request = next(self._requests)
        status, retry_after_s, connection = 0, None, None
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            try:
                async with asyncio.timeout(self._timeout_s):
                    connection = await self._connection()
                    connection[1].write(request)
                    status, headers = await _answer(connection[0])
                    retry_after = headers.get(b"retry-after")
                    retry_after_s = float(retry_after) if retry_after else None
                    if headers.get(b"connection") != b"close":
                        self._idle.append(connection)
                        connection = None
            finally:
                if connection is not None:
                    connection[1].close()
        latency_s = time.perf_counter() - started_s - due_s
        return Response(sent_s=due_s, latency_s=latency_s, status=status, retry_after_s=retry_after_s)

    async def _connection(self) -> Connection:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
        return await asyncio.open_connection("127.0.0.1", self.port)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes]]:
    """Read a whole answer; return its status and headers."""
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


_client: _Client  # of a generator's process
