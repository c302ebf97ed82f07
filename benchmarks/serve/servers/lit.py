"""LitServe: worker processes that decode in threads of their own and encode in batches."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import litserve as ls
from fastapi import Request

from benchmarks.serve.workload import MAX_BATCH, embed, load_encoder, prepare

THREADS = int(os.environ.get("BENCH_THREADS", "1"))
ENCODERS = int(os.environ.get("BENCH_ENCODERS", "1"))


class Api(ls.LitAPI):
    def setup(self, device: str) -> None:
        del device
        self.encoder = load_encoder(THREADS)
        self.pool = ThreadPoolExecutor(2)

    def decode_request(self, request: Request) -> bytes:
        data: bytes = request["image"].file.read()  # type: ignore[index]  # LitServe passes the form itself
        return data

    def predict(self, inputs: list[bytes]) -> list[list[float]]:
        return embed(self.encoder, list(self.pool.map(prepare, inputs)))

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        return {"images": [output]}


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=float(os.environ.get("BENCH_WAIT_S", "0.01")), api_path="/embed")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=ENCODERS, healthcheck_path="/livez", timeout=30)
    server.run(port=int(sys.argv[1]), log_level="error", generate_client_file=False, access_log=False)
