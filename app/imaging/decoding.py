"""The interface that tasks call: sources to model-ready images, in decoder processes and behind one cache."""

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from app.domain import MEGAPIXEL, Limits
from app.errors import ImageTooLarge, QueueFull, ServiceError, TooMuchWork
from app.imaging.messages import DecodeRequest, Product
from app.imaging.processes import Charge, DecoderProcesses
from app.imaging.raster import DecodedImage, TiledImage
from app.imaging.sources import Base64Image, EncodedImage, ImageSource, StrokesImage, SvgImage, decode_base64
from app.runtime.lru import ENTRY_BYTES, ByteLru
from app.runtime.telemetry import Telemetry
from models.transforms import plan_views

_LOOP_TEXT_BYTES = 1 << 20  # longest base64 text decoded on the event loop, in three milliseconds
T = TypeVar("T")
V = TypeVar("V", DecodedImage, TiledImage)
Readable = EncodedImage | StrokesImage | SvgImage


class PixelBudget:
    """Counts the images and pixels of one request, on the event loop."""

    def __init__(self, *, max_pixels: int, max_images: int) -> None:
        self._max_pixels, self._pixels_left = max_pixels, max_pixels
        self._max_images, self._images_left = max_images, max_images

    def check_count(self, count: int) -> None:
        """Raise TooMuchWork if `count` more images exceed the budget; call it before any of them is read."""
        if count > self._images_left:  # nothing is counted: `charge` does that when a header is read
            raise TooMuchWork(f"A request may hold {self._max_images} images.")

    def charge(self, width: int, height: int) -> None:
        """Count one image. Raises ImageTooLarge or TooMuchWork if the request holds too many pixels or images."""
        self._images_left -= 1
        self._pixels_left -= width * height
        self.check_count(0)
        if self._pixels_left < 0:
            raise ImageTooLarge(f"A request may hold {self._max_pixels // MEGAPIXEL} megapixels in all.")


class ImageCache:
    """LRU cache of decoded images, keyed by (file bytes, size) and kind of result; shared by all tasks."""

    def __init__(self, *, max_bytes: int) -> None:
        self._values: ByteLru[tuple[bytes, int, type], Any] = ByteLru(max_bytes)
        # A lock of each file being made; it vanishes with its last waiter.
        self._in_flight: weakref.WeakValueDictionary[bytes, asyncio.Lock] = weakref.WeakValueDictionary()

    @property
    def size_bytes(self) -> int:
        """Memory used, the files included."""
        return self._values.size_bytes

    def get(self, data: bytes, size: int, kind: type[V]) -> V | None:
        """Return the cached result of a file, or None; never waits for a decode."""
        return cast(V | None, self._values.get((data, size, kind)))

    async def get_or_make(self, data: bytes, size: int, kind: type[V], make: Callable[[], Awaitable[V]]) -> V:
        """Return the cached result of a file, or make and cache it; equal requests at once make it once."""
        lock = self._in_flight.setdefault(data, asyncio.Lock())
        async with lock:
            found = self.get(data, size, kind)
            if found is None:
                found = await make()  # if it raises, the next caller tries again
                self._values.put((data, size, kind), found, found.size_bytes + len(data) + ENTRY_BYTES)
        return found


