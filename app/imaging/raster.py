"""Untrusted image files to pixels and model-ready squares; the header is checked before anything is decoded."""

import contextlib
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from app.domain import MEGAPIXEL, Limits
from app.errors import ImageTooLarge, ServiceError, TooMuchWork, UndecodableImage, UnsupportedMedia
from models.errors import InputError
from models.transforms import ViewBox, canonical_sketch, cut_view, fit_square, plan_views

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # by Pillow's names; its other decoders never see untrusted bytes
_MEDIA_TYPES = (
    (b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg"), (b"RIFF", "image/webp"), (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)  # fmt: skip
_FOREIGN_FORMATS: tuple[tuple[int, bytes], ...] = (  # (offset, magic) of formats that get an error of their own
    (0, b"II*\x00"), (0, b"MM\x00*"), (0, b"8BPS"), (0, b"\x00\x00\x01\x00"), (0, b"\x00\x00\x02\x00"),
    (4, b"ftyp"), (0, b"\x00\x00\x00\x0cjP  "), (0, b"\xff\x4f\xff\x51"), (0, b"\xff\x0a"), (0, b"DDS "),
    (0, b"%PDF"), (0, b"%!PS"), (0, b"icns"), (0, b"P5\n"), (0, b"P6\n"), (0, b"P4\n"), (0, b"qoif"),
    (0, b"gimp xcf"), (0, b"<svg"), (0, b"<?xml"), (0, b"\x76\x2f\x31\x01"), (0, b"\x00\x00\x00\x0cJXL "),
)  # fmt: skip
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# Each scan is a pass over all pixels, of a few bytes; encoders write ten.
_MAX_SCANS, _JPEG_SCAN, _JPEG_END = 100, 0xDA, 0xD9
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")  # with a length behind it, or the end
_EXIF_ORIENTATION = 0x0112  # its values 1 to 8 are the symmetries of a rectangle


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
        return next((kind for magic, kind in _MEDIA_TYPES if self.data.startswith(magic)), "application/octet-stream")

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
    with damage_refused("The image is damaged.", limits):
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError as err:
            if _is_foreign_format(data):
                raise UnsupportedMedia("Images must be PNG, JPEG, WebP, GIF or BMP.") from err
            raise UndecodableImage("The bytes are not an image.") from err
        if image.format == "JPEG" and _scan_count(data) > _MAX_SCANS:
            raise TooMuchWork(f"A JPEG may hold {_MAX_SCANS} scans.")
    width, height = image.size
    if width * height > limits.max_image_pixels:
        raise _too_large(limits)
    return OpenedImage(width=width, height=height, read=lambda: _read(image, limits))


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


def tile_image(pixels: NDArray[np.uint8], size: int, max_tiles: int) -> TiledImage:
    """Cut [H, W, 3] uint8 RGB into the squares that segmentation encodes."""
    height, width = pixels.shape[:2]
    boxes = plan_views(height, width, size, max_tiles=max_tiles)
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


def _read(image: Image.Image, limits: Limits) -> NDArray[np.uint8]:
    # Without closing, Pillow's decoded copy would live as long as the `OpenedImage`.
    with damage_refused("The image is truncated or damaged.", limits), contextlib.closing(image):
        image.load()
        pixels = _on_white(image)
        with contextlib.suppress(Exception):  # unreadable metadata does not spoil an image
            pixels = _oriented(pixels, image.getexif().get(_EXIF_ORIENTATION))
        return np.ascontiguousarray(pixels)


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion would clip 16-bit tones to 255.
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        background = Image.new("RGB", image.size, (255, 255, 255))
        background.paste(layer, mask=layer.getchannel("A"))
        return np.asarray(background, dtype=np.uint8)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def _oriented(pixels: NDArray[np.uint8], orientation: object) -> NDArray[np.uint8]:
    if orientation in (5, 6, 7, 8):  # views of the array: nothing is copied until the end
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _scan_count(data: bytes) -> int:
    """Scans of a JPEG up to its end; a few more than the most allowed are enough."""
    at, count = 2, 0
    while count <= _MAX_SCANS and (marker := _JPEG_MARKER.search(data, at)) is not None and marker[0][-1] != _JPEG_END:
        count += marker[0][-1] == _JPEG_SCAN
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return count


def _is_foreign_format(data: bytes) -> bool:
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n") if data[:64].lstrip()[:1] == b"<" else data[:64]
    return any(head[offset : offset + len(magic)] == magic for offset, magic in _FOREIGN_FORMATS)


def _too_large(limits: Limits) -> ImageTooLarge:
    return ImageTooLarge(f"An image may hold {limits.max_image_pixels // MEGAPIXEL} megapixels.")
