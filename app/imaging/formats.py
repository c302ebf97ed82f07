"""Image files before Pillow reads them: the allowed formats, and what viewers skip or forgive.

PNG is reduced to the chunks that shape its pixels, so that text chunks of any size and their checksums do not matter.
"""

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import UndecodableImage

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF", "TIFF")  # by Pillow's names; its other decoders never run
ALLOWED = "PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF"
MAX_PROFILE_BYTES = 4 << 20  # of a colour profile; a larger one is ignored
_MAGIC = re.compile(  # the first bytes of each format; a group's name is that of its media type
    rb"(?P<png>\x89PNG\r\n\x1a\n)|(?P<jpeg>\xff\xd8\xff)|(?P<webp>RIFF....WEBP)|(?P<gif>GIF8[79]a)|(?P<bmp>BM)"
    rb"|(?P<avif>....ftyp(?:avif|avis|mif1|msf1|miaf))|(?P<tiff>II[*+]\0|II\0\*|MM\0[*+]|MM\*\0)",
    re.DOTALL,
)
_FOREIGN_FORMATS: tuple[tuple[int, bytes], ...] = (  # (offset, magic) of formats that get an error of their own
    (0, b"8BPS"), (0, b"\x00\x00\x01\x00"), (0, b"\x00\x00\x02\x00"),
    (4, b"ftyp"), (0, b"\x00\x00\x00\x0cjP  "), (0, b"\xff\x4f\xff\x51"), (0, b"\xff\x0a"), (0, b"DDS "),
    (0, b"%PDF"), (0, b"%!PS"), (0, b"icns"), (0, b"P5\n"), (0, b"P6\n"), (0, b"P4\n"), (0, b"qoif"),
    (0, b"gimp xcf"), (0, b"<svg"), (0, b"<?xml"), (0, b"\x76\x2f\x31\x01"), (0, b"\x00\x00\x00\x0cJXL "),
)  # fmt: skip
_AVIF = frozenset({b"ftypavif", b"ftypavis"})  # other files of `ftyp` are HEIC or films
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_OPTIONAL = frozenset({b"tRNS", b"eXIf", b"iCCP"})
_CHUNK = struct.Struct(">I4s")
# Each scan is a pass over all pixels, of a few bytes; encoders write ten.
MAX_SCANS = 100
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")  # with a length behind it, or the end
_JPEG_FILL = b"\xfe\x55" * 32  # long codes and short ones: of 1,800 cut files this shows all, 0x55 alone 96 of 100


def has_image_bytes(head: bytes) -> bool:
    """Return whether a file whose first 12 bytes these are begins like one of an allowed format."""
    return _MAGIC.match(head) is not None


def media_type(data: bytes) -> str:
    """Return the media type of a file of an allowed format."""
    found = _MAGIC.match(data)
    return f"image/{found.lastgroup}" if found else "application/octet-stream"


def is_foreign_format(data: bytes) -> bool:
    """Return whether a file is an image or document of a known format that is not allowed."""
    if data[4:12] in _AVIF:
        return False
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n") if data[:64].lstrip()[:1] == b"<" else data[:64]
    return any(head.startswith(magic, at) for at, magic in _FOREIGN_FORMATS)


def is_png(data: bytes) -> bool:
    """Return whether a file begins like a PNG."""
    return data.startswith(_PNG_MAGIC)


def is_jpeg(data: bytes) -> bool:
    """Return whether a file begins like a JPEG."""
    return data.startswith(b"\xff\xd8")


def is_tiff(data: bytes) -> bool:
    """Return whether a file begins like a TIFF."""
    return media_type(data[:12]) == "image/tiff"


