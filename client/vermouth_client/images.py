"""Images as callers have them, in the service's one grammar of image inputs."""

import base64
import io
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_PNG_COLOURS = {1: 0, 3: 2, 4: 6}  # channels, and PNG's code of grey, RGB and RGBA


@dataclass(frozen=True, slots=True)
class Strokes:
    """A drawing: strokes of `[[x…], [y…]]`, the form of Quick, Draw!, on a canvas of `width` × `height`."""

    strokes: Sequence[Sequence[Sequence[float]]]
    width: float = 256
    height: float = 256


@dataclass(frozen=True, slots=True)
class Svg:
    """An SVG document of paths and basic shapes."""

    text: str


@dataclass(frozen=True, slots=True)
class Item:
    """The stored image of a gallery item."""

    gallery: str
    id: str


ImageLike: TypeAlias = (
    "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray[Any, Any] | Strokes | Svg | Item"
)
"""A path, bytes of a file, an open file, a PIL image, `[H, W]` or `[H, W, 1|3|4]` uint8, or one of the above."""


def wire(image: ImageLike) -> dict[str, Any]:
    """The JSON of an image. Raises OSError for a file that cannot be read, TypeError and ValueError for no image."""
    match image:
        case Strokes():
            return {"strokes": image.strokes, "width": image.width, "height": image.height}
        case Svg():
            return {"svg": image.text}
        case Item():
            return {"item": {"gallery": image.gallery, "id": image.id}}
    data = file_bytes(image)
    if data.lstrip()[:1] == b"<":
        return {"svg": data.decode()}
    return {"base64": base64.b64encode(data).decode()}


def file_bytes(image: Any) -> bytes:
    """The bytes of an image file; a PIL image and an array become PNG. Raises as `wire`."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if hasattr(image, "save") and hasattr(image, "mode"):  # before arrays: a PIL image has their interface too
        file = io.BytesIO()
        plain = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else image.convert("RGB")
        plain.save(file, "PNG", compress_level=1)
        return file.getvalue()
    if hasattr(image, "__array_interface__"):
        return _png(image)
    if hasattr(image, "read"):
        data: bytes = image.read()
        return data
    raise TypeError(
        f"{type(image).__name__} is no image: give a path, bytes, a file, a PIL image, an array or strokes."
    )


def _png(array: Any) -> bytes:
    """A PNG of an array, so that NumPy alone is enough."""
    height, width, channels = (*array.shape, 1)[:3] if array.ndim in (2, 3) else (0, 0, 0)
    if str(array.dtype) != "uint8" or channels not in _PNG_COLOURS or not height * width:
        raise ValueError(f"An array must be [H, W] or [H, W, 1|3|4] uint8, not {[*array.shape]} {array.dtype}.")
    rows = array.reshape(height, width * channels)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOURS[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data, 1)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
