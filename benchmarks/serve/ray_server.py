"""Ray Serve: an ingress that decodes, and `@serve.batch` in the same replica."""

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from starlette.requests import Request

from benchmarks.workload import MAX_BATCH, embed, load_encoder, prepare

REPLICAS = 2  # 18 a second, 17 with one
MAX_ONGOING = 256  # the queue stays in the replicas, where it is batched


@serve.deployment(num_replicas=REPLICAS, max_ongoing_requests=MAX_ONGOING, ray_actor_options={"num_cpus": 1})
class Embed:
    def __init__(self) -> None:
        self.encoder = load_encoder(1)  # two OpenMP threads on a busy core stall each other
        self.decoders, self.device = ThreadPoolExecutor(2), ThreadPoolExecutor(1)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.01)
    async def encode(self, inputs: list[NDArray[np.float32]]) -> list[list[float]]:
        return await asyncio.get_running_loop().run_in_executor(self.device, embed, self.encoder, inputs)

    async def __call__(self, request: Request) -> dict[str, Any]:
        if request.url.path != "/embed":
            return {"ok": True}
        form = await request.form()
        data = await form["image"].read()  # type: ignore[union-attr]  # a file
        prepared = await asyncio.get_running_loop().run_in_executor(self.decoders, prepare, data)
        return {"images": [await self.encode(prepared)]}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    serve.start(http_options={"port": int(sys.argv[1]), "location": "HeadOnly"})
    serve.run(Embed.bind(), route_prefix="/")
    while True:
        time.sleep(3600)
