"""Pixels to encoder inputs: the canonical sketch, the square view and the views of segmentation.

Everything here is a pure function of NumPy arrays, used in training and in serving alike;
`PREPROCESSING_VERSION` enters the fingerprint, so change it whenever an output changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.errors import InputError
from models.sketch.linework import trace_linework

PREPROCESSING_VERSION = "3"

Strokes = Sequence[Sequence[Sequence[float]]]
"""Quick, Draw! form: strokes of `[[x…], [y…]]`; a third list (times) is allowed and ignored."""

SKETCH_MARGIN = 0.06
"""White border round a canonical sketch, as a fraction of its side."""
SKETCH_LINE_WIDTH = 3 / 128
"""Line width of a canonical sketch, as a fraction of its side."""
_SUPERSAMPLING = 4


def render_strokes(strokes: Strokes, size: int = 128) -> NDArray[np.uint8]:
    """Draw strokes in the canonical form: cropped to their ink, one line width, black on white.

    Args:
        strokes: polylines in any unit; one point is a dot.
        size: side of the output, px.

    Returns:
        [size, size] uint8, antialiased, 255 is paper.

    Raises:
        InputError: no point at all, x and y of different lengths, or a value that is not finite.
    """
    lines = [_points(stroke) for stroke in strokes]
    lines = [line for line in lines if len(line)]
    if not lines:
        raise InputError("the sketch holds no ink")
    every = np.concatenate(lines)
    low, high = every.min(axis=0), every.max(axis=0)
    side = size * _SUPERSAMPLING
    line_width = side * SKETCH_LINE_WIDTH
    room = side * (1 - 2 * SKETCH_MARGIN) - line_width
    extent = float((high - low).max())
    scale = room / extent if extent > 0 else 0.0
    canvas = Image.new("L", (side, side), 255)
    draw = ImageDraw.Draw(canvas)
    for line in lines:
        _draw_line(draw, (line - (low + high) / 2) * scale + side / 2, line_width)
    return np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.uint8)


def canonical_image(pixels: NDArray[np.uint8], size: int = 128) -> NDArray[np.uint8]:
    """The one form in which the encoder sees a picture or a sketch.

    A raster that looks like a line drawing (on paper of any tone, dark on light or light on dark,
    evenly lit or not) becomes what `render_strokes` makes of its traced lines. Anything else is
    a picture and is fitted into a white square, see `fit_square`.

    Args:
        pixels: [H, W, 3] uint8 RGB.
        size: side of the output, px.

    Returns:
        [size, size, 3] uint8 RGB.
    """
    sketch = canonical_sketch(pixels, size)
    return fit_square(pixels, size) if sketch is None else sketch


def canonical_sketch(pixels: NDArray[np.uint8], size: int = 128) -> NDArray[np.uint8] | None:
    """`canonical_image` of a line drawing; None where the raster is a picture. Arguments and form as there."""
    _check_pixels(pixels)
    strokes = trace_linework(pixels)
    return None if strokes is None else canonical_strokes(strokes, size)


def canonical_strokes(strokes: Strokes, size: int = 128) -> NDArray[np.uint8]:
    """`render_strokes` as RGB, [size, size, 3] uint8: what a drawn query is encoded from."""
    return np.repeat(render_strokes(strokes, size)[:, :, None], 3, axis=2)


def fit_square(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale a picture to fit a white square, centred, aspect kept.

    Args:
        pixels: [H, W, 3] uint8 RGB.
        size: side of the output, px.

    Returns:
        [size, size, 3] uint8 RGB; equal to `cut_view(pixels, whole_view(H, W), size)`.
    """
    _check_pixels(pixels)
    return cut_view(pixels, whole_view(pixels.shape[0], pixels.shape[1]), size)


