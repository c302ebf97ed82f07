"""Untrusted bytes to pixels, and nothing else: the one grammar of image inputs of `api.md`.

The format is told by content, pixels are counted from the header before anything is decoded, and the work runs
in a bounded pool of threads.
"""

import asyncio
import base64
import binascii
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from app.domain import MEGAPIXEL, Limits, Picture
from app.errors import ImageTooLarge, Invalid, Malformed, QueueFull, ServiceError, TooMuchWork
from app.imaging.cache import M, PictureCache
from app.imaging.decoding import Decoders, FarPicture
from app.imaging.files import Opened, open_file
from app.imaging.svg import render_svg
from app.runtime.process import DECODER_NICENESS, be_nice
from app.runtime.telemetry import Telemetry
from models.errors import InputError
from models.transforms import Strokes, render_strokes

_STORED_SKETCH_SIZE = 128
A = TypeVar("A")
T = TypeVar("T")
_SOON_KNOWN_BYTES = 1 << 20
"""Of a file that is looked for in the cache on the event loop: to read its bytes takes a quarter of a millisecond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """A file as it came: PNG, JPEG, WebP, GIF or BMP bytes."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Base64Image:
    """A file as base64 text, with or without a data URI's prefix."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StrokesImage:
    """A drawing in the Quick, Draw! form on a canvas of `width` × `height`.

    Attributes:
        size: side of the picture it becomes, in the canonical form of sketches, px.
    """

    strokes: Strokes
    width: float
    height: float
    size: int = _STORED_SKETCH_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class SvgImage:
    """An SVG document of paths and basic shapes."""

    text: str


ImageSource = EncodedImage | Base64Image | StrokesImage | SvgImage


class PixelBudget:
    """Counts images and pixels over one request; safe from several threads."""

    def __init__(self, *, max_pixels: int, max_images: int) -> None:
        self._pixels_left = max_pixels
        self._images_left = max_images
        self._max_pixels = max_pixels
        self._max_images = max_images
        self._lock = threading.Lock()

    def check_count(self, count: int) -> None:
        """Raise TooMuchWork where so many images would be too many, before any of them is read."""
        if count > self._images_left:
            raise self._too_many()

    def charge(self, width: int, height: int) -> None:
        """Count one image.

        Raises:
            ImageTooLarge: the request's pixels are used up.
            TooMuchWork: the request's images are.
        """
        with self._lock:
            self._images_left -= 1
            self._pixels_left -= width * height
            if self._images_left < 0:
                raise self._too_many()
            if self._pixels_left < 0:
                raise ImageTooLarge(f"A request may hold {self._max_pixels // MEGAPIXEL} megapixels in all.")

    def _too_many(self) -> TooMuchWork:
        return TooMuchWork(f"A request may hold {self._max_images} images.")


class ImageDecoder:
    """Decodes in a bounded pool; at most `max_waiting` callers wait for it, and `cache` keeps what was made.

    Args:
        decoders: processes that look at files, one for each of the pool's threads; None where the threads do.
    """

    def __init__(
        self,
        *,
        limits: Limits,
        telemetry: Telemetry,
        cache: PictureCache,
        workers: int = 2,
        max_waiting: int = 256,
        decoders: Decoders | None = None,
    ) -> None:
        self._limits = limits
        self._cache = cache
        self._telemetry = telemetry
        self._max_waiting = max_waiting
        self._callers = 0
        self._decoders = decoders
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix="decode", initializer=be_nice, initargs=(DECODER_NICENESS,)
        )

    async def decode(self, source: ImageSource, budget: PixelBudget) -> Picture:
        """One picture.

        Raises:
            Malformed, UndecodableImage, UnsupportedMedia, ImageTooLarge, TooMuchWork, Invalid, QueueFull.
        """
        (outcome,) = await self.decode_many([source], budget)
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome

    async def decode_many(self, sources: Sequence[ImageSource], budget: PixelBudget) -> list[Picture | ServiceError]:
        """Pictures in order; a bad one is an error in its own place.

        Raises:
            As `convert_many`.
        """
        return await self.convert_many(sources, budget, lambda _source, picture: picture)

    async def convert_many(
        self, sources: Sequence[ImageSource], budget: PixelBudget, convert: Callable[[ImageSource, Picture], T]
    ) -> list[T | ServiceError]:
        """What `convert` makes of each source and its picture, in order; a bad one is an error in its own place.

        All headers are read and charged before the first image is decoded. `convert` runs in the pool, so that
        pictures that become small views are never all in memory.

        Raises:
            ImageTooLarge, TooMuchWork: the request as a whole is over its budget.
            QueueFull: too many callers wait.
        """

        def converted(source: ImageSource, opened: Opened) -> T:
            return convert(source, Picture(self._decode(opened)))

        return await self._in_turn(sources, budget, converted)

    async def make_many(
        self,
        sources: Sequence[ImageSource],
        budget: PixelBudget,
        make: Callable[[ImageSource, Picture], M],
        what: Hashable,
    ) -> list[M | ServiceError]:
        """As `convert_many`; what is made of a file is kept in the cache as `what`, and taken from there."""
        if len(sources) == 1:
            known = _caught(lambda source: self._known(source, make, what), sources[0])
            if known is not None:
                if not isinstance(known, ServiceError):
                    budget.charge(known.width, known.height)
                return [known]

        def made(source: ImageSource, opened: Opened) -> M:
            if not isinstance(source, EncodedImage) or 3 * opened.width * opened.height > self._cache.max_bytes:
                return make(source, self._picture(source, opened))
            return self._cache.made(
                source.data, what, lambda: self._picture(source, opened), lambda picture: make(source, picture)
            )

        return await self._in_turn(sources, budget, made)

    def start(self) -> None:
        """Start what decodes beside this process, so that the first picture does not wait for it."""
        if self._decoders is not None:
            self._decoders.start()

    def stop(self) -> None:
        """Wait for running decodes and end the pool."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._decoders is not None:
            self._decoders.stop()

    def _known(self, source: ImageSource, make: Callable[[ImageSource, Picture], M], what: Hashable) -> M | None:
        """What is made of a file without decoding it: a turn of the pool would be most of the answer's time."""
        if isinstance(source, EncodedImage) and len(source.data) <= _SOON_KNOWN_BYTES and self._cache.max_bytes:
            return self._cache.known(source.data, what, lambda picture: make(source, picture))
        return None

    async def _in_turn(
        self, sources: Sequence[ImageSource], budget: PixelBudget, work: Callable[[ImageSource, Opened], T]
    ) -> list[T | ServiceError]:
        if self._callers >= self._max_waiting:
            self._telemetry.requests_rejected.labels("decode_queue_full").inc()
            raise QueueFull("Too many images wait to be decoded.", retry_after_s=1.0)
        self._callers += 1

        def at_once(source: ImageSource) -> T | ServiceError:
            found = _caught(self._opened, source)
            if isinstance(found, ServiceError):
                return found
            budget.charge(found[1].width, found[1].height)
            return _caught(lambda pair: work(*pair), found)

        try:
            if len(sources) == 1:
                # Charged and made in one turn of the pool: behind others, a second turn is a second wait.
                return [await self._run(partial(at_once, sources[0]))]
            opened = await self._run(partial(_each, self._opened, sources))
            for found in opened:
                if not isinstance(found, ServiceError):
                    budget.charge(found[1].width, found[1].height)
            # One image at a time, so that requests take turns in the pool and the pixels of one are bounded.
            return [
                found
                if isinstance(found, ServiceError)
                else await self._run(partial(_caught, lambda pair: work(*pair), found))
                for found in opened
            ]
        finally:
            self._callers -= 1

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _opened(self, source: ImageSource) -> tuple[ImageSource, Opened]:
        """A source, as a file where it is the text of one, and what its header says."""
        file = EncodedImage(data=decode_base64(source.text)) if isinstance(source, Base64Image) else source
        return file, self._open(file)

    def _open(self, source: EncodedImage | StrokesImage | SvgImage) -> Opened:
        if isinstance(source, StrokesImage):
            return _open_strokes(source, self._limits)
        if isinstance(source, SvgImage):
            return open_file(render_svg(source.text, self._limits), self._limits)
        return open_file(source.data, self._limits)

    def _picture(self, source: ImageSource, opened: Opened) -> Picture:
        if not isinstance(source, EncodedImage):
            return Picture(self._decode(opened))
        if self._decoders is not None:
            return FarPicture(source.data, lambda: self._decode(self._open(source)), self._decoders)
        at_hand = [opened]
        return Picture(lambda: self._decode(at_hand.pop() if at_hand else self._open(source)))

    def _decode(self, opened: Opened) -> NDArray[np.uint8]:
        started_s = time.perf_counter()
        pixels = np.ascontiguousarray(opened.read())
        self._telemetry.decode.observe(time.perf_counter() - started_s)
        return pixels


