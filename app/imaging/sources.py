"""Image sources as tasks pass them: files, base64 text, strokes and SVG."""

import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import unquote

from app.errors import Malformed
from models.transforms import Strokes

_ALPHABET = bytes.maketrans(b"-_", b"+/")
_FOREIGN = re.compile(r"[^A-Za-z0-9+/\-_\r\n\t]")
_URI_TYPES = frozenset({"", "application/octet-stream", "binary/octet-stream"})  # beside those of images


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """A file as received: PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF bytes; `name` is the part's of a form, or empty."""

    data: bytes
    name: str = ""


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
    """Return the bytes of base64 text or of a base64 data URI; line breaks are allowed, and padding may be missing.

    Raises Malformed if the text is neither: the message names the first foreign character and its place.
    """
    what = "The base64"
    if text[:5].lower() == "data:":
        what = "The data URI's base64"
        prefix, _, text = text.partition(",")
        kind, *parameters = prefix[5:].lower().split(";")
        if not parameters or parameters[-1].strip() != "base64":
            raise Malformed("A data URI must be base64: data:image/png;base64,…")
        if kind.strip() not in _URI_TYPES and not kind.strip().startswith("image/"):
            raise Malformed(f"The data URI holds {kind[:60]!r}, not an image.")
        text = unquote(text) if "%" in text else text
    # Both alphabets of RFC 4648; line breaks as in RFC 2045.
    data = text.encode("ascii", "replace").translate(_ALPHABET, b"\r\n\t").rstrip(b"=")
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError) as err:
        raise Malformed(f"{what} {_fault(text)}.") from err


def _fault(text: str) -> str:
    found = _FOREIGN.search(text.rstrip("=\r\n\t"))
    if found is None:
        return "is cut short, or is no base64"
    hint = ", but may have been a + that a form decoded" if found[0] == " " else ""
    return f"has {found[0]!r} as character {found.start() + 1}, which is no letter of base64{hint}"
