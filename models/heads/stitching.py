"""Stitches the probabilities of views into one label map of the input's size, in strips of bounded memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.transforms import ViewBox, resample_rows, view_weights

UNLABELLED = 255  # label of a pixel without a class
MAX_CELLS = 64_000_000  # most (pixel, class) pairs that are computed; a larger input gets a coarser grid
TEMPORARIES = 6  # arrays of a strip's size that exist at once
STRIP_BYTES = 8 << 20  # an array that fits into the processor's cache is processed several times as fast
SURE_MARGIN = 1e-4  # background that leads by this in all cells around a pixel leads in it too; rounding is 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewProbabilities:
    """Probabilities of one view: `values` [N + 1, h, w] float32, background first, over the square `box`."""

    box: ViewBox
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stitched:
    """The label map of an image.

    Attributes:
        labels: [H, W] uint8: the 1-based class, 0 background, 255 unlabelled.
        scores: [N] float64: mean probability of each class over its own pixels; 0 without any.
    """

    labels: NDArray[np.uint8]
    scores: NDArray[np.float64]


def stitch(
    views: Sequence[ViewProbabilities],
    *,
    height: int,
    width: int,
    has_background: bool,
    threshold: float,
    max_bytes: int,
) -> Stitched:
    """Blend the views and take the best class of every pixel.

    A pixel's probabilities are a weighted mean of those of its cells. Where background leads in all of them, it is the
    answer without any computation.

    Args:
        views: at least the view of the whole image.
        height: of the input, px.
        width: of the input, px.
        has_background: whether background competes with the classes; else probabilities are over the classes only.
        threshold: pixels whose best probability is lower become background (or unlabelled).
        max_bytes: bound on working memory.
    """
    channels = views[0].values.shape[0]
    scale = min(1.0, float(np.sqrt(MAX_CELLS / (height * width * channels))))
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    scaled = [_scaled(view, rows / height, columns / width) for view in views]
    doubts = [np.ones(view.values.shape[1:], np.bool_) if not has_background else _doubts(view) for view in scaled]
    labels = np.zeros((rows, columns), np.uint8)
    sums, counts = np.zeros(channels), np.zeros(channels)
    strip = max(1, min(max_bytes, STRIP_BYTES) // (columns * channels * 4 * TEMPORARIES))
    for top in range(0, rows, strip):
        bottom = min(rows, top + strip)
        # Most strips of a drawing are background for sure: only the doubtful columns are computed.
        left, right = _doubtful_columns(scaled, doubts, top, bottom, columns)
        if left >= right:
            continue
        probabilities = blend(scaled, top, bottom, columns)[:, :, left:right]
        index, confidence = _best_class(probabilities, has_background)
        found = np.where(confidence >= threshold, index, 0)
        labels[top:bottom, left:right] = found
        is_named = found > 0
        named = found[is_named]
        sums += np.bincount(named, weights=confidence[is_named], minlength=channels)
        counts += np.bincount(named, minlength=channels)
    if not has_background:
        labels[labels == 0] = UNLABELLED
    if (rows, columns) != (height, width):  # labels cannot be interpolated: nearest
        labels = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
    scores = np.divide(sums, counts, out=np.zeros(channels), where=counts > 0)[1:]
    return Stitched(labels=labels, scores=np.minimum(scores, 1.0))


def _scaled(view: ViewProbabilities, vertical: float, horizontal: float) -> ViewProbabilities:
    """The same view in the coordinates of the working grid, whose cells are square up to rounding."""
    box = ViewBox(
        top=view.box.top * vertical,
        left=view.box.left * horizontal,
        side=view.box.side * (vertical + horizontal) / 2,
        is_whole=view.box.is_whole,
    )
    return ViewProbabilities(box=box, values=view.values)


def blend(views: Sequence[ViewProbabilities], top: int, bottom: int, width: int) -> NDArray[np.float32]:
    """Probabilities of the rows `top` to `bottom`: [N + 1, bottom - top, width] float32, views weighted by trust."""
    if len(views) == 1:
        return resample_rows(views[0].values, views[0].box, top=top, bottom=bottom, width=width)
    channels = views[0].values.shape[0]
    total = np.zeros((channels, bottom - top, width), np.float32)
    weight = np.zeros((bottom - top, width), np.float32)
    for view in views:
        box = view.box
        first, last = max(top, int(np.floor(box.top))), min(bottom, int(np.ceil(box.top + box.side)))
        left, right = max(0, int(np.floor(box.left))), min(width, int(np.ceil(box.left + box.side)))
        if box.is_whole:
            first, last, left, right = top, bottom, 0, width
        if first >= last or left >= right:  # the view does not reach this strip
            continue
        moved = ViewBox(top=box.top, left=box.left - left, side=box.side, is_whole=box.is_whole)
        trust = view_weights(moved, top=first, bottom=last, width=right - left)
        values = resample_rows(view.values, moved, top=first, bottom=last, width=right - left)
        values *= trust
        total[:, first - top : last - top, left:right] += values
        weight[first - top : last - top, left:right] += trust
    total /= weight  # never zero: the whole view covers every pixel
    return total


def _doubts(view: ViewProbabilities) -> NDArray[np.bool_]:
    """[h, w] bool: the cells in which background does not lead by a safe margin."""
    sure: NDArray[np.bool_] = view.values[0] >= view.values[1:].max(axis=0) + SURE_MARGIN
    return ~sure


def _doubtful_columns(
    views: Sequence[ViewProbabilities], doubts: Sequence[NDArray[np.bool_]], top: int, bottom: int, width: int
) -> tuple[int, int]:
    """The first and one past the last column with a doubtful cell in the rows `top` to `bottom`."""
    left, right = width, 0
    for view, doubtful in zip(views, doubts, strict=True):
        box, (height_cells, width_cells) = view.box, doubtful.shape
        # A pixel is interpolated from the two cells next to it along each axis; beyond the outermost, from those.
        low, high = ((edge - box.top) / box.side * height_cells - 0.5 for edge in (top, bottom))
        low, high = max(0, min(height_cells - 1, math.floor(low))), max(0, min(height_cells - 1, math.floor(high) + 1))
        found = np.flatnonzero(doubtful[low : high + 1].any(axis=0))
        if not len(found):
            continue
        first, last = int(found[0]), int(found[-1])
        pixel = box.side / width_cells
        left = min(left, 0 if first == 0 else math.floor(box.left + (first - 0.5) * pixel) - 1)
        right = max(right, width if last == width_cells - 1 else math.ceil(box.left + (last + 1.5) * pixel) + 1)
    return max(0, left), min(width, right)


def _best_class(
    probabilities: NDArray[np.float32], has_background: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """[N + 1, h, w] → the first best class and its probability, [h, w] each."""
    if not has_background:
        probabilities = probabilities[1:] / np.maximum(probabilities[1:].sum(axis=0), 1e-12)
    # Class by class: three times as fast as `argmax` over the first axis.
    best, confidence = np.zeros(probabilities.shape[1:], np.uint8), probabilities[0].copy()
    for number, values in enumerate(probabilities[1:], start=1):
        np.copyto(best, np.uint8(number), where=values > confidence)
        np.maximum(confidence, values, out=confidence)
    return best if has_background else best + np.uint8(1), confidence
