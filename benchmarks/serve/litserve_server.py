"""LitServe: worker processes that decode in threads of their own and encode in batches."""

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import litserve as ls
from fastapi import Request

from benchmarks.workload import MAX_BATCH, embed, load_encoder, prepare

WORKERS = 2  # one decodes while the other encodes: 32 a second, 19 with one
WAIT_S = 0.01  # full batches under load, little wait without


class Api(ls.LitAPI):
    def setup(self, device: str) -> None:
        del device
        self.encoder = load_encoder(1)  # two OpenMP threads on a busy core stall each other
        self.decoders = ThreadPoolExecutor(2)

    def decode_request(self, request: Request) -> bytes:
        data: bytes = request["image"].file.read()  # type: ignore[index]  # LitServe passes the form itself
        return data

    def predict(self, inputs: list[bytes]) -> list[list[float]]:
        return embed(self.encoder, list(self.decoders.map(prepare, inputs)))

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        return {"images": [output]}


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=WAIT_S, api_path="/embed")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, healthcheck_path="/livez", timeout=30)
    server.run(port=int(sys.argv[1]), log_level="error", generate_client_file=False, access_log=False)
