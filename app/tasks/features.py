"""From the images and strings of a request to their features, and where its time goes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.domain import BundleInfo, Features, View
from app.engine.admission import Reservation
from app.engine.engine import BatchingEngine
from app.errors import ServiceError
from app.imaging.decoding import ImageDecoder, PixelBudget, result_of
from app.imaging.raster import DecodedImage, TiledImage
from app.imaging.sources import EncodedImage, ImageSource
from app.stores.records.items import Items
from app.stores.sql.database import Database
from models.types import TaskProfile, VectorLayout

VIEWS_AT_ONCE = 16  # a dense map is 1.5 MB: those of many images are not held together
TEXTS_AT_ONCE = 128  # leaves room in the queue for other requests between the parts


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemImage:
    """The stored image of a gallery item."""

    gallery: str
    id: str


Source = ImageSource | ItemImage


class ImageInputs:
    """Reads input images for all tasks at the resolution of their profile."""

    def __init__(self, decoder: ImageDecoder, database: Database, items: Items) -> None:
        self._decoder = decoder
        self._database = database
        self._items = items

    async def prepare(
        self, sources: Sequence[Source], budget: PixelBudget, profile: TaskProfile
    ) -> list[DecodedImage | ServiceError]:
        """Return model-ready images in order; a bad image is an error in its own place.

        Raises:
            ImageTooLarge, TooMuchWork, QueueFull: the request as a whole is refused.
        """
        budget.check_count(len(sources))  # before item images are read from the store
        files: list[ImageSource | ServiceError] = []
        for source in sources:
            try:
                files.append(await self._file(source))
            except ServiceError as err:
                files.append(err)
        readable = [file for file in files if not isinstance(file, ServiceError)]
        decoded = iter(await self._decoder.decode_many(readable, budget, profile.resolution))  # one per readable file
        return [file if isinstance(file, ServiceError) else next(decoded) for file in files]

    async def prepare_all(
        self, sources: Sequence[Source], budget: PixelBudget, profile: TaskProfile
    ) -> list[DecodedImage]:
        """As `prepare`, but the first bad image is raised; of several, its place is in the detail."""
        outcomes = await self.prepare(sources, budget, profile)
        for at, outcome in enumerate(outcomes, start=1):
            if isinstance(outcome, ServiceError) and len(outcomes) > 1:
                outcome.detail = f"Image {at} of {len(outcomes)}: {outcome.detail}"
                raise outcome
        return [result_of(outcome) for outcome in outcomes]

    async def tiles(self, source: Source, budget: PixelBudget, profile: TaskProfile) -> TiledImage:
        """Return the squares that segmentation encodes. Raises as `prepare_all`."""
        budget.check_count(1)
        return await self._decoder.tiles(await self._file(source), budget, profile.resolution)

    async def _file(self, source: Source) -> ImageSource:
        if not isinstance(source, ItemImage):
            return source
        _, data = await self._database.run(self._items.image, source.gallery, source.id)
        return EncodedImage(data=data)  # decoded again: the store holds files alone


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
        # The longest, not the sum: the samples of one submission wait at the same time.
        self.add("queue", max((one.queue_ms for one in features), default=0.0))
        self.add("inference", max((one.inference_ms for one in features), default=0.0))

    def add_longest(self, *others: "Timings") -> None:
        """Add phases that ran concurrently: the longest of each name."""
        for name in dict.fromkeys(name for other in others for name in other.phases_ms):
            self.add(name, max(other.phases_ms.get(name, 0.0) for other in others))

    def totals_ms(self) -> dict[str, float]:
        """All phases and `total`, rounded to microseconds."""
        total = (time.perf_counter() - self.started_s) * 1e3
        return {name: round(value, 3) for name, value in {**self.phases_ms, "total": total}.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEncoder:
    """Encodes for one request of one task: within its reservation and deadline, with its time measured.

    Attributes:
        layout: of the task's vectors.
        needs_dense: whether views are encoded with their dense maps.
        timeout_s: of the whole request, since `timings` began.
        is_reproducible: whether bits must not depend on the load.
    """

    engine: BatchingEngine
    inputs: ImageInputs
    profile: TaskProfile
    layout: VectorLayout
    needs_dense: bool
    reservation: Reservation
    timings: Timings
    timeout_s: float | None
    is_reproducible: bool

    async def encode_images(
        self, sources: Sequence[Source], budget: PixelBudget, captions: Sequence[str | None] | None = None
    ) -> tuple[list[DecodedImage], NDArray[np.float32]]:
        """Decode images and encode them as `image_vectors`. Raises as `ImageInputs.prepare_all`, `BatchingEngine`."""
        with self.timings.phase("decode"):
            images = await self.inputs.prepare_all(sources, budget, self.profile)
        return images, await self.image_vectors(images, captions or [None] * len(images))

    async def image_vectors(
        self, images: Sequence[DecodedImage], captions: Sequence[str | None]
    ) -> NDArray[np.float32]:
        """Vectors of model-ready images as the task stores them, in order: [B, J] float32."""
        rows: list[NDArray[np.float32]] = []
        for start in range(0, len(images), VIEWS_AT_ONCE):
            part = slice(start, start + VIEWS_AT_ONCE)
            squares, keys = [one.square for one in images[part]], [one.key for one in images[part]]
            features = await self.features(squares, keys, captions[part])
            # The dense maps are released here.
            rows.extend(self.layout.joined(semantic=one.pooled, visual=one.visual) for one in features)
        return np.stack(rows)

    async def features(
        self, squares: Sequence[NDArray[np.uint8]], keys: Sequence[str], captions: Sequence[str | None]
    ) -> list[Features]:
        """Features of squares, [size, size, 3] uint8 RGB, all at once; `keys` are the digests of their pixels."""
        views = [
            View(
                pixels=square,
                timestep=self.profile.timestep,
                caption=caption,
                key=key,
                is_reproducible=self.is_reproducible,
                needs_dense=self.needs_dense,
            )
            for square, key, caption in zip(squares, keys, captions, strict=True)
        ]
        features = await self.engine.encode_views(views, timeout_s=self._left_s(), reservation=self.reservation)
        self.timings.add_device(features)
        return features

    async def pooled_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings of strings, in order: [T, D] float32, unit length."""
        rows: list[NDArray[np.float32]] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            features = await self.engine.encode_texts(
                texts[start : start + TEXTS_AT_ONCE],
                timeout_s=self._left_s(),
                reservation=self.reservation,
                is_reproducible=self.is_reproducible,
            )
            self.timings.add_device(features)
            rows.extend(one.pooled for one in features)
        return np.stack(rows)

    def _left_s(self) -> float | None:
        """The rest of the timeout."""
        if self.timeout_s is None:
            return None
        return max(0.0, self.timeout_s - (time.perf_counter() - self.timings.started_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEncoders:
    """Admits requests of all tasks to the engine.

    Attributes:
        layouts: of the vectors of each task.
    """

    bundle: BundleInfo
    layouts: Mapping[str, VectorLayout]
    engine: BatchingEngine
    inputs: ImageInputs

    @contextmanager
    def admitted(
        self,
        task: str,
        *,
        views: int = 0,
        texts: Sequence[str] = (),
        timings: Timings | None = None,
        timeout_s: float | None = None,
        is_reproducible: bool = False,
    ) -> Iterator[RequestEncoder]:
        """Reserve room for a request's views and strings until the block ends. Raises as `BatchingEngine.admit`."""
        profile = self.bundle.tasks[task]
        with self.engine.admit(views=views, side=profile.resolution, texts=texts, timeout_s=timeout_s) as reservation:
            yield RequestEncoder(
                engine=self.engine,
                inputs=self.inputs,
                profile=profile,
                layout=self.layouts[task],
                needs_dense=self.bundle.needs_dense(task),
                reservation=reservation,
                timings=timings or Timings(),
                timeout_s=timeout_s,
                is_reproducible=is_reproducible,
            )
