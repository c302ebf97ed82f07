"""Features of many pictures and strings, submitted in parts that leave room for others."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.domain import FeatureEngine, Features, Reservation, View
from app.imaging.raster import DecodedImage
from app.tasks.timing import Timings
from models.types import TaskProfile

VIEWS_AT_ONCE = 16
"""A dense map is 1.5 MB, so features of many pictures are not held together."""
TEXTS_AT_ONCE = 128


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
        place: holds room for all of them.

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
        count_features(features, timings)
        rows.extend(feature.pooled for feature in features)
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
    """Embeddings of strings, in order: [T, D] float32, unit length; `place` holds room for all of them."""
    parts: list[NDArray[np.float32]] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = texts[start : start + TEXTS_AT_ONCE]
        answer = await engine.encode_texts(
            part, timeout_s=timings.left_s(timeout_s), reservation=reservation, is_reproducible=is_reproducible
        )
        timings.add("queue", answer.queue_ms)
        timings.add("inference", answer.inference_ms)
        parts.append(answer.pooled)
    return np.concatenate(parts)


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


def count_features(features: Sequence[Features], timings: Timings) -> None:
    """Add the longest wait and the longest pass of one submission."""
    timings.add("queue", max((feature.queue_ms for feature in features), default=0.0))
    timings.add("inference", max((feature.inference_ms for feature in features), default=0.0))
