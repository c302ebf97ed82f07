"""Images that once stopped the whole service."""

import struct
import zlib

import numpy as np
from PIL import Image

from tests.app.imaging.files import chunk, encoded

ABORT = (
    '<svg width="256" height="64"><g stroke-miterlimit="-229" style="stroke-width:1e38;stroke:red">'
    '<ellipse cx="24.2" ry="47.6"/></g></svg>'
)
FREEZE = '<svg width="64" height="100"><path d="M0 0A1 1e38 0 1 0 9 9"/></svg>'
LAYERS = (
    '<svg width="4096" height="4096">'
    + '<g opacity=".5">' * 31
    + '<rect width="4096" height="4096"/>'
    + "</g>" * 31
    + "</svg>"
)
SLOW = (  # passes every check, and draws for half a minute
    '<svg width="1180" height="1180">' + '<rect width="1180" height="1180" opacity=".5"/>' * 500 + "</svg>"
)


def repeated_scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan is there `count` times: a pass over all pixels for a few bytes."""
    data = encoded(Image.new("RGB", (side, side), "grey"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def png_without_palette() -> bytes:
    """A palette PNG with no PLTE chunk."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 3, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + bytes(8) for _ in range(8))))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def photograph(width: int, height: int) -> Image.Image:
    """A photograph of noise."""
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
