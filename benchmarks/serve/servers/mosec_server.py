"""mosec: a stage of processes that decode, then one that encodes in batches."""

import os

import numpy as np
from mosec import Server, Worker
from numpy.typing import NDArray

from benchmarks.serve.workload import MAX_BATCH, embed, file_of, load_encoder, prepare


class Decode(Worker):
    def deserialize(self, data: bytes) -> bytes:
        return file_of(data)

    def forward(self, data: bytes) -> NDArray[np.float32]:
        return prepare(data)


class Encode(Worker):
    def __init__(self) -> None:
        self.encoder = load_encoder(int(os.environ.get("BENCH_THREADS", "1")))

    def forward(self, data: list[NDArray[np.float32]]) -> list[dict[str, list[list[float]]]]:
        return [{"images": [row]} for row in embed(self.encoder, data)]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, num=int(os.environ.get("BENCH_DECODERS", "1")), route="/embed")
    encoders = int(os.environ.get("BENCH_ENCODERS", "1"))
    server.append_worker(Encode, num=encoders, max_batch_size=MAX_BATCH, max_wait_time=10, route="/embed")
    server.run()
