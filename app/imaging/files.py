"""What is inside untrusted image bytes: format and size from the header first, pixels when they are asked for."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from app.domain import MEGAPIXEL, Limits
from app.errors import ImageTooLarge, UndecodableImage, UnsupportedMedia

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_FOREIGN_FORMATS: tuple[tuple[int, bytes], ...] = (
    (0, b"II*\x00"), (0, b"MM\x00*"), (0, b"8BPS"), (0, b"\x00\x00\x01\x00"), (0, b"\x00\x00\x02\x00"),
    (4, b"ftyp"), (0, b"\x00\x00\x00\x0cjP  "), (0, b"\xff\x4f\xff\x51"), (0, b"\xff\x0a"), (0, b"DDS "),
    (0, b"%PDF"), (0, b"%!PS"), (0, b"icns"), (0, b"P5\n"), (0, b"P6\n"), (0, b"P4\n"), (0, b"qoif"),
    (0, b"gimp xcf"), (0, b"<svg"), (0, b"<?xml"), (0, b"\x76\x2f\x31\x01"), (0, b"\x00\x00\x00\x0cJXL "),
)  # fmt: skip
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError)
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A source whose size is known and whose pixels are not decoded yet; `read` gives [H, W, 3] uint8."""

    width: int
    height: int
    read: Callable[[], NDArray[np.uint8]]


def open_file(data: bytes, limits: Limits) -> Opened:
    """A file whose format is allowed and whose pixels are within the limit; nothing is decoded yet.

    Raises:
        UnsupportedMedia: it is of another format.
        UndecodableImage: it is no image, or damaged.
        ImageTooLarge: its header says so.
    """
    # WebP and GIF take memory for a canvas as they are opened: Pillow's own bound comes first, and is the setting's.
    Image.MAX_IMAGE_PIXELS = limits.max_image_pixels
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise _too_large(limits) from err
    except UnidentifiedImageError as err:
        if _is_foreign_format(data):
            raise UnsupportedMedia("Images must be PNG, JPEG, WebP, GIF or BMP.") from err
        raise UndecodableImage("The bytes are not an image.") from err
    except _BROKEN_IMAGE as err:
        raise UndecodableImage("The image is damaged.") from err
    width, height = image.size
    if width * height > limits.max_image_pixels:
        raise _too_large(limits)
    return Opened(width=width, height=height, read=lambda: _read_file(image, limits))


def _read_file(image: Image.Image, limits: Limits) -> NDArray[np.uint8]:
    try:
        # Closed, not left: the decoded copy that Pillow keeps would live as long as the caller's `Opened`.
        with contextlib.closing(image):
            image.load()
            pixels = _on_white(image)
            orientation = _orientation(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise _too_large(limits) from err
    except _BROKEN_IMAGE as err:
        raise UndecodableImage("The image is truncated or damaged.") from err
    return _oriented(pixels, orientation)


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        paper = Image.new("RGB", image.size, (255, 255, 255))
        paper.paste(layer, mask=layer.getchannel("A"))
        return np.asarray(paper, dtype=np.uint8)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _BROKEN_IMAGE:
        return 1
    return found if isinstance(found, int) else 1


def _oriented(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _is_foreign_format(data: bytes) -> bool:
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n") if data[:64].lstrip()[:1] == b"<" else data[:64]
    return any(head[offset : offset + len(magic)] == magic for offset, magic in _FOREIGN_FORMATS)


def _too_large(limits: Limits) -> ImageTooLarge:
    return ImageTooLarge(f"An image may hold {limits.max_image_pixels // MEGAPIXEL} megapixels.")
