"""Untrusted image files to pixels and model-ready squares; the header is checked before anything is decoded."""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from app.domain import MEGAPIXEL, Limits
from app.errors import ImageTooLarge, ServiceError, TooMuchWork, UndecodableImage, UnsupportedMedia
from app.imaging.formats import (
    ALLOWED,
    FORMATS,
    MAX_PROFILE_BYTES,
    MAX_SCANS,
    JpegScans,
    ended_jpegs,
    has_image_bytes,
    is_foreign_format,
    is_jpeg,
    is_png,
    is_tiff,
    jpeg_scans,
    media_type,
    png_size,
    reduced_png,
)
from app.imaging.pixels import read_pixels
from app.imaging.tiff import open_tiff
from models.errors import InputError
from models.transforms import ViewBox, canonical_sketch, cut_view, fit_square, plan_views

_PLUGINS = (AvifImagePlugin, TiffImagePlugin, WebPImagePlugin)  # imported once, not in each process that is forked
_UNSUPPORTED_BMP = tuple(f"Unsupported BMP {part}" for part in ("pixel depth", "bitfields", "compression"))  # of Pillow
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedImage:
    """An image whose size is known and whose pixels are not decoded yet."""

    width: int  # before EXIF orientation, px
    height: int
    read: Callable[[], NDArray[np.uint8]]  # [H, W, 3] RGB, EXIF orientation applied, on white; call it once
    points: int = 0  # of a drawing, and its elements
    is_canonical: bool = False  # `read` draws a canonical sketch


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """An image in the encoder's form."""

    square: NDArray[np.uint8]  # [size, size, 3] RGB: the canonical sketch of a line drawing, else the fitted image
    key: str  # SHA-256 of `square`, its identity in the feature cache
    is_sketch: bool  # `square` is a canonical sketch
    height: int  # of the oriented image, px
    width: int
    data: bytes  # to store: the file as received, or a PNG of what was drawn

    @property
    def media_type(self) -> str:
        """Media type of `data`."""
        return media_type(self.data)

    @property
    def size_bytes(self) -> int:
        """Memory used besides `data`."""
        return self.square.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledImage:
    """An image as segmentation encodes it: the whole image, then overlapping tiles of it."""

    height: int  # of the oriented image, px
    width: int
    boxes: Sequence[ViewBox]  # where each square lies in the image
    squares: Sequence[NDArray[np.uint8]]  # [size, size, 3] RGB each
    keys: Sequence[str]  # SHA-256 of each square

    @property
    def size_bytes(self) -> int:
        """Memory used."""
        return sum(square.nbytes for square in self.squares)


def open_file(data: bytes, limits: Limits) -> OpenedImage:
    """Check the format and the size that the header states; nothing is decoded yet.

    Raises:
        UnsupportedMedia: the format is not allowed.
        UndecodableImage: the bytes are no image, or a damaged one.
        ImageTooLarge, TooMuchWork: the header states too many pixels, or memory ends.
    """
    # WebP and GIF allocate a canvas when they are opened, so Pillow itself must know the limit.
    Image.MAX_IMAGE_PIXELS = limits.max_image_pixels
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # an image has one process
    with damage_refused("The image is truncated or damaged.", limits):
        opened = _open_png(data, limits) if is_png(data) else _open_other(data, limits)
    if opened.width * opened.height > limits.max_image_pixels:
        raise _too_large(limits)
    return opened


@contextlib.contextmanager
def damage_refused(detail: str, limits: Limits) -> Iterator[None]:
    """Turn all that a decoding library raises on a damaged file into an error of the image: the one place for that.

    Pillow raises a dozen types, and no list of them was ever complete; a panic of resvg is no Exception.
    """
    try:
        yield
    except (ServiceError, KeyboardInterrupt, SystemExit):
        raise
    except _TOO_LARGE as err:
        raise _too_large(limits) from err
    except MemoryError as err:
        raise TooMuchWork("The image needs more memory than one image may take.") from err
    except BaseException as err:
        raise UndecodableImage(detail) from err


