"""The nouns of the service, free of web, SQL, FAISS and torch kernels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.transforms import canonical_sketch, fit_square
from models.types import BundleInfo as BundleInfo
from models.types import ImageBatch, ImageFeatures, TextFeatures

MEGAPIXEL = 1_000_000
MIB = 1 << 20


class Encoder(Protocol):
    """The two device operations; implemented by `models.encoder.Encoder` and by test fakes."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that shapes a feature."""
        ...

    @property
    def dimension(self) -> int:
        """D, the length of `pooled`."""
        ...

    def encode_images(self, batch: ImageBatch) -> ImageFeatures:
        """One pass over B pictures; call it from the executor's thread alone."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embeddings of B strings; call it from the executor's thread alone."""
        ...


class PixelsAway(Exception):
    """The forms that are at hand do not tell what was asked; the pixels would."""


class Picture:
    """An input image and the forms that tasks see of it, each made once; not for several threads at once.

    Attributes:
        squares: the whole picture fitted into squares, by their sides.
        sketches: canonical forms as line drawings, by their sides; None where it is none.

    Args:
        pixels: [H, W, 3] uint8 RGB; EXIF orientation applied, alpha composited on white. Or what reads them when they
            are needed, however often.
    """

    def __init__(self, pixels: NDArray[np.uint8] | Callable[[], NDArray[np.uint8]]) -> None:
        self._read = pixels if callable(pixels) else None
        self._pixels = None if callable(pixels) else pixels
        self._size: tuple[int, int] | None = None
        self.squares: dict[int, NDArray[np.uint8]] = {}
        self.sketches: dict[int, NDArray[np.uint8] | None] = {}

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """[H, W, 3] uint8 RGB."""
        if self._pixels is None:
            assert self._read is not None
            self._pixels = self._read()
        self._size = self._pixels.shape[0], self._pixels.shape[1]
        return self._pixels

    @property
    def height(self) -> int:
        """Of the picture, px."""
        return self._height_and_width[0]

    @property
    def width(self) -> int:
        """Of the picture, px."""
        return self._height_and_width[1]

    def square(self, size: int) -> NDArray[np.uint8]:
        """The picture fitted into a square, [size, size, 3] uint8 RGB: what all tasks see of a photograph.

        Raises:
            models.errors.InputError: it holds nothing to look at.
        """
        if size not in self.squares:
            self.squares[size] = fit_square(self.pixels, size)
        return self.squares[size]

    def sketch(self, size: int) -> NDArray[np.uint8] | None:
        """The canonical form of a line drawing, [size, size, 3] uint8 RGB; None for anything else.

        Raises:
            models.errors.InputError: it holds nothing to look at.
        """
        if size not in self.sketches:
            self.sketches[size] = self._make_sketch(size)
        return self.sketches[size]

    @property
    def size_bytes(self) -> int:
        """Memory it takes."""
        held: list[NDArray[np.uint8] | None] = [self._pixels, *self.squares.values(), *self.sketches.values()]
        return sum(array.nbytes for array in held if array is not None)

    def let_pixels_go(self) -> None:
        """Keep the forms alone, where the pixels can be read again."""
        if self._read is not None:
            self._pixels = None

    def remembered(self) -> "Picture":
        """The same picture as far as its size and forms tell; what needs pixels raises PixelsAway."""
        seen = Picture(_pixels_away)
        seen._size, seen.squares, seen.sketches = self._size, self.squares, self.sketches
        return seen

    @property
    def _height_and_width(self) -> tuple[int, int]:
        size = self._size
        return self.pixels.shape[:2] if size is None else size

    def _make_sketch(self, size: int) -> NDArray[np.uint8] | None:
        return canonical_sketch(self.pixels, size)


