"""Ray Serve: an ingress that decodes, and `@serve.batch` in the same replica."""

import asyncio
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from starlette.requests import Request

from benchmarks.serve.workload import MAX_BATCH, embed, load_encoder, prepare


@serve.deployment(
    num_replicas=int(os.environ.get("BENCH_ENCODERS", "1")),
    max_ongoing_requests=256,
    ray_actor_options={"num_cpus": 1},
)
class Embed:
    def __init__(self) -> None:
        self.encoder = load_encoder(int(os.environ.get("BENCH_THREADS", "1")))
        self.decoders, self.device = ThreadPoolExecutor(2), ThreadPoolExecutor(1)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.01)
    async def encode(self, inputs: list[NDArray[np.float32]]) -> list[list[float]]:
        return await asyncio.get_running_loop().run_in_executor(self.device, embed, self.encoder, inputs)

    async def __call__(self, request: Request) -> dict[str, Any]:
        if request.url.path == "/livez":
            return {"ok": True}
        form = await request.form()
        data = await form["image"].read()  # type: ignore[union-attr]  # a file
        ready = await asyncio.get_running_loop().run_in_executor(self.decoders, prepare, data)
        return {"images": [await self.encode(ready)]}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    serve.start(http_options={"port": int(sys.argv[1]), "location": "HeadOnly"})
    serve.run(Embed.bind(), route_prefix="/")
    while True:
        time.sleep(3600)
