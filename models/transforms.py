"""Pixels to encoder inputs: the canonical sketch, the square view and the views of segmentation.

Training and serving share these pure functions of NumPy arrays. `PREPROCESSING_VERSION` enters the fingerprint: change
it whenever an output changes, that of `models.types.to_unit_batch` included.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.errors import InputError
from models.sketch.linework import trace_linework
from models.types import MAX_TILES, to_unit_batch

PREPROCESSING_VERSION = "4"

Strokes = Sequence[Sequence[Sequence[float]]]
"""Strokes `[[x…], [y…]]`, as in Quick, Draw!; a third list (times) is ignored."""

SKETCH_MARGIN = 0.06  # white border of a canonical sketch, as a share of its side
SKETCH_LINE_WIDTH = 3 / 128  # of a canonical sketch, as a share of its side
_OVERLAP = 0.25  # least share of a tile that its neighbour covers too
_FEATHER = 0.125  # share of a tile's side over which its weight rises from the edge
_SUPERSAMPLING = 4  # Pillow's lines are not antialiased


def render_strokes(strokes: Strokes, size: int = 128) -> NDArray[np.uint8]:
    """Draws strokes as a canonical sketch: cropped with a margin, one line width, black on white.

    Args:
        strokes: polylines in any unit; one point is a dot.
        size: side of the output, px.

    Returns:
        [size, size] uint8, antialiased, 255 is the background.

    Raises:
        InputError: no point at all, x and y of different lengths, or a value that is not finite.
    """
    lines = [_points(stroke) for stroke in strokes]
    lines = [line for line in lines if len(line)]
    if not lines:
        raise InputError("the sketch has no foreground: it needs at least one point")
    points = np.concatenate(lines)
    low, high = points.min(axis=0), points.max(axis=0)
    side = size * _SUPERSAMPLING
    line_width = side * SKETCH_LINE_WIDTH
    available = side * (1 - 2 * SKETCH_MARGIN) - line_width
    extent = float((high - low).max())
    scale = available / extent if extent > 0 else 0.0  # a single dot has no extent
    canvas = Image.new("L", (side, side), 255)
    draw = ImageDraw.Draw(canvas)
    for line in lines:
        _draw_line(draw, (line - (low + high) / 2) * scale + side / 2, line_width)
    return np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.uint8)


def canonical_image(pixels: NDArray[np.uint8], size: int = 128) -> NDArray[np.uint8]:
    """Returns what the encoder takes for a raster: its canonical sketch if it is a line drawing, else `fit_square`.

    A line drawing may be dark on light or light on dark, and its background of any tone and unevenly lit. Takes
    [H, W, 3] uint8 RGB and returns [size, size, 3] uint8 RGB.

    Raises:
        InputError: `pixels` have another type or shape.
    """
    sketch = canonical_sketch(pixels, size)
    return fit_square(pixels, size) if sketch is None else sketch


def canonical_sketch(pixels: NDArray[np.uint8], size: int = 128) -> NDArray[np.uint8] | None:
    """Traces a line drawing and redraws it; None if the raster is no line drawing. See `canonical_image`."""
    _check_pixels(pixels)
    strokes = trace_linework(pixels)
    return None if strokes is None else canonical_strokes(strokes, size)


def canonical_strokes(strokes: Strokes, size: int = 128) -> NDArray[np.uint8]:
    """Returns `render_strokes` as RGB, [size, size, 3] uint8."""
    return np.repeat(render_strokes(strokes, size)[:, :, None], 3, axis=2)


def fit_square(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Fits an image into a white square, centred, same aspect: [H, W, 3] uint8 RGB → [size, size, 3] uint8 RGB.

    Raises:
        InputError: `pixels` have another type or shape.
    """
    _check_pixels(pixels)
    return cut_view(pixels, whole_view(pixels.shape[0], pixels.shape[1]), size)


