"""The load generator in processes of its own, so that it is not what limits a fast service."""

import asyncio
import multiprocessing
import os
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from benchmarks.serve.images import jpeg
from benchmarks.serve.load import Client, Shot

DEADLINE_S, PATIENCE_S = 5.0, 15.0
_images: list[bytes] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """What one load brought; `busiest` is the busiest generator's share of a core."""

    shots: Sequence[Shot]
    seconds: float
    busiest: float

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return sum(shot.status == 200 for shot in self.shots) / self.seconds


class Generators:
    """So many processes, each with its own pictures and clients."""

    def __init__(self, processes: int, images: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pools = [ProcessPoolExecutor(1, context, _prepare, (images,)) for _ in range(processes)]
        self._warm = [pool.submit(os.getpid) for pool in self._pools]

    def closed_loop(self, port: int, clients: int, seconds: float) -> Fired:
        """As `Client.closed_loop`, clients shared out."""
        return self._fire(port, seconds, clients=max(1, clients // len(self._pools)), rate=0.0)

    def open_loop(self, port: int, rate: float, seconds: float) -> Fired:
        """As `Client.open_loop`, arrivals shared out."""
        return self._fire(port, seconds, clients=0, rate=rate / len(self._pools))

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown()

    def _fire(self, port: int, seconds: float, *, clients: int, rate: float) -> Fired:
        for each in self._warm:
            each.result()
        running = [pool.submit(_fire, port, clients, rate, seconds, seed) for seed, pool in enumerate(self._pools)]
        found = [each.result() for each in running]
        return Fired(
            shots=[shot for shots, _, _ in found for shot in shots],
            seconds=max(span_s for _, span_s, _ in found),
            busiest=max(cpu_s / span_s for _, span_s, cpu_s in found),
        )


def _prepare(images: int) -> None:
    _images.extend(jpeg(os.getpid() * 10_000 + number) for number in range(images))


def _fire(port: int, clients: int, rate: float, seconds: float, seed: int) -> tuple[list[Shot], float, float]:
    """Shots, and the seconds of the clock and of this process that they took."""
    client = Client(port, _images, patience_s=PATIENCE_S, deadline_s=DEADLINE_S)
    begun_s, own_s = time.perf_counter(), _own_cpu_s()
    shots = asyncio.run(_loop(client, clients, rate, seconds, seed))
    return shots, time.perf_counter() - begun_s, _own_cpu_s() - own_s


async def _loop(client: Client, clients: int, rate: float, seconds: float, seed: int) -> list[Shot]:
    try:
        return await (client.closed_loop(clients, seconds) if clients else client.open_loop(rate, seconds, seed))
    finally:
        client.close()


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
