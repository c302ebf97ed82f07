"""Image files as tests need them, down to their chunks."""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Pixels = NDArray[np.uint8]


def encoded(pixels: Pixels | Image.Image, kind: str, **options: object) -> bytes:
    """An image as a file of a kind that Pillow writes."""
    out = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, body: bytes, *, damage: int = 0) -> bytes:
    """A chunk of a PNG; `damage` changes its checksum."""
    checksum = (zlib.crc32(kind + body) ^ damage).to_bytes(4)
    return struct.pack(">I", len(body)) + kind + body + checksum


def with_chunks(png: bytes, *chunks: bytes, before: bytes = b"IDAT") -> bytes:
    """A PNG with chunks put in before the first of a kind."""
    at = png.index(before) - 4
    return png[:at] + b"".join(chunks) + png[at:]


def bmp(colours: Pixels, alpha: int, *, header: int = 124) -> bytes:
    """A BMP of V3, V4 or V5 header as the clipboard and screenshot tools write it, bottom row first."""
    height, width = colours.shape[:2]
    rows = np.dstack([colours[::-1, :, ::-1], np.full((height, width), alpha, np.uint8)]).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    fields = struct.pack("<IiiHHIIiiII", header, width, height, 1, 32, 3 if header > 40 else 0, len(rows), *(0,) * 4)
    fields += masks.ljust(header - 40, b"\0") if header > 40 else b""
    return b"BM" + struct.pack("<IHHI", 14 + len(fields) + len(rows), 0, 0, 14 + len(fields)) + fields + rows


def grey_png(tones: NDArray[np.int64], *, bits: int, transparent: int | None, kind: int = 0) -> bytes:
    """A PNG of grey or RGB (`kind` 2) samples, with a transparent tone."""
    height, width = tones.shape[:2]
    if bits == 16:
        rows = tones.astype(">u2").reshape(height, -1).view(np.uint8)
    elif bits == 8:
        rows = tones.astype(np.uint8).reshape(height, -1)
    else:
        rows = np.packbits(tones.astype(np.uint8), axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(rows))
    samples = 3 if kind == 2 else 1
    known = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent) * samples)
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + known
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def tiff(
    samples: NDArray[Any],
    *,
    photometric: int,
    bits: int,
    order: str = "<",
    is_separate: bool = False,
    is_deflated: bool = False,
    tags: Mapping[int, Sequence[int]] | None = None,
) -> bytes:
    """A TIFF of [H, W, S] samples in one strip a plane, its directory behind them; `tags` are added or changed."""
    height, width, count = samples.shape
    planes = np.moveaxis(samples, 2, 0) if is_separate else samples.reshape(1, height, -1)
    strips = [_tiff_rows(plane, bits, order) for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if is_deflated else strips
    lengths = [len(strip) for strip in strips]
    fields: dict[int, Sequence[int]] = {
        256: [width],
        257: [height],
        258: [bits] * count,
        259: [8 if is_deflated else 1],
    }
    fields |= {
        262: [photometric],
        273: [8 + sum(lengths[:at]) for at in range(len(strips))],
        277: [count],
        278: [height],
    }
    fields |= {279: lengths, 284: [2 if is_separate else 1], **(tags or {})}
    start = 8 + sum(lengths)
    directory, values = struct.pack(f"{order}H", len(fields)), b""
    for tag, numbers in sorted(fields.items()):
        kind, letter = (7, "B") if isinstance(numbers, bytes) else (4, "I") if tag in (273, 279) else (3, "H")
        body = struct.pack(f"{order}{len(numbers)}{letter}", *numbers).ljust(4, b"\0")
        directory += struct.pack(f"{order}HHI", tag, kind, len(numbers))
        directory += body if len(body) == 4 else struct.pack(f"{order}I", start + 12 * len(fields) + 6 + len(values))
        values += body if len(body) > 4 else b""
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, start)
    return head + b"".join(strips) + directory + bytes(4) + values


def _tiff_rows(plane: NDArray[Any], bits: int, order: str) -> bytes:
    if bits % 8 == 0:
        return plane.astype(plane.dtype.newbyteorder("<" if order == "<" else ">")).tobytes()
    digits = plane[:, :, None] >> np.arange(bits)[::-1] & 1
    return np.packbits(digits.reshape(len(plane), -1).astype(np.uint8), axis=1).tobytes()


def grey_profile(gamma: float) -> bytes:
    """A grey profile (ICC) of a gamma, white at D50."""
    d50 = bytes.fromhex("0000f6d6 00010000 0000d32d")
    white, curve = b"XYZ \0\0\0\0" + d50, struct.pack(">4sIIHxx", b"curv", 0, 1, round(gamma * 256))
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, len(white), b"kTRC", 176, len(curve) - 2)
    head = struct.pack(">I4xI4s4s4s12x4s28x", 192, 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp") + d50
    return head.ljust(128, b"\0") + tags + white + curve


def swapped_profile() -> bytes:
    """A profile of sRGB's curve whose red and green primaries are swapped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * int.from_bytes(profile[128:132]), 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red + 4 : red + 12], profile[green + 4 : green + 12] = (
        profile[green + 4 : green + 12],
        profile[red + 4 : red + 12],
    )
    return bytes(profile)
