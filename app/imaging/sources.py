"""Image sources as tasks pass them: files, base64 text, strokes and SVG."""

import base64
import binascii
from dataclasses import dataclass

from app.errors import Malformed
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
