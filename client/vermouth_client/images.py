"""Images as callers have them, in the service's one grammar of image inputs."""

import base64
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar

from vermouth_client.svg import is_svg, utf8_svg

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B")  # that PNG holds without loss
_CHANNELS = ((), (1,), (3,), (4,))  # what may follow [H, W]


T = TypeVar("T")


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
    found = file_or_json(image)
    return {"base64": base64.b64encode(found).decode()} if isinstance(found, bytes) else found


def wires(argument: str, images: Sequence[ImageLike]) -> list[dict[str, Any]]:
    """The JSON of several images. Raises as `wire` and `several`."""
    return [*map(wire, several(argument, images))]


def several(argument: str, values: Sequence[T]) -> list[T]:
    """The values of an argument that takes several. Raises TypeError for one text, path or image in their place."""
    shape = getattr(values, "shape", ())
    is_image = bool(shape[1:]) and shape[2:] in _CHANNELS
    is_one = isinstance(values, str | bytes | bytearray | memoryview | Mapping) or hasattr(values, "read") or is_image
    if is_one or not isinstance(values, Iterable):
        raise TypeError(f"{argument} takes several values, not one {type(values).__name__}: give a list.")
    return [*values]


def file_or_json(image: ImageLike) -> bytes | dict[str, Any]:
    """The file of an image of pixels, and the JSON of any other. Raises as `wire`."""
    match image:
        case Strokes():
            return {"strokes": image.strokes, "width": image.width, "height": image.height}
        case Svg():
            return {"svg": image.text}
        case Item():
            return {"item": {"gallery": image.gallery, "id": image.id}}
    data = utf8_svg(file_bytes(image))
    return {"svg": data.decode("utf-8-sig")} if is_svg(data) else data


def file_bytes(image: Any) -> bytes:
    """The bytes of an image file; a PIL image and an array become PNG, or TIFF from CMYK. Raises as `wire`."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if hasattr(image, "save") and hasattr(image, "mode"):  # before arrays: a PIL image has their interface too
        return _png(image)
    if hasattr(image, "__array_interface__"):
        return _png(_from_array(image))
    if hasattr(image, "read"):
        return bytes(image.read())
    raise TypeError(
        f"{type(image).__name__} is no image: give a path, bytes, a file, a PIL image, an array or strokes."
    )


def file_name(image: Any) -> str:
    """The name of the file that an image is, or comes from; empty where there is none."""
    path = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", getattr(image, "name", ""))
    return Path(path).name if isinstance(path, str | os.PathLike) else ""


def _png(image: "Image.Image") -> bytes:
    if image.mode in ("I", "F"):  # Pillow would clip them
        raise ValueError(f"A PIL image of the mode {image.mode} has no range of values: convert it to L or I;16.")
    from PIL import ImageOps

    file, upright = io.BytesIO(), ImageOps.exif_transpose(image)  # PNG would lose the orientation
    if upright.mode == "CMYK":  # with its profile, for which PNG has no place
        upright.save(file, "TIFF", compression="tiff_lzw")
    else:
        plain = upright if upright.mode in _MODES else upright.convert("RGB")
        plain.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _from_array(array: Any) -> "Image.Image":
    from PIL import Image

    shape = array.shape
    if str(array.dtype) != "uint8" or not shape[1:] or shape[2:] not in _CHANNELS or 0 in shape:
        raise ValueError(f"An array must be [H, W] or [H, W, 1|3|4] uint8, not {[*shape]} {array.dtype}.")
    return Image.fromarray(array[..., 0] if shape[2:] == (1,) else array)
