"""Check the real engine on the device: equal bits under load, and what happens when memory runs out."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.domain import View
from app.engine.engine import BatchingEngine
from app.engine.executor import DeviceExecutor
from app.runtime.logging import configure_logging
from app.runtime.lru import ByteLru
from app.runtime.telemetry import Telemetry
from benchmarks.encoder import FP32, Precision, encoder_of
from benchmarks.workload import SIZE, TIMESTEP, random_batch
from models.encoder import Encoder
from models.types import ImageBatch, ImageFeatures

Bits = tuple[NDArray[np.float32], NDArray[np.float32]]


def reproducible(device: str, precisions: Sequence[Precision], views: int) -> dict[str, Any]:
    """Ask for so many views alone, and again amid ten times as many; return how many came back with other bits."""
    rows = []
    for precision in precisions:
        for is_recorded in (True, False):
            with encoder_of(precision, device, is_recorded=is_recorded) as encoder:
                changed = [asyncio.run(_changed(encoder, views, is_reproducible=flag)) for flag in (True, False)]
            row = {"changed, reproducible": changed[0], "changed, without": changed[1]}
            rows.append({"precision": precision.name, "graphs": is_recorded, **row})
    return {"views": views, "rows": rows}


async def _changed(encoder: Encoder, views: int, *, is_reproducible: bool) -> int:
    async with _started(encoder, max_batch=16) as engine:
        alone = [await _ask(engine, number, is_reproducible) for number in range(views)]
        others = [asyncio.create_task(_ask(engine, 10_000 + number, number % 2 == 0)) for number in range(10 * views)]
        amid = await asyncio.gather(*(_ask(engine, number, is_reproducible) for number in range(views)))
        await asyncio.gather(*others)
    return sum(
        not all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
        for before, after in zip(alone, amid, strict=True)
    )


def out_of_memory(device: str, views: int, max_batch: int) -> dict[str, Any]:
    """Send batches of `max_batch` where a quarter of that fits: all views must be answered, in smaller batches."""
    is_cuda, quarter = device.startswith("cuda"), max(1, max_batch // 4)
    configure_logging(level="error", as_json=False)
    tried: list[int] = []
    # Recorded graphs would hold GPU memory of their own.
    with encoder_of(FP32, device, is_recorded=False if is_cuda else None) as encoder:
        encode = encoder.encode_images

        def record_size(batch: ImageBatch) -> ImageFeatures:
            tried.append(len(batch.pixels))
            if not is_cuda and len(batch.pixels) > quarter:
                raise torch.OutOfMemoryError("no memory, for the test")
            return encode(batch)

        if is_cuda:
            _limit(encoder, quarter)
        encoder.encode_images = record_size  # type: ignore[method-assign]  # the engine calls it on its thread
        try:
            started_s = time.perf_counter()
            answers = asyncio.run(_flood(encoder, views, max_batch))
        finally:
            if is_cuda:
                torch.cuda.set_per_process_memory_fraction(1.0)
    return {
        "asked": views,
        "answered": len(answers),
        "finite": sum(bool(np.isfinite(pooled).all()) for pooled, _ in answers),
        "max_batch": max_batch,
        "sizes_tried": tried,
        "largest_at_the_end": max(tried[-3:]),
        "seconds": time.perf_counter() - started_s,
    }


def _limit(encoder: Encoder, quarter: int) -> None:
    """Leave memory for about a quarter of what the largest batch takes."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    encoder.encode_images(random_batch(quarter))
    needed = torch.cuda.max_memory_reserved() + (torch.cuda.max_memory_allocated() - before) // 4
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(needed / torch.cuda.get_device_properties(0).total_memory)


async def _flood(encoder: Encoder, views: int, max_batch: int) -> list[Bits]:
    async with _started(encoder, max_batch) as engine:
        asked = (_ask(engine, number, is_reproducible=False) for number in range(views))
        found = await asyncio.gather(*asked, return_exceptions=True)
    return [one for one in found if not isinstance(one, BaseException)]


@asynccontextmanager
async def _started(encoder: Encoder, max_batch: int) -> AsyncIterator[BatchingEngine]:
    device = DeviceExecutor(encoder, threads=1)
    engine = BatchingEngine(device, ByteLru(0), Telemetry(), max_batch=max_batch, max_queue_cost=1_000_000)
    await engine.start()
    yield engine
    await engine.stop()


async def _ask(engine: BatchingEngine, number: int, is_reproducible: bool) -> Bits:
    pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    view = View(pixels=pixels, timestep=TIMESTEP, caption=None, key=str(number), is_reproducible=is_reproducible)
    (features,) = await engine.encode_views([view])
    return features.pooled, features.dense
