"""Features of many images and strings for a task, and where the time of its request goes."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.domain import FeatureEngine, Features, Reservation, View
from app.imaging.raster import DecodedImage
from models.types import TaskProfile

VIEWS_AT_ONCE = 16
"""A dense map is 1.5 MB, so features of many images are not held together."""
TEXTS_AT_ONCE = 128


@dataclass(slots=True)
class Timings:
    """Milliseconds per phase of one request; a phase that is entered twice adds up."""

    started_s: float = field(default_factory=time.perf_counter)
    phases_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a block."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, (time.perf_counter() - started_s) * 1e3)

    def add(self, name: str, duration_ms: float) -> None:
        """Add time that was measured elsewhere."""
        self.phases_ms[name] = self.phases_ms.get(name, 0.0) + duration_ms

    def add_device(self, features: Sequence[Features]) -> None:
        """Add the longest time in the queue and the longest device pass of one submission."""
        self.add("queue", max((one.queue_ms for one in features), default=0.0))
        self.add("inference", max((one.inference_ms for one in features), default=0.0))

    def add_longest(self, *others: "Timings") -> None:
        """Add phases that ran concurrently: the longest of each name."""
        for name in dict.fromkeys(name for other in others for name in other.phases_ms):
            self.add(name, max(other.phases_ms.get(name, 0.0) for other in others))

    def left_s(self, timeout_s: float | None) -> float | None:
        """The rest of a timeout that began with these timings."""
        if timeout_s is None:
            return None
        return max(0.0, timeout_s - (time.perf_counter() - self.started_s))

    def totals_ms(self) -> dict[str, float]:
        """All phases and `total`, rounded to microseconds."""
        total = (time.perf_counter() - self.started_s) * 1e3
        return {name: round(value, 3) for name, value in {**self.phases_ms, "total": total}.items()}


async def pooled_images(
    engine: FeatureEngine,
    images: Sequence[DecodedImage],
    *,
    captions: Sequence[str | None],
    profile: TaskProfile,
    reservation: Reservation,
    timeout_s: float | None,
    timings: Timings,
    is_reproducible: bool = False,
) -> NDArray[np.float32]:
    """Global features of model-ready images, in order.

    Args:
        reservation: holds room for all of them.

    Returns:
        [B, D] float32, unit length.
    """
    rows: list[NDArray[np.float32]] = []
    for start in range(0, len(images), VIEWS_AT_ONCE):
        stop = start + VIEWS_AT_ONCE
        part = zip(images[start:stop], captions[start:stop], strict=True)
        views = [
            view_of(image.square, image.key, caption=caption, profile=profile, is_reproducible=is_reproducible)
            for image, caption in part
        ]
        features = await engine.encode_views(views, timeout_s=timings.left_s(timeout_s), reservation=reservation)
        timings.add_device(features)
        rows.extend(one.pooled for one in features)
    return np.stack(rows)


async def pooled_texts(
    engine: FeatureEngine,
    texts: Sequence[str],
    *,
    reservation: Reservation,
    timeout_s: float | None,
    timings: Timings,
    is_reproducible: bool = False,
) -> NDArray[np.float32]:
    """Embeddings of strings, in order: [T, D] float32, unit length. Arguments as `pooled_images`."""
    rows: list[NDArray[np.float32]] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        features = await engine.encode_texts(
            texts[start : start + TEXTS_AT_ONCE],
            timeout_s=timings.left_s(timeout_s),
            reservation=reservation,
            is_reproducible=is_reproducible,
        )
        timings.add_device(features)
        rows.extend(one.pooled for one in features)
    return np.stack(rows)


def view_of(
    square: NDArray[np.uint8], key: str, *, caption: str | None, profile: TaskProfile, is_reproducible: bool = False
) -> View:
    """An encoder input from [size, size, 3] uint8 RGB; `key` is the digest of its pixels."""
    return View(
        pixels=square,
        timestep=profile.timestep,
        caption=caption,
        key=key,
        is_reproducible=is_reproducible,
    )
