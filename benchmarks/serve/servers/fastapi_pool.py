"""Plain FastAPI: a synchronous endpoint in the thread pool, one image a pass."""

import os
import sys

import anyio.to_thread
import uvicorn
from fastapi import FastAPI, UploadFile

from benchmarks.serve.workload import embed, load_encoder, prepare

THREADS = int(os.environ.get("BENCH_POOL_THREADS", "2"))
app = FastAPI()
encoder = load_encoder(1)


@app.on_event("startup")
async def bound_pool() -> None:
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS


@app.post("/embed")
def answer(image: UploadFile) -> dict[str, list[list[float]]]:
    return {"images": embed(encoder, [prepare(image.file.read())])}


@app.get("/livez")
async def live() -> dict[str, bool]:
    return {"ok": True}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
