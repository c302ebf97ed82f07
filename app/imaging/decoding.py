"""The interface that tasks call: sources to model-ready images, in a bounded pool and behind one cache."""

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from app.domain import Limits
from app.errors import QueueFull, ServiceError
from app.imaging.drawings import draw_on_canvas, open_strokes, render_svg
from app.imaging.processes import DecoderProcesses
from app.imaging.raster import DecodedImage, OpenedImage, TiledImage, decode_image, open_file, thumbnail_of, tile_image
from app.imaging.sources import Base64Image, EncodedImage, ImageSource, PixelBudget, StrokesImage, decode_base64
from app.runtime.lru import ByteLru
from app.runtime.process import DECODER_NICENESS, be_nice
from app.runtime.telemetry import Telemetry
from models.transforms import plan_views

_ENTRY_BYTES = 512  # overhead of a cache entry, so that many small ones are bounded too
_LOOP_LOOKUP_BYTES = 1 << 20  # largest file looked up on the event loop: hashing it takes a quarter of a millisecond
T = TypeVar("T")
Opened = tuple[ImageSource, OpenedImage]
V = TypeVar("V", DecodedImage, TiledImage)


class ImageCache:
    """LRU cache of decoded images, keyed by (file bytes, size) and kind of result; shared by all tasks; thread-safe."""

    def __init__(self, *, max_bytes: int) -> None:
        self._values: ByteLru[tuple[bytes, int, type], Any] = ByteLru(max_bytes)
        self._guard = threading.Lock()
        # A lock of each file being made; it vanishes with its last waiter.
        self._in_flight: weakref.WeakValueDictionary[bytes, threading.Lock] = weakref.WeakValueDictionary()

    @property
    def size_bytes(self) -> int:
        """Memory used, the files included."""
        return self._values.size_bytes

    def get(self, data: bytes, size: int, kind: type[V]) -> V | None:
        """Return the cached result of a file, or None; never waits for a decode."""
        return cast(V | None, self._values.get((data, size, kind)))

    def get_or_make(self, data: bytes, size: int, kind: type[V], make: Callable[[], V]) -> V:
        """Return the cached result of a file, or make and cache it; equal requests at once make it once."""
        with self._guard:
            lock = self._in_flight.setdefault(data, threading.Lock())
        with lock:
            found = self.get(data, size, kind)
            if found is None:
                found = make()  # if it raises, the next caller tries again
                self._values.put((data, size, kind), found, found.size_bytes + len(data) + _ENTRY_BYTES)
        return found


