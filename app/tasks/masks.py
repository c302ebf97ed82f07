"""Converts a label map to areas, boxes, COCO run lengths, polygons and PNGs; pure NumPy, few passes over the pixels."""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from pycocotools import mask as coco
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from app.errors import TooMuchWork
from app.imaging.raster import TiledImage
from models.heads.stitching import UNLABELLED

MAX_CORNERS = 1_000_000
"""Of the polygons of one response: following them takes about a second."""
MAX_OVERLAY_SIDE = 2048  # px
LEGEND_COLUMN, LEGEND_ROW = 200, 22  # px


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


def without_islands(labels: NDArray[np.uint8], min_area: int, rest: int) -> NDArray[np.uint8]:
    """The label map in which islands of fewer than `min_area` pixels have the label `rest`.

    An island is a set of pixels of one class that touch at their edges. Runs down the columns are joined, not pixels:
    a large image has a thousandth of them.

    Args:
        labels: [H, W] uint8, 0 background, 255 unlabelled.
        rest: 0 or 255.
    """
    height, width = labels.shape
    flat = np.ascontiguousarray(labels.T).reshape(-1)
    is_start = np.ones(flat.size, np.bool_)
    is_start[1:] = flat[1:] != flat[:-1]
    is_start[::height] = True
    starts = np.flatnonzero(is_start)
    ends, values = np.append(starts[1:], flat.size), flat[starts]
    # The runs of the next column that each run touches, and those of its class among them.
    first = np.searchsorted(ends, starts + height, "right")
    counts = np.maximum(np.searchsorted(starts, ends + height, "left") - first, 0)
    left = np.repeat(np.arange(len(starts)), counts)
    right = np.arange(len(left)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    is_joined = values[left] == values[right]
    edges = (np.ones(int(is_joined.sum()), np.bool_), (left[is_joined], right[is_joined]))
    _, islands = connected_components(coo_matrix(edges, (len(starts), len(starts))), directed=False)
    areas = np.bincount(islands, weights=ends - starts)
    is_small = (areas[islands] < min_area) & (values != 0) & (values != UNLABELLED)
    found = np.repeat(np.where(is_small, np.uint8(rest), values), ends - starts)
    return np.ascontiguousarray(found.reshape(width, height).T)


def outlines(
    mask: NDArray[np.bool_], left: int = 0, top: int = 0, *, max_corners: int = MAX_CORNERS
) -> list[list[int]]:
    """The outer ring `[x, y, x, y, …]` of each island of [h, w] bool, clockwise along the edges of its pixels.

    Holes are filled. Islands that touch at a corner are two. A ring has the area of its island and its holes, and
    rasterises to exactly these pixels.

    Args:
        left, top: of the mask in its image, px.

    Raises:
        TooMuchWork: the rings have over `max_corners` corners.
    """
    padded = np.pad(mask, 1)
    around = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    # A corner lies where one or three of the four pixels are inside; where two that are opposite are, two corners do.
    is_pinch = (around[0] == around[3]) & (around[1] == around[2]) & (around[0] != around[1])
    n_corners = (around[0] ^ around[1] ^ around[2] ^ around[3]).astype(np.uint8) + 2 * is_pinch
    rows, columns = np.nonzero(n_corners)
    number = n_corners[rows, columns]
    if int(number.sum()) > max_corners:
        raise TooMuchWork(f"The polygons have over {MAX_CORNERS} corners: request rle, or a larger min_area.")
    ys, xs = np.repeat(rows, number), np.repeat(columns, number)
    is_second = np.append(False, (ys[1:] == ys[:-1]) & (xs[1:] == xs[:-1]))
    # Edges join the corners of a row two by two, and those of a column. Of a pinch's two corners the first ends the
    # edge from the left; it turns up where the pixel between is inside, so that opposite pixels stay apart.
    turns_down = is_second ^ ~around[0][ys, xs]
    order = np.lexsort((turns_down, ys, xs))
    down = np.empty(len(order), np.int64)
    down[order] = order[np.arange(len(order)) ^ 1]
    return [
        [value for at in ring for value in (left + int(xs[at]), top + int(ys[at]))]
        for ring in _rings(down.tolist())
        if around[3][ys[ring[0]], xs[ring[0]]]  # else it begins right below the pixels around a hole
    ]


def overlay_png(labels: NDArray[np.uint8], names: Sequence[str], views: TiledImage) -> bytes:
    """The image under coloured masks, with a legend of the classes that were found; at most `MAX_OVERLAY_SIDE` px.

    The image is drawn from the views that were encoded, which are all that is left of it.

    Args:
        labels: [H, W] uint8.
        names: of classes 1 to N.
    """
    height, width = labels.shape
    scale = min(1.0, MAX_OVERLAY_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = Image.new("RGB", size, "white")
    for box, square in zip(views.boxes, views.squares, strict=True):
        side = max(1, round(box.side * scale))
        canvas.paste(Image.fromarray(square).resize((side, side)), (round(box.left * scale), round(box.top * scale)))
    shown = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    is_named = (shown != 0) & (shown != UNLABELLED)
    pixels, colours = np.array(canvas), _palette()
    pixels[is_named] = (pixels[is_named].astype(np.uint16) + colours[shown[is_named]]) // 2
    found = [index for index in np.unique(labels).tolist() if index not in (0, UNLABELLED)]
    columns = max(1, size[0] // LEGEND_COLUMN)
    sheet = Image.new("RGB", (max(size[0], LEGEND_COLUMN), size[1] + -(-len(found) // columns) * LEGEND_ROW), "white")
    sheet.paste(Image.fromarray(pixels))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LEGEND_ROW - 8)
    for at, index in enumerate(found):
        x, y = at % columns * LEGEND_COLUMN + 4, size[1] + at // columns * LEGEND_ROW + 4
        draw.rectangle((x, y, x + LEGEND_ROW - 8, y + LEGEND_ROW - 8), fill=tuple(colours[index].tolist()))
        draw.text((x + LEGEND_ROW, y - 2), names[index - 1][:24], fill="black", font=font)
    return _png(sheet)


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
    return base64.b64encode(_png(Image.fromarray(mask))).decode()


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _rings(down: Sequence[int]) -> Iterator[list[int]]:
    """The corners of each ring, from its topmost left one to the right; `at ^ 1` is the other end of an edge."""
    seen = bytearray(len(down))
    for start in range(len(down)):
        ring, at = [], start
        while not seen[at]:
            across = at ^ 1
            ring += [at, across]
            seen[at] = seen[across] = True
            at = down[across]
        if ring:
            yield ring


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
