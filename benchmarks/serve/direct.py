"""The limit: the same images decoded and encoded in full batches by one process without any server."""

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

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
    return _decoded_beside(images, seconds, threads, lanes=1)


def two_lanes(images: Sequence[bytes], seconds: float, threads: int) -> float:
    """The same with two threads that encode, a batch each."""
    return _decoded_beside(images, seconds, threads, lanes=2)


def _decoded_beside(images: Sequence[bytes], seconds: float, threads: int, *, lanes: int) -> float:
    encoder = load_encoder(threads)
    ready: queue.Queue[NDArray[np.float32]] = queue.Queue(4 * MAX_BATCH)
    has_ended = threading.Event()

    def decode(first: int) -> None:
        number = first
        while not has_ended.is_set():
            ready.put(prepare(images[number % len(images)]))
            number += 2

    decoders = [threading.Thread(target=decode, args=(first,), daemon=True) for first in (0, 1)]
    for decoder in decoders:
        decoder.start()
    started_s = time.perf_counter()

    def encode(_: int) -> int:
        torch.set_num_threads(threads)
        done = 0
        while time.perf_counter() - started_s < seconds:
            embed(encoder, [ready.get() for _ in range(MAX_BATCH)])
            done += MAX_BATCH
        return done

    with ThreadPoolExecutor(lanes) as pool:
        rate = sum(pool.map(encode, range(lanes))) / (time.perf_counter() - started_s)
    has_ended.set()
    while any(decoder.is_alive() for decoder in decoders):
        while not ready.empty():
            ready.get_nowait()
        time.sleep(0.01)
    return rate