class ImageDecoder:
    """Decodes for all tasks in a pool of `workers` threads; at most `max_waiting` callers wait for it."""

    def __init__(
        self,
        *,
        limits: Limits,
        telemetry: Telemetry,
        cache: ImageCache,
        workers: int = 2,
        max_waiting: int = 256,
        processes: DecoderProcesses | None = None,  # decode files, one a thread; else the threads do
    ) -> None:
        self._limits = limits
        self._cache = cache
        self._telemetry = telemetry
        self._max_waiting = max_waiting
        self._callers = 0  # changed on the event loop alone
        self._processes = processes
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix="decode", initializer=be_nice, initargs=(DECODER_NICENESS,)
        )

    async def decode_many(
        self, sources: Sequence[ImageSource], budget: PixelBudget, size: int
    ) -> list[DecodedImage | ServiceError]:
        """Return model-ready images of `size` px in order; a bad image is an error in its own place.

        Raises:
            ImageTooLarge, TooMuchWork: the request as a whole is over its budget.
            QueueFull: too many callers wait.
        """
        if len(sources) == 1:
            known = self._known(sources[0], budget, lambda data: self._cache.get(data, size, DecodedImage))
            if known is not None:
                return [known]
        return await self._in_turn(sources, budget, size, partial(self._cached, DecodedImage, size, self._decode))

    async def tiles(self, source: ImageSource, budget: PixelBudget, size: int) -> TiledImage:
        """Return the squares of `size` px that segmentation encodes; strokes lie on their canvas.

        Raises the image's own error, or as `decode_many`.
        """
        known = self._known(source, budget, lambda data: self._known_tiles(data, size))
        if known is not None:
            return known
        return await self._one(source, budget, size, partial(self._cached, TiledImage, size, self._tile))

    async def thumbnail(self, data: bytes, size: int) -> bytes:
        """Return a WebP of a file whose longest side is at most `size` px. Raises as `tiles`."""
        budget = PixelBudget(max_pixels=self._limits.max_image_pixels, max_images=1)
        file = EncodedImage(data=data)
        return await self._one(file, budget, size, lambda opened: thumbnail_of(self._read(opened[1]), size))

    def start(self) -> None:
        """Start the decoder processes, so that the first image does not wait for them."""
        if self._processes is not None:
            self._processes.start()

    def stop(self) -> None:
        """Wait for running decodes, then end the pool and the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._processes is not None:
            self._processes.stop()

    def _known(self, source: ImageSource, budget: PixelBudget, find: Callable[[bytes], V | None]) -> V | None:
        """Look up a small file on the event loop: a turn of the pool would dominate the answer's time."""
        if not isinstance(source, EncodedImage) or len(source.data) > _LOOP_LOOKUP_BYTES:
            return None
        found = find(source.data)
        if found is not None:
            budget.charge(found.width, found.height)
        return found

    def _known_tiles(self, data: bytes, size: int) -> TiledImage | None:
        """Return cached tiles, or those of an image that is no larger than its cached square."""
        found = self._cache.get(data, size, TiledImage)
        image = self._cache.get(data, size, DecodedImage) if found is None else None
        if image is None or image.is_sketch:  # segmentation encodes a drawing as it lies, not its canonical sketch
            return found
        boxes = plan_views(image.height, image.width, size, max_tiles=self._limits.max_tiles)
        if len(boxes) > 1:
            return None
        return TiledImage(height=image.height, width=image.width, boxes=boxes, squares=[image.square], keys=[image.key])

    async def _one(self, source: ImageSource, budget: PixelBudget, size: int, work: Callable[[Opened], T]) -> T:
        (outcome,) = await self._in_turn([source], budget, size, work)
        return result_of(outcome)

    async def _in_turn(
        self, sources: Sequence[ImageSource], budget: PixelBudget, size: int, work: Callable[[Opened], T]
    ) -> list[T | ServiceError]:
        """Charge all headers before the first image is decoded, then do `work` on one image after another."""
        if self._callers >= self._max_waiting:
            self._telemetry.requests_rejected.labels("decode_queue_full").inc()
            raise QueueFull("Too many images wait to be decoded.", retry_after_s=1.0)

        def open_all() -> list[Opened | ServiceError]:
            opened = [_outcome(partial(self._open, source, size)) for source in sources]
            for one in opened:
                if not isinstance(one, ServiceError):
                    budget.charge(one[1].width, one[1].height)
            return opened

        def finish(opened: Opened | ServiceError) -> T | ServiceError:
            return opened if isinstance(opened, ServiceError) else _outcome(partial(work, opened))

        loop = asyncio.get_running_loop()
        self._callers += 1
        try:
            if len(sources) == 1:
                # One turn of the pool: behind others, a second turn is a second wait.
                return [await loop.run_in_executor(self._pool, lambda: finish(*open_all()))]
            # One turn an image: requests take turns, and the pixels of one request are never all in memory.
            found = await loop.run_in_executor(self._pool, open_all)
            return [await loop.run_in_executor(self._pool, finish, opened) for opened in found]
        finally:
            self._callers -= 1

    def _open(self, source: ImageSource, size: int) -> Opened:
        """Return the source with its size; base64 text becomes a file."""
        if isinstance(source, StrokesImage):
            return source, open_strokes(source, size, self._limits)
        if isinstance(source, Base64Image):
            source = EncodedImage(data=decode_base64(source.text))
        file = source.data if isinstance(source, EncodedImage) else render_svg(source.text, self._limits)
        return source, open_file(file, self._limits)

    def _cached(self, kind: type[V], size: int, make: Callable[[Opened, int], V], opened: Opened) -> V:
        """Make a result through the cache, which holds those of files alone."""
        if not isinstance(opened[0], EncodedImage):
            return make(opened, size)
        return self._cache.get_or_make(opened[0].data, size, kind, lambda: make(opened, size))

    def _decode(self, opened: Opened, size: int) -> DecodedImage:
        source, image = opened
        file = source.data if isinstance(source, EncodedImage) else None  # None: a drawing
        if file is None or self._processes is None:
            decoded = decode_image(image, size, file)
        else:
            decoded = self._processes.decode(file, size)
        self._telemetry.decode.observe(decoded.decode_s)
        return decoded

    def _tile(self, opened: Opened, size: int) -> TiledImage:
        source, image = opened
        whole = None
        if isinstance(source, EncodedImage):
            known = self._known_tiles(source.data, size)
            if known is not None:
                return known
            decoded = self._cache.get(source.data, size, DecodedImage)
            whole = None if decoded is None or decoded.is_sketch else decoded.square
        # Decoder processes return squares alone, so tiles are cut from pixels decoded here.
        pixels = self._read(image)
        if isinstance(source, StrokesImage):
            pixels = draw_on_canvas(source)  # reading them as a sketch has checked that there is something to draw
        return tile_image(pixels, size, self._limits.max_tiles, whole)

    def _read(self, opened: OpenedImage) -> NDArray[np.uint8]:
        started_s = time.perf_counter()
        pixels = opened.read()
        self._telemetry.decode.observe(time.perf_counter() - started_s)
        return pixels


def result_of(outcome: T | ServiceError) -> T:
    """Return a result; raise an error that stands in its place."""
    if isinstance(outcome, ServiceError):
        raise outcome
    return outcome


def _outcome(work: Callable[[], T]) -> T | ServiceError:
    try:
        return work()
    except ServiceError as err:
        return err
