"""Image sources as tasks pass them: files, base64 text, strokes and SVG, and the budget they are charged to."""

import base64
import binascii
import threading
from dataclasses import dataclass

from app.domain import MEGAPIXEL
from app.errors import ImageTooLarge, Malformed, TooMuchWork
from models.transforms import Strokes


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """A file as received: PNG, JPEG, WebP, GIF or BMP bytes."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Base64Image:
    """A file as base64 text, with or without the prefix of a data URI."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StrokesImage:
    """A drawing in the Quick, Draw! form on a canvas of `width` × `height`."""

    strokes: Strokes
    width: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SvgImage:
    """An SVG document of paths and basic shapes."""

    text: str


ImageSource = EncodedImage | Base64Image | StrokesImage | SvgImage


class PixelBudget:
    """Counts the images and pixels of one request; thread-safe."""

    def __init__(self, *, max_pixels: int, max_images: int) -> None:
        self._max_pixels, self._pixels_left = max_pixels, max_pixels
        self._max_images, self._images_left = max_images, max_images
        self._lock = threading.Lock()  # the decoder's threads charge one budget

    def check_count(self, count: int) -> None:
        """Raise TooMuchWork if `count` more images exceed the budget; call it before any of them is read."""
        if count > self._images_left:  # nothing is counted: `charge` does that when a header is read
            raise TooMuchWork(f"A request may hold {self._max_images} images.")

    def charge(self, width: int, height: int) -> None:
        """Count one image. Raises ImageTooLarge or TooMuchWork if the request holds too many pixels or images."""
        with self._lock:
            self._images_left -= 1
            self._pixels_left -= width * height
            self.check_count(0)
            if self._pixels_left < 0:
                raise ImageTooLarge(f"A request may hold {self._max_pixels // MEGAPIXEL} megapixels in all.")


def decode_base64(text: str) -> bytes:
    """Return the bytes of base64 text or of a base64 data URI. Raises Malformed if the text is neither."""
    if text[:5].lower() == "data:":
        prefix, _, text = text.partition(",")
        if not prefix.lower().endswith(";base64"):
            raise Malformed("A data URI must be base64.")
    try:
        # Line breaks are allowed (RFC 2045), other foreign characters are not.
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as err:
        raise Malformed("The image is not valid base64.") from err
