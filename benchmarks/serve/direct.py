"""The limit: the same images decoded and encoded in full batches by one process without any server."""

import queue
import threading
import time
from collections.abc import Sequence

from benchmarks.serve.workload import MAX_BATCH, embed, load_encoder, prepare


def one_after_another(images: Sequence[bytes], seconds: float, threads: int) -> float:
    """Images a second: decode eight, encode eight, again."""
    encoder = load_encoder(threads)
    done, started_s = 0, time.perf_counter()
    while time.perf_counter() - started_s < seconds:
        part = [images[(done + index) % len(images)] for index in range(MAX_BATCH)]
        embed(encoder, [prepare(data) for data in part])
        done += MAX_BATCH
    return done / (time.perf_counter() - started_s)


def side_by_side(images: Sequence[bytes], seconds: float, threads: int) -> float:
    """Images a second with decoding in two threads beside the encoder's, a few batches ahead."""
    encoder = load_encoder(threads)
    ready: queue.Queue[object] = queue.Queue(4 * MAX_BATCH)
    has_ended = threading.Event()

    def decode(first: int) -> None:
        number = first
        while not has_ended.is_set():
            ready.put(prepare(images[number % len(images)]))
            number += 2

    decoders = [threading.Thread(target=decode, args=(first,), daemon=True) for first in (0, 1)]
    for decoder in decoders:
        decoder.start()
    done, started_s = 0, time.perf_counter()
    while time.perf_counter() - started_s < seconds:
        embed(encoder, [ready.get() for _ in range(MAX_BATCH)])  # type: ignore[misc]  # arrays
        done += MAX_BATCH
    rate = done / (time.perf_counter() - started_s)
    has_ended.set()
    while any(decoder.is_alive() for decoder in decoders):
        while not ready.empty():
            ready.get_nowait()
        time.sleep(0.01)
    return rate