class ImageDecoder:
    """Decodes for all tasks in processes; at most `max_waiting` callers wait for it."""

    def __init__(
        self,
        *,
        limits: Limits,
        telemetry: Telemetry,
        cache: ImageCache,
        processes: DecoderProcesses,
        max_waiting: int = 256,
    ) -> None:
        self._limits = limits
        self._cache = cache
        self._telemetry = telemetry
        self._processes = processes
        self._max_waiting = max_waiting
        self._callers = 0
        # Behind the images of queries: those wait for a thumbnail or two, not for a page of them.
        self._thumbnails = asyncio.Semaphore(processes.count + 1)
        self._tile: int | None = None  # as `size_tiles` set it

    async def decode_many(
        self, sources: Sequence[ImageSource], budget: PixelBudget, size: int
    ) -> list[DecodedImage | ServiceError]:
        """Return model-ready images of `size` px in order; a bad image is an error in its own place.

        Raises:
            ImageTooLarge, TooMuchWork: the request as a whole is over its budget.
            QueueFull: too many callers wait.
        """
        if len(sources) != 1:
            with self._turn():
                return await self._decoded_in_turn(sources, budget, size)
        known = self._known(sources[0], budget, lambda data: self._cache.get(data, size, DecodedImage))
        if known is not None:
            return [known]
        with self._turn():
            return [await self._decoded(sources[0], budget, size)]

    async def tiles(self, source: ImageSource, budget: PixelBudget, size: int) -> TiledImage:
        """Return the squares of `size` px that segmentation encodes; strokes lie on their canvas.

        Raises the image's own error, or as `decode_many`.
        """
        known = self._known(source, budget, lambda data: self._known_tiles(data, size))
        if known is not None:
            return known
        with self._turn():
            return await self._cached(TiledImage, Product.TILED, await _readable(source), budget.charge, size)

    async def thumbnail(self, data: bytes, size: int) -> bytes:
        """Return a WebP of a file whose longest side is at most `size` px. Raises as `tiles`."""
        with self._turn():
            async with self._thumbnails:
                return cast(bytes, await self._made(Product.THUMBNAIL, EncodedImage(data=data), _uncharged, size))

    def size_tiles(self, side: int, *, most: int) -> None:
        """Let a tile show a square of `side` px of an image from now on, and cut at most so many; see `limit_tiles`."""
        self._tile = side
        self.limit_tiles(most)

    def limit_tiles(self, most: int) -> None:
        """Cut images into at most so many tiles from now on, if that is less than the limit."""
        self._limits = replace(self._limits, max_tiles=min(most, self._limits.max_tiles))

    def start(self) -> None:
        """Start a decoder process in the background, so that the first image does not wait for it."""
        self._processes.start()

    async def stop(self) -> None:
        """End the decoder processes."""
        await self._processes.stop()

    def _known(self, source: ImageSource, budget: PixelBudget, find: Callable[[bytes], V | None]) -> V | None:
        found = find(source.data) if isinstance(source, EncodedImage) else None
        if found is not None:
            budget.charge(found.width, found.height)
        return found

    def _known_tiles(self, data: bytes, size: int) -> TiledImage | None:
        """Return cached tiles, or those of an image that is no larger than its cached square."""
        found = self._cache.get(data, size, TiledImage)
        image = self._cache.get(data, size, DecodedImage) if found is None else None
        if image is None or image.is_sketch:  # segmentation encodes a drawing as it lies, not its canonical sketch
            return found
        boxes = plan_views(image.height, image.width, self._tile or size, max_tiles=self._limits.max_tiles)
        if len(boxes) > 1:
            return None
        return TiledImage(height=image.height, width=image.width, boxes=boxes, squares=[image.square], keys=[image.key])

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if self._callers >= self._max_waiting:
            self._telemetry.requests_rejected.labels("decode_queue_full").inc()
            raise QueueFull("Too many images wait to be decoded.", retry_after_s=1.0)
        self._callers += 1
        try:
            yield
        finally:
            self._callers -= 1

    async def _decoded(self, source: ImageSource, budget: PixelBudget, size: int) -> DecodedImage | ServiceError:
        over_budget: list[ServiceError] = []

        def charge(width: int, height: int) -> None:
            try:
                budget.charge(width, height)
            except ServiceError as err:
                over_budget.append(err)
                raise

        async def decode() -> DecodedImage:
            return await self._cached(DecodedImage, Product.DECODED, await _readable(source), charge, size)

        outcome = await _outcome(decode())
        if over_budget:  # an error of the request, not of the image
            raise over_budget[0]
        return outcome

    async def _decoded_in_turn(
        self, sources: Sequence[ImageSource], budget: PixelBudget, size: int
    ) -> list[DecodedImage | ServiceError]:
        """Charge all headers before the first image is decoded, then decode one after another."""
        found: dict[int, DecodedImage | ServiceError] = {}
        readable: dict[int, Readable] = {}
        for index, source in enumerate(sources):
            one = await _outcome(_readable(source))
            if isinstance(one, ServiceError):
                found[index] = one
                continue
            known = self._known(one, budget, lambda data: self._cache.get(data, size, DecodedImage))
            if known is None:
                readable[index] = one
            else:
                found[index] = known
        requests = [self._request(Product.SIZE, one, size) for one in readable.values()]
        for index, error in zip(list(readable), await self._processes.open_all(requests, budget.charge), strict=True):
            if error is not None:
                found[index] = error
                del readable[index]

        async def decode_next() -> None:
            index = next(iter(readable))
            one = readable.pop(index)
            found[index] = await _outcome(self._cached(DecodedImage, Product.DECODED, one, _uncharged, size))

        async with asyncio.TaskGroup() as others:
            beside = set[asyncio.Task[None]]()
            while readable:
                # Requests take turns: more than one image of a request only in processes that nobody waits for.
                while len(readable) > 1 and len(beside) + 1 < self._processes.count and self._processes.has_room:
                    beside.add(task := others.create_task(decode_next()))
                    task.add_done_callback(beside.discard)
                    await asyncio.sleep(0)  # it takes its process
                await decode_next()
        return [found[index] for index in range(len(sources))]

    async def _cached(self, kind: type[V], product: Product, source: Readable, charge: Charge, size: int) -> V:
        """Make a result through the cache, which holds those of files alone."""
        if not isinstance(source, EncodedImage):
            return cast(V, await self._made(product, source, charge, size))
        data, is_charged = source.data, False

        async def make() -> V:
            nonlocal is_charged
            # Cached since the lookup, or a small image whose square is.
            known = self._known_tiles(data, size) if product is Product.TILED else None
            if isinstance(known, kind):
                return known
            is_charged = True
            made = cast(V, await self._made(product, source, charge, size))
            return replace(made, data=data) if isinstance(made, DecodedImage) else made

        found = await self._cache.get_or_make(data, size, kind, make)
        if not is_charged:
            charge(found.width, found.height)
        return found

    async def _made(
        self, product: Product, source: Readable, charge: Charge, size: int
    ) -> DecodedImage | TiledImage | bytes:
        answer = await self._processes.make(self._request(product, source, size), charge)
        self._telemetry.decode.observe(answer.decode_s)
        return answer.value

    def _request(self, product: Product, source: Readable, size: int) -> DecodeRequest:
        return DecodeRequest(source=source, product=product, size=size, limits=self._limits, tile=self._tile)


def result_of(outcome: T | ServiceError) -> T:
    """Return a result; raise an error that stands in its place."""
    if isinstance(outcome, ServiceError):
        raise outcome
    return outcome


def _uncharged(width: int, height: int) -> None:
    """Charge nothing: the image is charged already, or is the service's own."""


async def _readable(source: ImageSource) -> Readable:
    if not isinstance(source, Base64Image):
        return source
    if len(source.text) <= _LOOP_TEXT_BYTES:
        return EncodedImage(data=decode_base64(source.text))
    return EncodedImage(data=await asyncio.to_thread(decode_base64, source.text))


async def _outcome(work: Awaitable[T]) -> T | ServiceError:
    try:
        return await work
    except ServiceError as err:
        return err
