"""TIFF files: the kinds that Pillow opens but misreads, and a refusal that names the kind of the others."""

import contextlib
import io
import warnings
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImagePalette, TiffImagePlugin

from app.errors import ServiceError, UndecodableImage, UnsupportedMedia

_HEADS = {b"II\0*": b"II*\0", b"MM*\0": b"MM\0*"}  # of writers that mix up the byte orders; libtiff refuses them
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES, _COLOURS, _EXTRA_SAMPLES, _SAMPLE_FORMAT = (
    256, 257, 258, 259, 262, 277, 284, 320, 338, 339,
)  # fmt: skip
_NO_DECODER = frozenset({32809, 50001})  # ThunderScan and WebP, which Pillow names and its libtiff lacks
_PHOTOMETRICS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "Lab", 10: "Lab"}
_SAMPLE_FORMATS = {2: "signed", 3: "floating point", 4: "undefined", 5: "complex", 6: "complex"}
_SEPARABLE_MODES = frozenset({"1", "L", "I;16", "I;16B", "P", "RGB", "RGBA", "CMYK"})


def open_tiff(data: bytes) -> TiffImagePlugin.TiffImageFile:
    """Open a TIFF; its pixels are not decoded yet.

    Raises:
        UndecodableImage: its directory of tags is missing or damaged.
        UnsupportedMedia: its samples are of a kind that cannot be shown.
    """
    _prepare_pillow()
    data = _HEADS[data[:4]] + data[4:] if data[:4] in _HEADS else data
    try:
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    except SyntaxError as err:  # Pillow's error for each kind that it does not know
        raise _refusal(_tags(data)) from err
    tags = image.tag_v2
    is_unsigned = set(tags.get(_SAMPLE_FORMAT, (1,))) == {1}
    extra = tags.get(_EXTRA_SAMPLES, ())
    is_separable = tags.get(_PLANES) != 2 or (image.mode in _SEPARABLE_MODES and (len(extra) < 2 or not any(extra)))
    if not is_unsigned or not is_separable or image.mode in ("F", "I") or tags.get(_COMPRESSION) in _NO_DECODER:
        raise _refusal(tags)
    if image.palette is not None and max(tags[_COLOURS]) < 256:  # of writers that take its 16 bits for 8
        image.palette = ImagePalette.raw("RGB;L", bytes(tags[_COLOURS]))
    return image


def grey_bits(image: Image.Image) -> tuple[int, bool]:
    """Return the bits of a sample of a grey image of over 8 bits, and whether 0 is white."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16, False
    return image.tag_v2[_BITS][0], image.tag_v2.get(_PHOTOMETRIC, 0) == 0


def _prepare_pillow() -> None:
    # Pillow's own reader takes 16-bit planes for 8-bit ones, and does not know subsampled YCbCr.
    TiffImagePlugin.READ_LIBTIFF = True
    for order, mode in ((b"II", "I;16"), (b"MM", "I;16B")):
        for photometric in (0, 1):  # it decodes these kinds of grey, and does not list them all
            TiffImagePlugin.OPEN_INFO[order, photometric, (1,), 1, (12,), ()] = "I;16", "I;12"
            TiffImagePlugin.OPEN_INFO[order, photometric, (1,), 1, (16,), ()] = mode, mode


def _tags(data: bytes) -> Mapping[int, Any]:
    """The first directory of a TIFF; empty if a part of it cannot be read."""
    file = io.BytesIO(data)
    # Pillow raises many types on damaged tags, and only warns of missing ones.
    with contextlib.suppress(Exception), warnings.catch_warnings(action="error"):
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if data[2:4] in (b"+\0", b"\0+") else 8))
        file.seek(tags.next)
        tags.load(file)
        return dict(tags)
    return {}


def _refusal(tags: Mapping[int, Any]) -> ServiceError:
    if not tags.keys() >= {_WIDTH, _HEIGHT, _PHOTOMETRIC}:
        return UndecodableImage("The TIFF is truncated or damaged.")
    bits, photometric = tags.get(_BITS, (1,)), tags[_PHOTOMETRIC]
    kind = [_PHOTOMETRICS.get(photometric, f"photometric interpretation {photometric:d}")]
    kind.append(f"{tags.get(_SAMPLES, len(bits)):d} × {max(bits):d} bits")
    kind += [name for number, name in _SAMPLE_FORMATS.items() if number in tags.get(_SAMPLE_FORMAT, ())]
    if tags.get(_PLANES) == 2:
        kind.append("in separate planes")
    if tags.get(_COMPRESSION, 1) not in TiffImagePlugin.COMPRESSION_INFO.keys() - _NO_DECODER:
        kind.append(f"compression {tags[_COMPRESSION]:d}")
    return UnsupportedMedia(
        f"A TIFF of this kind is not supported ({', '.join(kind)}): save it as RGB with 8 or 16 bits."
    )