def _pixels_away() -> NDArray[np.uint8]:
    raise PixelsAway


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One encoder input: what a task submits to the engine.

    Attributes:
        pixels: [H, W, 3] uint8 RGB, at the bundle's resolution.
        timestep: diffusion time step.
        caption: None for the bundle's own conditioning.
        key: identity for the feature cache (picture digest and tile box).
        is_reproducible: computed in a pass of fixed size, so that its bits do not depend on the load.
    """

    pixels: NDArray[np.uint8]
    timestep: int
    caption: str | None
    key: str
    is_reproducible: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """The engine's answer for one `View`.

    Attributes:
        pooled: [D] float32, unit length.
        dense: [D, h, w] float32.
        queue_ms: time waited before the device took it.
        inference_ms: time of the device pass that held it, or of what was left of it.
    """

    pooled: NDArray[np.float32]
    dense: NDArray[np.float32]
    queue_ms: float
    inference_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """The engine's answer for a list of strings: `pooled` [B, D] float32, unit length."""

    pooled: NDArray[np.float32]
    queue_ms: float
    inference_ms: float


class Reservation(Protocol):
    """Room for one request's samples in the engine, held until the block ends."""

    def __enter__(self) -> "Reservation": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def grow(self, *, views: int = 0, texts: int = 0) -> None:
        """Ask for more, once it is known.

        Raises:
            app.errors.QueueFull, DeadlineExceeded.
        """
        ...

    def use(self, cost: int) -> int:
        """For the engine: turn promised cost into samples; returns what was not promised."""
        ...


class FeatureEngine(Protocol):
    """The batching engine as tasks see it."""

    def admit(self, *, views: int = 0, texts: int = 0, timeout_s: float | None = None) -> Reservation:
        """Room for a request's samples, taken on arrival: before anything was decoded for a request that is refused.

        Raises:
            app.errors.QueueFull, DeadlineExceeded, EngineUnavailable.
        """
        ...

    async def encode_views(
        self, views: Sequence[View], *, timeout_s: float | None = None, reservation: Reservation | None = None
    ) -> list[Features]:
        """Features of every view, in order.

        Args:
            timeout_s: after it nobody waits; samples that have not begun by then never will.
            place: what `admit` gave to this request; without it the views are admitted now.

        Raises:
            app.errors.QueueFull, DeadlineExceeded, EngineUnavailable, InferenceFailed.
        """
        ...

    async def encode_texts(
        self,
        texts: Sequence[str],
        *,
        timeout_s: float | None = None,
        reservation: Reservation | None = None,
        is_reproducible: bool = False,
    ) -> Embeddings:
        """Embeddings of every string, in order. Arguments and errors as `encode_views`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that one request may ask for; a nested part of the settings (`VERMOUTH_LIMITS__MAX_K`)."""

    max_body_bytes: Annotated[int, Field(ge=1024, le=4096 * MIB)] = 32 * MIB
    max_form_field_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB)] = 8 * MIB
    max_form_parts: Annotated[int, Field(ge=1, le=100_000)] = 2048
    max_image_pixels: Annotated[int, Field(ge=1, le=1024 * MEGAPIXEL)] = 64 * MEGAPIXEL
    max_request_pixels: Annotated[int, Field(ge=1, le=16384 * MEGAPIXEL)] = 256 * MEGAPIXEL
    max_request_images: Annotated[int, Field(ge=1, le=100_000)] = 1000
    max_canvas_side: Annotated[int, Field(ge=16, le=16384)] = 4096
    max_points: Annotated[int, Field(ge=1, le=10_000_000)] = 50_000
    max_k: Annotated[int, Field(ge=1, le=100_000)] = 1000
    max_classes: Annotated[int, Field(ge=1, le=255)] = 255
    max_segment_strings: Annotated[int, Field(ge=1, le=100_000)] = 2048
    max_tiles: Annotated[int, Field(ge=0, le=256)] = 16
    max_stitch_bytes: Annotated[int, Field(ge=MIB, le=65536 * MIB)] = 256 * MIB
    max_ways: Annotated[int, Field(ge=2, le=100_000)] = 512
    max_support_per_way: Annotated[int, Field(ge=1, le=10_000)] = 64
    max_queries: Annotated[int, Field(ge=1, le=10_000)] = 256
    max_items_per_call: Annotated[int, Field(ge=1, le=10_000)] = 256
    max_metadata_bytes: Annotated[int, Field(ge=2, le=16 * MIB)] = 16 * 1024
