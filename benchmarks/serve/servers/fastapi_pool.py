"""Plain FastAPI: a synchronous endpoint in the thread pool, one image a pass."""

import os
import queue
import sys

import anyio.to_thread
import uvicorn
from fastapi import FastAPI, UploadFile

from benchmarks.serve.workload import embed, load_encoder, prepare
from models.encoder import Encoder

THREADS = int(os.environ.get("BENCH_POOL_THREADS", "2"))
app = FastAPI()
# An encoder a thread: hooks collect the U-Net's maps, so one encoder serves one pass at a time.
encoders: queue.SimpleQueue[Encoder] = queue.SimpleQueue()
for _ in range(THREADS):
    encoders.put(load_encoder(1))


@app.on_event("startup")
async def bound_pool() -> None:
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS


@app.post("/embed")
def answer(image: UploadFile) -> dict[str, list[list[float]]]:
    prepared = prepare(image.file.read())
    encoder = encoders.get()
    try:
        return {"images": embed(encoder, [prepared])}
    finally:
        encoders.put(encoder)


@app.get("/livez")
async def live() -> dict[str, bool]:
    return {"ok": True}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
