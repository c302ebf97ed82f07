"""mosec: a stage of processes that decode, then one that encodes in batches."""

import numpy as np
from mosec import Server, Worker
from numpy.typing import NDArray

from benchmarks.workload import MAX_BATCH, embed, load_encoder, prepare


class Decode(Worker):
    def deserialize(self, data: bytes) -> bytes:
        boundary, _, rest = data.partition(b"\r\n")  # mosec passes the multipart body itself; it has one part
        content = rest.partition(b"\r\n\r\n")[2]
        return content[: content.rindex(b"\r\n" + boundary)]

    def forward(self, data: bytes) -> NDArray[np.float32]:
        return prepare(data)


class Encode(Worker):
    def __init__(self) -> None:
        self.encoder = load_encoder(1)  # two OpenMP threads on a busy core stall each other

    def forward(self, data: list[NDArray[np.float32]]) -> list[dict[str, list[list[float]]]]:
        return [{"images": [row]} for row in embed(self.encoder, data)]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, num=1, route="/embed")
    # A second encoding process only makes batches smaller: 34 a second with either. The wait is LitServe's.
    server.append_worker(Encode, num=1, max_batch_size=MAX_BATCH, max_wait_time=10, route="/embed")
    server.run()
