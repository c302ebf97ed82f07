"""Plain FastAPI: a synchronous endpoint in the thread pool, one image a pass."""

import queue
import sys

import uvicorn
from fastapi import FastAPI, UploadFile

from benchmarks.workload import embed, load_encoder, prepare
from models.encoder import Encoder

THREADS = 2  # one image a pass on each core; the other threads of the pool wait
app = FastAPI()
# An encoder for each thread: hooks collect the U-Net's maps, so an encoder serves one pass at a time.
encoders: queue.SimpleQueue[Encoder] = queue.SimpleQueue()


@app.post("/embed")
def answer(image: UploadFile) -> dict[str, list[list[float]]]:
    encoder = encoders.get()
    try:
        return {"images": embed(encoder, [prepare(image.file.read())])}
    finally:
        encoders.put(encoder)


@app.get("/livez")
async def live() -> dict[str, bool]:
    return {"ok": True}


if __name__ == "__main__":
    for _ in range(THREADS):
        encoders.put(load_encoder(1))
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
