"""Converts a label map to areas, boxes, COCO run lengths and PNGs; pure NumPy, one pass over the pixels."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from pycocotools import mask as coco

from models.heads.stitching import UNLABELLED


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """The region of one class: area in pixels, box `(x, y, width, height)` in pixels, and COCO run lengths."""

    area: int
    bbox: tuple[int, int, int, int]
    rle_counts: str


def regions(labels: NDArray[np.uint8], classes: int) -> list[Region | None]:
    """The region of each class 1 to `classes`, None where it has no pixel.

    Args:
        labels: [H, W] uint8, 0 background, 255 unlabelled.
        classes: N.
    """
    height, width = labels.shape
    columns = np.flatnonzero(labels.any(axis=0))
    if not len(columns):
        return [None] * classes
    # COCO counts run down the columns; columns that are all background are skipped.
    flat = np.ascontiguousarray(labels[:, columns[0] : columns[-1] + 1].T).reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]).astype(np.int32)
    ends = np.append(starts[1:], np.int32(flat.size))
    values = flat[starts]
    starts, ends = starts + np.int32(columns[0] * height), ends + np.int32(columns[0] * height)
    order = np.argsort(values, kind="stable")  # runs of one class stay in order down the image
    first, last = (np.searchsorted(values[order], np.arange(classes + 2), side) for side in ("left", "right"))
    found: list[Region | None] = []
    for index in range(1, classes + 1):
        runs = order[first[index] : last[index]]
        found.append(_region(starts[runs], ends[runs], height, width) if len(runs) else None)
    return found


def palette_png(labels: NDArray[np.uint8], names: Sequence[str]) -> bytes:
    """The label map as a palette PNG; an `iTXt` chunk holds the names of the classes as JSON.

    Args:
        labels: [H, W] uint8.
        names: of classes 1 to N.
    """
    image = Image.fromarray(labels).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(_palette().reshape(-1).tolist())
    text = PngImagePlugin.PngInfo()
    text.add_itxt("classes", json.dumps({str(i): n for i, n in enumerate(names, start=1)}, ensure_ascii=False))
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=text, compress_level=3)
    return out.getvalue()


def bit_png(mask: NDArray[np.bool_]) -> str:
    """One class as a base64 1-bit PNG. `mask` is [H, W] bool."""
    out = io.BytesIO()
    Image.fromarray(mask).save(out, "PNG", compress_level=1)
    return base64.b64encode(out.getvalue()).decode()


def _region(starts: NDArray[np.int32], ends: NDArray[np.int32], height: int, width: int) -> Region:
    counts = np.empty(2 * len(starts) + 1, np.int64)
    counts[0:-1:2] = starts - np.concatenate([[0], ends[:-1]])
    counts[1::2] = ends - starts
    counts[-1] = height * width - ends[-1]
    encoded = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    left, right = int(starts[0] // height), int((ends[-1] - 1) // height)
    # A run that crosses columns touches the bottom of one and the top of the next.
    if (starts // height != (ends - 1) // height).any():
        top, bottom = 0, height - 1
    else:
        top, bottom = int((starts % height).min()), int(((ends - 1) % height).max())
    return Region(
        area=int((ends - starts).sum()),
        bbox=(left, top, right - left + 1, bottom - top + 1),
        rle_counts=encoded["counts"].decode("ascii"),
    )


def _palette() -> NDArray[np.uint8]:
    """[256, 3] uint8: the PASCAL VOC colours, black for background, white for unlabelled."""
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    colours[UNLABELLED] = 255
    return colours