def decode_base64(text: str) -> bytes:
    """The bytes of base64 text or of a base64 data URI.

    Raises:
        Malformed: it is neither.
    """
    if text[:5].lower() == "data:":
        prefix, _, text = text.partition(",")
        if not prefix.lower().endswith(";base64"):
            raise Malformed("A data URI must be base64.")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as err:
        raise Malformed("The image is not valid base64.") from err


def _caught(work: Callable[[A], T], argument: A) -> T | ServiceError:
    try:
        return work(argument)
    except ServiceError as err:
        return err


def _each(work: Callable[[A], T], arguments: Sequence[A]) -> list[T | ServiceError]:
    return [_caught(work, argument) for argument in arguments]


def _open_strokes(source: StrokesImage, limits: Limits) -> Opened:
    if max(source.width, source.height) > limits.max_canvas_side:
        raise ImageTooLarge(f"A canvas side is over {limits.max_canvas_side}.")
    if not min(source.width, source.height) > 0:
        raise Invalid("The canvas's width and height must be above zero.")
    if sum(len(stroke[0]) if stroke else 0 for stroke in source.strokes) > limits.max_points:
        raise TooMuchWork(f"The drawing holds more than {limits.max_points} points.")

    def read() -> NDArray[np.uint8]:
        try:
            grey = render_strokes(source.strokes, source.size)
        except InputError as err:
            raise Invalid(f"The strokes cannot be drawn: {err}.") from err
        return np.repeat(grey[:, :, None], 3, axis=2)

    return Opened(width=source.size, height=source.size, read=read)
