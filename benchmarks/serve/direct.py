"""Measure the limit: the same images decoded and encoded in full batches by one process without any server.

`python -m benchmarks.serve.direct WORKERS SECONDS THREADS` prints images a second.
"""

import queue
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.load import jpeg
from benchmarks.workload import MAX_BATCH, embed, load_encoder, prepare


def rate(workers: int, seconds: float, threads: int) -> float:
    """Return images a second of threads that encode a batch each, beside two that decode a few batches ahead."""
    images = [jpeg(number) for number in range(64)]
    encoder = load_encoder(threads)
    decoded: queue.Queue[NDArray[np.float32]] = queue.Queue(4 * MAX_BATCH)

    def decode(first: int) -> None:
        number = first
        while True:
            decoded.put(prepare(images[number % len(images)]))
            number += 2

    def encode(_: int) -> int:
        torch.set_num_threads(threads)  # a setting of each thread
        done = 0
        while time.perf_counter() - started_s < seconds:
            embed(encoder, [decoded.get() for _ in range(MAX_BATCH)])
            done += MAX_BATCH
        return done

    for first in (0, 1):
        threading.Thread(target=decode, args=(first,), daemon=True).start()  # they end with the process
    started_s = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(encode, range(workers))) / (time.perf_counter() - started_s)


if __name__ == "__main__":
    sys.stdout.write(f"{rate(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))}\n")
