"""Pixels of an opened file as browsers show them: in sRGB, on white, oriented by EXIF."""

import contextlib
import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from app.errors import Invalid, UnsupportedMedia
from app.imaging.tiff import grey_bits

_EXIF_ORIENTATION = 0x0112  # its values 1 to 8 are the symmetries of a rectangle
_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_MODES = (
    frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB"}) | _SIXTEEN_BITS
)
_UNMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}
_COLOUR_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # of profiles, by the mode of the image
_SRGB_TOLERANCE = 3  # of 255: profiles that all mean sRGB differ by rounding


def read_pixels(image: ImageFile.ImageFile, profile: bytes | None) -> NDArray[np.uint8]:
    """Decode an opened file to [H, W, 3] uint8 RGB.

    Args:
        image: its pixels are not loaded yet.
        profile: its colour profile (ICC), which it is converted from; None if it has none.

    Raises:
        Invalid: it is transparent, and of one colour on white.
        UnsupportedMedia: its samples are of a kind that has no agreed look.
    """
    image.info.pop("xmp", None)  # Pillow would orient a TIFF by it
    box = image.tile[0].extents if image.format == "GIF" and image.tile else None
    image.load()
    pixels = _on_white(image, profile, box)
    with contextlib.suppress(Exception):  # unreadable metadata does not spoil an image
        pixels = _oriented(pixels, _orientation(image.info))
    return np.ascontiguousarray(pixels)


def _on_white(image: Image.Image, profile: bytes | None, box: tuple[int, int, int, int] | None) -> NDArray[np.uint8]:
    if image.mode not in _MODES:
        raise UnsupportedMedia(f"An image of the kind {image.mode} has no agreed look: save it with 8 or 16 bits.")
    alpha = _alpha(image, box)
    colours = _in_srgb(image, profile)
    if alpha is None:
        return np.asarray(colours, dtype=np.uint8)
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(colours, mask=alpha)
    _check_visible(any(low != high for low, high in white.getextrema()))  # type: ignore[misc]  # a pair a band
    return np.asarray(white, dtype=np.uint8)


def _alpha(image: Image.Image, box: tuple[int, int, int, int] | None) -> Image.Image | None:
    """The opacity of each pixel, None if all are opaque."""
    alpha = None
    if image.mode in _SIXTEEN_BITS:
        if "transparency" in image.info:  # one tone
            alpha = Image.fromarray(np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        has_alpha = image.mode in ("RGBA", "LA")  # others have a transparent colour, or colours multiplied by it
        alpha = (image if has_alpha else image.convert(_UNMULTIPLIED.get(image.mode, "RGBA"))).getchannel("A")
        if image.format == "BMP" and alpha.getextrema() == (0, 0):
            alpha = None  # the clipboard of Windows writes zeros for "no alpha"
    if box is not None and box != (0, 0, *image.size):  # the first frame of a GIF covers a part of its canvas
        part = Image.new("L", image.size, 255) if alpha is None else alpha
        alpha = Image.new("L", image.size, 0)
        alpha.paste(part.crop(box), box)
    return None if alpha is None or alpha.getextrema() == (255, 255) else alpha


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The colours of an image without its alpha, in RGB."""
    if image.mode in _UNMULTIPLIED:
        image = image.convert(_UNMULTIPLIED[image.mode])
    if image.mode in _SIXTEEN_BITS:
        image = _eight_bits(image)
    if image.mode == "LAB":
        return _lab_to_srgb().apply(image)
    if image.mode == "LA":
        image = image.getchannel("L")
    if image.mode == "P" and image.has_transparency_data:
        image = image.convert("RGBA")
    if image.mode not in _COLOUR_SPACES:
        image = image.convert("RGB")
    transform = None if profile is None else _to_srgb(profile, image.mode)
    if transform is not None:
        return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    bits, is_inverted = grey_bits(image)
    # Pillow's own conversion would clip the tones to 255.
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(255 - grey if is_inverted else grey)


@lru_cache(maxsize=1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    lab, srgb = (ImageCms.ImageCmsProfile(ImageCms.createProfile(name)) for name in ("LAB", "sRGB"))
    return ImageCms.ImageCmsTransform(lab, srgb, "LAB", "RGB")


@lru_cache(maxsize=8)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The conversion from a profile; None if it is sRGB already, of another colour space, or unreadable."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _COLOUR_SPACES[mode]:
            return None
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.ImageCmsTransform(source, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):  # a browser ignores such a profile
        return None
    if mode != "CMYK":
        levels = np.arange(0, 256, 51, dtype=np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
        probe = Image.fromarray(colours if mode == "RGB" else colours[:, :, 0])
        changed = np.asarray(transform.apply(probe), np.int16) - np.asarray(probe.convert("RGB"), np.int16)
        if np.abs(changed).max() <= _SRGB_TOLERANCE:
            return None
    return transform


def _check_visible(is_visible: bool) -> None:
    if not is_visible:
        raise Invalid("There is nothing to see on white: the image is transparent, and of one colour without that.")


def _orientation(info: Mapping[Any, Any]) -> object:
    """The orientation that EXIF states; browsers read no other metadata for it. A TIFF is oriented already."""
    block = info.get("exif")
    if not isinstance(block, bytes):
        return None
    exif = Image.Exif()
    exif.load(block)
    return exif.get(_EXIF_ORIENTATION)


def _oriented(pixels: NDArray[np.uint8], orientation: object) -> NDArray[np.uint8]:
    if orientation in (5, 6, 7, 8):  # views of the array: nothing is copied until the end
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