def png_size(data: bytes) -> tuple[int, int]:
    """Return the width and height that a PNG states, px. Raises UndecodableImage if it does not begin with them."""
    if data[12:16] != b"IHDR" or len(data) < 24:
        raise UndecodableImage("The PNG does not begin with its size: the file is damaged.")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def reduced_png(data: bytes) -> tuple[bytes, bytes | None]:
    """Return a PNG of the chunks that shape its pixels alone, and its colour profile.

    Chunks that viewers may ignore are dropped unread, or where their checksum is wrong, as libpng does; an animation
    becomes its still image.

    Raises UndecodableImage if the checksum of a chunk that no viewer ignores is wrong.
    """
    view = memoryview(data)  # its slices are no copies
    before, pixels = [view[: len(_PNG_MAGIC)]], list[memoryview]()
    profile: bytes | None = None
    at, kind = len(_PNG_MAGIC), b""
    while at + _CHUNK.size <= len(data) and kind != b"IEND":
        length, kind = _CHUNK.unpack_from(data, at)
        head, start, end = at, at + _CHUNK.size, at + _CHUNK.size + length
        at = end + 4
        is_needed = not kind[0] & 0x20  # the case of the first letter
        if not is_needed and kind not in _PNG_OPTIONAL:
            continue
        body, stated = view[start:end], view[end:at]
        # A file that is cut short has no checksum at its end; Pillow finds out whether pixels are missing.
        if len(stated) == 4 and zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(stated):
            if is_needed:
                name = kind.decode("ascii", "replace")
                raise UndecodableImage(f"The checksum of the PNG's {name} chunk is wrong: the file is damaged.")
        elif kind == b"IDAT":
            pixels.append(body)
        elif kind == b"iCCP":
            profile = _inflated_profile(bytes(body))
        elif not pixels:
            before.append(view[head:at])
    # One chunk of pixels: Pillow takes a step in Python for each.
    return b"".join([*before, *_png_chunk(b"IDAT", pixels), *_png_chunk(b"IEND", [])]), profile


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegScans:
    """The scans of a JPEG: how many, whether an end marker follows, and whether they hold every coefficient."""

    bits: int  # of a sample; 0 if the JPEG does not state them
    count: int
    is_ended: bool
    is_complete: bool


def jpeg_scans(data: bytes) -> JpegScans:
    """Return the scans of a JPEG, a few more than `MAX_SCANS` at most; none of them is decoded."""
    at, count, components, bits = 2, 0, 0, 0
    exact: set[tuple[int, int]] = set()  # component and coefficient of which no more bits follow
    while count <= MAX_SCANS and (marker := _JPEG_MARKER.search(data, at)) is not None:
        kind, start = marker[0][-1], marker.end()
        if kind == _JPEG_END:
            return JpegScans(bits=bits, count=count, is_ended=True, is_complete=True)
        at = start + int.from_bytes(data[start : start + 2])
        segment = data[start + 2 : at]
        if kind == _JPEG_SCAN and len(segment) > 2 * segment[0] + 3:
            count += 1
            first, last, successive = segment[2 * segment[0] + 1 :][:3]
            if not successive & 0xF:
                exact |= {(one, k) for one in segment[1 : 2 * segment[0] : 2] for k in range(first, min(last, 63) + 1)}
        elif kind in _JPEG_FRAMES and len(segment) > 5:
            bits, components = segment[0], segment[5]
    return JpegScans(bits=bits, count=count, is_ended=False, is_complete=len(exact) == 64 * components)


def ended_jpegs(data: bytes) -> tuple[bytes, bytes]:
    """Return a JPEG without an end marker as two files, which show the same pixels if none of them are missing.

    A decoder fills missing pixels with what it finds: nothing in the first file, other bits in the second.
    """
    data = data.rstrip(b"\xff")
    return data + bytes([0xFF, _JPEG_END]), data + _JPEG_FILL + bytes([0xFF, _JPEG_END])


def _png_chunk(kind: bytes, bodies: Sequence[memoryview]) -> list[bytes | memoryview]:
    """The pieces of a chunk whose body is that of several."""
    checksum = zlib.crc32(kind)
    for body in bodies:
        checksum = zlib.crc32(body, checksum)
    return [_CHUNK.pack(sum(map(len, bodies)), kind), *bodies, checksum.to_bytes(4)]


def _inflated_profile(body: bytes) -> bytes | None:
    """The profile of an `iCCP` chunk: a name, NUL, the method of compression, and the compressed profile."""
    decompressor = zlib.decompressobj()
    try:
        profile = decompressor.decompress(body[body.index(b"\0") + 2 :], MAX_PROFILE_BYTES)
    except (ValueError, zlib.error):
        return None
    return None if decompressor.unconsumed_tail else profile