def to_unit(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[H, W, 3] uint8 RGB (or [H, W] grey) → [3, H, W] float32 in [-1, 1]."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    _check_pixels(pixels)
    return np.ascontiguousarray(to_unit_batch([pixels])[0])


def to_unit_batch(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """B × [H, W, 3] uint8 RGB → [B, 3, H, W] float32 in [-1, 1], as `to_unit`; it lies in memory as [B, H, W, 3]."""
    unit = np.stack(pictures).astype(np.float32)
    unit /= np.float32(127.5)
    unit -= np.float32(1)
    return unit.transpose(0, 3, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewBox:
    """The square of the input, in its own pixels, that one view shows.

    It may reach beyond the picture; what lies outside is white in the view and has no weight.
    """

    top: float
    left: float
    side: float
    is_whole: bool


def whole_view(height: int, width: int) -> ViewBox:
    """The view of the whole picture: letterboxed, aspect kept, centred (never stretched)."""
    side = float(max(height, width))
    return ViewBox(top=(height - side) / 2, left=(width - side) / 2, side=side, is_whole=True)


def plan_views(
    height: int, width: int, size: int, *, max_tiles: int = 16, overlap: float = 0.25
) -> tuple[ViewBox, ...]:
    """Views that segmentation encodes: the whole picture first, then overlapping tiles.

    Tiles are cut at native resolution (one view pixel is one input pixel); where that would take
    more than `max_tiles`, the picture counts as scaled down, just enough. A picture that is hardly
    larger than a view gets no tiles.

    Args:
        height: of the input, px.
        width: of the input, px.
        size: side of a view, px.
        max_tiles: most tiles besides the whole view.
        overlap: least share of a tile that its neighbour covers too.

    Returns:
        1 to `max_tiles` + 1 views.
    """
    views = [whole_view(height, width)]
    if max_tiles < 2 or max(height, width) <= 1.25 * size:
        return tuple(views)
    side = float(size)
    while _tile_count(height, side, overlap) * _tile_count(width, side, overlap) > max_tiles:
        side *= 1.02
    tops, lefts = _tile_starts(height, side, overlap), _tile_starts(width, side, overlap)
    if len(tops) * len(lefts) > 1:
        views += [ViewBox(top=t, left=s, side=side, is_whole=False) for t in tops for s in lefts]
    return tuple(views)


def cut_view(pixels: NDArray[np.uint8], box: ViewBox, size: int) -> NDArray[np.uint8]:
    """Pixels of one view, [size, size, 3] uint8 RGB, white where the box leaves the picture.

    Args:
        pixels: [H, W, 3] uint8 RGB.
        box: where to look.
        size: side of the output, px.
    """
    height, width = pixels.shape[:2]
    top, bottom = max(box.top, 0.0), min(box.top + box.side, float(height))
    left, right = max(box.left, 0.0), min(box.left + box.side, float(width))
    scale = size / box.side
    out_top, out_left = round((top - box.top) * scale), round((left - box.left) * scale)
    out_height = min(size - out_top, max(1, round((bottom - top) * scale)))
    out_width = min(size - out_left, max(1, round((right - left) * scale)))
    resized = Image.fromarray(pixels).resize(
        (out_width, out_height), Image.Resampling.BICUBIC, box=(left, top, right, bottom), reducing_gap=3.0
    )
    view = np.full((size, size, 3), 255, dtype=np.uint8)
    view[out_top : out_top + out_height, out_left : out_left + out_width] = np.asarray(resized)
    return view


def resample_rows(
    values: NDArray[np.float32], box: ViewBox, *, top: int, bottom: int, width: int
) -> NDArray[np.float32]:
    """Bring a view's map back to the input's pixels, for rows `top` to `bottom` (inverse of `cut_view`).

    Args:
        values: [C, h, w] float32 over the square view.
        box: the view.
        top: first input row.
        bottom: one past the last input row.
        width: of the input, px.

    Returns:
        [C, bottom - top, width] float32, bilinear; border values are repeated outside the view.
    """
    down = _interpolation(np.arange(top, bottom), box.top, box.side, values.shape[1])
    across = _interpolation(np.arange(width), box.left, box.side, values.shape[2])
    # Two matrix products: at the size of a photograph 20 times as fast as gathering four neighbours.
    return np.asarray((down @ values) @ across.T, np.float32)


def view_weights(box: ViewBox, *, top: int, bottom: int, width: int, feather: float = 0.125) -> NDArray[np.float32]:
    """How much each input pixel of rows `top` to `bottom` trusts a view, for blending.

    Args:
        box: the view.
        top: first input row.
        bottom: one past the last input row.
        width: of the input, px.
        feather: share of a tile's side over which its weight rises from the edge.

    Returns:
        [bottom - top, width] float32: 1 everywhere for the whole view; for a tile 0 outside it,
        rising to 1 inside.
    """
    if box.is_whole:
        return np.ones((bottom - top, width), dtype=np.float32)
    row = _ramp(np.arange(top, bottom), box.top, box.side, feather)
    column = _ramp(np.arange(width), box.left, box.side, feather)
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
    return points[moved]


def _draw_line(draw: ImageDraw.ImageDraw, points: NDArray[np.float64], width: float) -> None:
    if len(points) > 1:
        draw.line([(float(x), float(y)) for x, y in points], fill=0, width=round(width), joint="curve")
    for x, y in (points[0], points[-1]):
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=0)


def _tile_count(length: int, side: float, overlap: float) -> int:
    if length <= side:
        return 1
    return int(np.ceil((length - side * overlap) / (side * (1 - overlap)) - 1e-9))


def _tile_starts(length: int, side: float, overlap: float) -> list[float]:
    count = _tile_count(length, side, overlap)
    if count == 1:
        return [(length - side) / 2]
    return [float(start) for start in np.linspace(0, length - side, count)]


def _interpolation(pixel: NDArray[np.int64], start: float, side: float, cells: int) -> NDArray[np.float32]:
    """[len(pixel), cells]: how much each pixel takes from each cell along one side; rows sum to one."""
    place = np.clip((pixel + 0.5 - start) / side * cells - 0.5, 0, cells - 1)
    first, share = place.astype(np.int64), place % 1
    shares = np.zeros((len(pixel), cells), np.float32)
    every = np.arange(len(pixel))
    shares[every, first] = 1 - share
    shares[every, np.minimum(first + 1, cells - 1)] += share
    return shares


def _ramp(pixel: NDArray[np.int64], start: float, side: float, feather: float) -> NDArray[np.float32]:
    place = (pixel + 0.5 - start) / side
    ramp: NDArray[np.float32] = np.clip(np.minimum(place, 1 - place) / feather, 0, 1).astype(np.float32)
    return ramp
