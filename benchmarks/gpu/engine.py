"""Through the real engine: equal bits under load, and what happens when memory runs out."""

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from app.domain import View
from app.engine.engine import BatchingEngine
from app.engine.executor import DeviceExecutor
from app.runtime.logging import configure_logging
from app.runtime.lru import ByteLru
from app.runtime.telemetry import Telemetry
from benchmarks.gpu.precision import SIDE, TIMESTEP, Precision, encoder_of
from models.encoder import Encoder
from models.types import ImageBatch, ImageFeatures, TextFeatures

Bits = tuple[NDArray[np.float32], NDArray[np.float32]]


def reproducible(device: str, views: int, dtypes: Sequence[str]) -> dict[str, object]:
    """Of so many views asked alone and again amid ten times as many, how many came back with other bits."""
    rows = []
    for dtype in dtypes:
        for is_recorded in (True, False):
            with encoder_of(Precision(name=dtype, dtype=dtype), device) as encoder:
                encoder._is_recorded = is_recorded
                changed = [asyncio.run(_changed(encoder, views, is_reproducible=flag)) for flag in (True, False)]
            rows.append(
                {
                    "dtype": dtype,
                    "graphs": is_recorded,
                    "changed, reproducible": changed[0],
                    "changed, without": changed[1],
                }
            )
    return {"views": views, "rows": rows}


async def _changed(encoder: Encoder, views: int, *, is_reproducible: bool) -> int:
    engine = _engine(encoder, max_batch=16)
    await engine.start()
    alone = [await _asked(engine, number, is_reproducible) for number in range(views)]
    others = [asyncio.create_task(_asked(engine, 10_000 + number, number % 2 == 0)) for number in range(10 * views)]
    amid = await asyncio.gather(*(_asked(engine, number, is_reproducible) for number in range(views)))
    await asyncio.gather(*others)
    await engine.stop()
    return sum(
        not all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
        for before, after in zip(alone, amid, strict=True)
    )


class _Sizes:
    """An encoder that keeps the sizes of its passes, and runs out of room where there is no device that does."""

    def __init__(self, encoder: Encoder, *, room: int | None) -> None:
        self._encoder, self._room = encoder, room
        self.tried: list[int] = []

    @property
    def fingerprint(self) -> str:
        return self._encoder.fingerprint

    @property
    def dimension(self) -> int:
        return self._encoder.dimension

    def encode_images(self, batch: ImageBatch) -> ImageFeatures:
        size = len(batch.pixels)
        self.tried.append(size)
        if self._room is not None and size > self._room:
            raise torch.OutOfMemoryError("no room, for the test")
        return self._encoder.encode_images(batch)

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        return self._encoder.encode_texts(texts)


def out_of_memory(device: str, views: int, max_batch: int) -> dict[str, object]:
    """Batches of `max_batch` where a quarter of that fits: every view answered, and a smaller batch from then on."""
    is_cuda = device.startswith("cuda")
    configure_logging(level="error", as_json=False)
    with encoder_of(Precision(name="fp32", dtype="fp32"), device) as encoder:
        encoder._is_recorded = encoder._is_recorded and not is_cuda  # graphs hold memory of their own
        kept = _Sizes(encoder, room=None if is_cuda else max(1, max_batch // 4))
        if is_cuda:
            _limit(encoder, max_batch)
        try:
            started_s = time.perf_counter()
            answered, finite = asyncio.run(_flood(kept, views, max_batch))
        finally:
            if is_cuda:
                torch.cuda.set_per_process_memory_fraction(1.0)
    return {
        "asked": views,
        "answered": answered,
        "finite": finite,
        "max_batch": max_batch,
        "sizes_tried": kept.tried,
        "largest_at_the_end": max(kept.tried[-3:]),
        "seconds": time.perf_counter() - started_s,
    }


def _limit(encoder: Encoder, max_batch: int) -> None:
    """Leave room for about a quarter of what the largest batch takes."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    quarter = max(1, max_batch // 4)
    encoder.encode_images(_noise(quarter))
    needed = torch.cuda.max_memory_reserved() + (torch.cuda.max_memory_allocated() - before) // 4
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(needed / torch.cuda.get_device_properties(0).total_memory)


def _noise(count: int) -> ImageBatch:
    pixels = torch.rand((count, 3, SIDE, SIDE)) * 2 - 1
    return ImageBatch(pixels=pixels, timesteps=torch.full((count,), TIMESTEP), captions=[None] * count)


async def _flood(encoder: _Sizes, views: int, max_batch: int) -> tuple[int, int]:
    engine = _engine(encoder, max_batch=max_batch)
    await engine.start()
    found = await asyncio.gather(
        *(_asked(engine, number, is_reproducible=False) for number in range(views)), return_exceptions=True
    )
    await engine.stop()
    answers = [one for one in found if not isinstance(one, BaseException)]
    return len(answers), sum(bool(np.isfinite(pooled).all()) for pooled, _ in answers)


def _engine(encoder: Encoder | _Sizes, *, max_batch: int) -> BatchingEngine:
    device = DeviceExecutor(encoder, threads=1)
    return BatchingEngine(device, ByteLru(0), Telemetry(), max_batch=max_batch, max_queue_cost=1_000_000)


async def _asked(engine: BatchingEngine, number: int, is_reproducible: bool) -> Bits:
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    view = View(pixels=pixels, timestep=TIMESTEP, caption=None, key=str(number), is_reproducible=is_reproducible)
    (found,) = await engine.encode_views([view])
    return found.pooled, found.dense