def decode_image(opened: OpenedImage, size: int, file: bytes | None = None) -> DecodedImage:
    """Decode an image into the encoder's form, a square of `size` px; `file` is None for a drawing, stored as PNG.

    Raises:
        UndecodableImage, Invalid: the file is damaged or empty, or the drawing cannot be drawn.
    """
    pixels = opened.read()
    try:
        sketch = pixels if opened.is_canonical else canonical_sketch(pixels, size)
        square = fit_square(pixels, size) if sketch is None else sketch
    except InputError as err:
        raise UndecodableImage("The image holds nothing to look at.") from err
    return DecodedImage(
        square=square,
        key=_key(square),
        is_sketch=sketch is not None,
        height=pixels.shape[0],
        width=pixels.shape[1],
        data=_png(pixels) if file is None else file,
    )


def tile_image(pixels: NDArray[np.uint8], size: int, max_tiles: int, tile: int | None = None) -> TiledImage:
    """Cut [H, W, 3] uint8 RGB into the squares of `size` px that segmentation encodes.

    A tile shows a square of `tile` px of the image, if given, else of `size`.
    """
    height, width = pixels.shape[:2]
    boxes = plan_views(height, width, tile or size, max_tiles=max_tiles)
    squares = [fit_square(pixels, size)] + [cut_view(pixels, box, size) for box in boxes[1:]]
    return TiledImage(height=height, width=width, boxes=boxes, squares=squares, keys=[_key(one) for one in squares])


def thumbnail_of(pixels: NDArray[np.uint8], size: int) -> bytes:
    """Encode [H, W, 3] uint8 RGB as WebP, scaled down until its longest side is at most `size` px."""
    image, out = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=2.0)
    image.save(out, "WEBP", quality=85, method=2)
    return out.getvalue()


def _key(square: NDArray[np.uint8]) -> str:
    return hashlib.sha256(square.tobytes()).hexdigest()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _open_png(data: bytes, limits: Limits) -> OpenedImage:
    def read() -> NDArray[np.uint8]:
        with damage_refused("The image is truncated or damaged.", limits):
            file, profile = reduced_png(data)
            return read_pixels(Image.open(io.BytesIO(file), formats=("PNG",)), profile)

    width, height = png_size(data)
    return OpenedImage(width=width, height=height, read=read)


def _open_other(data: bytes, limits: Limits) -> OpenedImage:
    scans = jpeg_scans(data) if is_jpeg(data) else None
    if scans is not None and scans.count > MAX_SCANS:
        raise TooMuchWork(f"A JPEG may hold {MAX_SCANS} scans.")
    if scans is not None and scans.bits not in (0, 8):
        raise UnsupportedMedia(f"A JPEG with {scans.bits} bits a sample is not supported: save it with 8 bits.")
    try:
        image = open_tiff(data) if is_tiff(data) else Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as err:
        if is_foreign_format(data):
            raise UnsupportedMedia(f"Images must be {ALLOWED}.") from err
        if has_image_bytes(data):
            raise UndecodableImage("The image is truncated or damaged.") from err
        raise UndecodableImage("The bytes are not an image.") from err
    except OSError as err:
        if str(err).startswith(_UNSUPPORTED_BMP):
            raise UnsupportedMedia("A BMP of this kind is not supported: save it with 24 bits, or as PNG.") from err
        raise

    def read() -> NDArray[np.uint8]:
        # Without closing, Pillow's decoded copy would live as long as the `OpenedImage`.
        with damage_refused("The image is truncated or damaged.", limits), contextlib.closing(image):
            profile = image.info.get("icc_profile")
            if not isinstance(profile, bytes) or len(profile) > MAX_PROFILE_BYTES:  # conversions are cached by profile
                profile = None
            if scans is None or scans.is_ended:
                return read_pixels(image, profile)
            return _read_unended(data, scans, profile)

    return OpenedImage(width=image.width, height=image.height, read=read)


def _read_unended(data: bytes, scans: JpegScans, profile: bytes | None) -> NDArray[np.uint8]:
    """Decode a JPEG without an end marker, as cheap cameras write it. Raises UndecodableImage if pixels are missing."""
    one, other = (read_pixels(Image.open(io.BytesIO(file), formats=("JPEG",)), profile) for file in ended_jpegs(data))
    if not (scans.is_complete and np.array_equal(one, other)):
        raise UndecodableImage("The image is truncated: the JPEG ends before its last line.")
    return one


def _too_large(limits: Limits) -> ImageTooLarge:
    return ImageTooLarge(f"An image may hold {limits.max_image_pixels // MEGAPIXEL} megapixels.")