def to_unit(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[H, W, 3] uint8 RGB (or [H, W] grey) → [3, H, W] float32 in [-1, 1]."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    _check_pixels(pixels)
    return np.ascontiguousarray(to_unit_batch([pixels])[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewBox:
    """The square of the input, in its own pixels, that one view shows; beyond the image the view is white."""

    top: float
    left: float
    side: float
    is_whole: bool


def whole_view(height: int, width: int) -> ViewBox:
    """Returns the view of the whole image: centred, same aspect, letterboxed."""
    side = float(max(height, width))
    return ViewBox(top=(height - side) / 2, left=(width - side) / 2, side=side, is_whole=True)


def plan_views(height: int, width: int, size: int, *, max_tiles: int = MAX_TILES) -> tuple[ViewBox, ...]:
    """Returns the views that segmentation encodes: the whole image first, then overlapping tiles.

    One pixel of a tile is one pixel of the input, or more if `max_tiles` would not suffice. An image that is hardly
    larger than a view has no tiles.

    Args:
        height, width: of the input, px.
        size: side of a view, px.
        max_tiles: largest number of tiles.

    Returns:
        1 to `max_tiles` + 1 views.
    """
    views = [whole_view(height, width)]
    if max_tiles < 2 or max(height, width) <= 1.25 * size:
        return tuple(views)
    side = float(size)
    while _tile_count(height, side) * _tile_count(width, side) > max_tiles:
        side *= 1.02  # a closed form would be wrong where a count of either axis jumps
    tops, lefts = _tile_starts(height, side), _tile_starts(width, side)
    if len(tops) * len(lefts) > 1:
        views += [ViewBox(top=t, left=s, side=side, is_whole=False) for t in tops for s in lefts]
    return tuple(views)


def cut_view(pixels: NDArray[np.uint8], box: ViewBox, size: int) -> NDArray[np.uint8]:
    """Cuts one view out of [H, W, 3] uint8 RGB: [size, size, 3] uint8 RGB, white where the box leaves the image."""
    height, width = pixels.shape[:2]
    top, bottom = max(box.top, 0.0), min(box.top + box.side, float(height))
    left, right = max(box.left, 0.0), min(box.left + box.side, float(width))
    scale = size / box.side
    out_top, out_left = round((top - box.top) * scale), round((left - box.left) * scale)
    # At least one pixel, whatever the aspect, and never beyond the view after rounding.
    out_height = min(size - out_top, max(1, round((bottom - top) * scale)))
    out_width = min(size - out_left, max(1, round((right - left) * scale)))
    resized = Image.fromarray(pixels).resize(
        (out_width, out_height), Image.Resampling.BICUBIC, box=(left, top, right, bottom), reducing_gap=3.0
    )  # with this gap a large image is first reduced by a whole factor, which is fast and hardly visible
    view = np.full((size, size, 3), 255, dtype=np.uint8)
    view[out_top : out_top + out_height, out_left : out_left + out_width] = np.asarray(resized)
    return view


def resample_rows(
    values: NDArray[np.float32], box: ViewBox, *, top: int, bottom: int, width: int
) -> NDArray[np.float32]:
    """Resamples a view's map [C, h, w] float32 to rows `top` to `bottom` (excluded) of an input `width` px wide.

    Inverse of `cut_view`.

    Returns:
        [C, bottom - top, width] float32, bilinear; outside the view the border values repeat.
    """
    down = _interpolation(np.arange(top, bottom), box.top, box.side, values.shape[1])
    across = _interpolation(np.arange(width), box.left, box.side, values.shape[2])
    # For a photograph two matrix products are 20 times as fast as gathering four neighbours.
    return np.asarray((down @ values) @ across.T, np.float32)


def view_weights(box: ViewBox, *, top: int, bottom: int, width: int) -> NDArray[np.float32]:
    """Returns the weights with which a view enters the blend of rows `top` to `bottom`; see `resample_rows`.

    Returns:
        [bottom - top, width] float32: 1 for the whole view; for a tile 0 outside, rising to 1 inside.
    """
    if box.is_whole:
        return np.ones((bottom - top, width), dtype=np.float32)
    row, column = _ramp(np.arange(top, bottom), box.top, box.side), _ramp(np.arange(width), box.left, box.side)
    return row[:, None] * column[None, :]


def _check_pixels(pixels: NDArray[np.uint8]) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise InputError(f"pixels are {pixels.dtype} {list(pixels.shape)}, not uint8 [H, W, 3]")


def _points(stroke: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    if len(stroke) < 2 or len(stroke[0]) != len(stroke[1]):
        raise InputError("a stroke needs as many x as y coordinates")
    points = np.stack([np.asarray(stroke[0], np.float64), np.asarray(stroke[1], np.float64)], axis=1)
    if not np.isfinite(points).all():
        raise InputError("a stroke holds a coordinate that is not finite")
    moved = np.ones(len(points), dtype=bool)
    moved[1:] = (points[1:] != points[:-1]).any(axis=1)
    return points[moved]  # repeated points would give a line joint no direction


def _draw_line(draw: ImageDraw.ImageDraw, points: NDArray[np.float64], width: float) -> None:
    if len(points) > 1:
        draw.line([(float(x), float(y)) for x, y in points], fill=0, width=round(width), joint="curve")
    for x, y in (points[0], points[-1]):  # round caps, which Pillow does not draw
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=0)


def _tile_count(length: int, side: float) -> int:
    if length <= side:
        return 1
    return int(np.ceil((length - side * _OVERLAP) / (side * (1 - _OVERLAP)) - 1e-9))  # less, against rounding


def _tile_starts(length: int, side: float) -> list[float]:
    count = _tile_count(length, side)
    if count == 1:
        return [(length - side) / 2]
    return [float(start) for start in np.linspace(0, length - side, count)]


def _interpolation(pixel: NDArray[np.int64], start: float, side: float, cells: int) -> NDArray[np.float32]:
    """Returns the bilinear weights of cells along one side, [len(pixel), cells]; rows sum to one."""
    position = np.clip((pixel + 0.5 - start) / side * cells - 0.5, 0, cells - 1)
    first, share = position.astype(np.int64), position % 1
    weights = np.zeros((len(pixel), cells), np.float32)
    rows = np.arange(len(pixel))
    weights[rows, first] = 1 - share
    weights[rows, np.minimum(first + 1, cells - 1)] += share  # added: at the last cell both are the same
    return weights


def _ramp(pixel: NDArray[np.int64], start: float, side: float) -> NDArray[np.float32]:
    position = (pixel + 0.5 - start) / side
    ramp: NDArray[np.float32] = np.clip(np.minimum(position, 1 - position) / _FEATHER, 0, 1).astype(np.float32)
    return ramp
