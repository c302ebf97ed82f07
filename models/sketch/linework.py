"""Finding the lines of a drawn raster: paper, ink, skeleton, polylines.

NumPy in, polylines out; `models.transforms` redraws them at the canonical line width.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.morphology import skeletonize

from models.sketch.background import (
    INK_NOISE,
    MAX_THRESHOLD,
    contrast_to_paper,
    contrast_to_tone,
    fitted_paper,
    frame,
    frame_tone,
    is_all_noise,
    is_vivid,
    median,
    noise_of,
    strips,
)

_SEARCH_SIDE = 1024
_TRACE_SIDE = 256
_STRIP_ROWS = 16
_MIN_CONTRAST = 40.0
_MIN_INK = 24.0
_MAX_COVERAGE = 0.45
_MAX_LINE_WIDTH = 0.13
_MAX_COLOURED_LINE_WIDTH = 0.06
_MAX_TINTED_PAPER = 0.06
_MAX_FOREIGN_COLOUR = 0.02
_FOREIGN_DISTANCE = 22.0
_PEN_DISTANCE = 40.0
_MAX_OTHER_PENS = 0.25

Polyline = list[list[float]]


def trace_linework(pixels: NDArray[np.uint8]) -> list[Polyline] | None:
    """The lines of a line drawing, or None when the raster is a picture.

    A line drawing has paper of one tone (light may vary smoothly over it) and thin ink that stands
    out from it, darker or lighter. Solid regions much thicker than the lines keep their contour.

    Args:
        pixels: [H, W, 3] uint8 RGB.

    Returns:
        Polylines `[[x…], [y…]]` in an arbitrary unit, or None.
    """
    low, high = _block_extremes(pixels, _SEARCH_SIDE)
    tone, is_even = frame_tone(low, high)
    if is_vivid(tone):
        return None
    if is_even:
        contrast = contrast_to_tone(low, high, tone)
    else:
        paper = fitted_paper(low, high)
        if is_all_noise(low, high, paper):
            return None
        contrast = contrast_to_paper(low, high, paper.surface)
    peak = float(contrast.max())
    if peak < _MIN_CONTRAST:
        return None
    noise = noise_of(contrast)
    threshold = max(_MIN_INK, INK_NOISE * noise, 0.35 * peak)
    if threshold >= MAX_THRESHOLD * peak:
        return None
    ink = _without_specks(contrast > threshold)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if not len(rows):
        return None
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    if ink[box].mean() > _MAX_COVERAGE and min(ink[box].shape) > 0.1 * max(ink[box].shape):
        return None
    if _tinted_share(contrast[box], ink[box], threshold, noise) > _MAX_TINTED_PAPER:
        return None
    if _has_other_colours(low, high, ink, box):
        return None
    work = _at_trace_scale(np.where(ink, contrast, np.minimum(contrast, threshold))[box], threshold)
    ink_colour_spread, ink_chroma = _ink_colour(low, high, contrast, ink)
    skeleton, line_width = _skeleton(work)
    limit = _MAX_LINE_WIDTH if ink_chroma < 40 else _MAX_COLOURED_LINE_WIDTH
    if line_width > limit * _TRACE_SIDE or ink_colour_spread > 45:
        return None
    return _polylines(skeleton, min_spur=0.6 * line_width)


def _block_extremes(pixels: NDArray[np.uint8], side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Darkest and lightest value a channel of each block: thin lines survive the reduction."""
    factor = -(-max(pixels.shape[:2]) // side)
    if factor == 1:
        return pixels, pixels
    return _reduced(pixels, factor, np.minimum), _reduced(pixels, factor, np.maximum)


def _reduced(pixels: NDArray[np.uint8], factor: int, extreme: np.ufunc) -> NDArray[np.uint8]:
    """`extreme` over blocks of `factor` × `factor`, a few rows at a time, which stay in a processor's cache."""
    height, width = pixels.shape[:2]
    blocks = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    for top in range(0, len(blocks), _STRIP_ROWS):
        part = pixels[top * factor : (top + _STRIP_ROWS) * factor]
        rows = part[::factor].copy()
        for offset in range(1, factor):
            below = part[offset::factor]
            extreme(rows[: len(below)], below, out=rows[: len(below)])
        # Over all columns and then every `factor`-th: NumPy is slow on runs of three.
        line = rows.reshape(len(rows), -1)
        widened = line.copy()
        for offset in range(3, 3 * factor, 3):
            extreme(widened[:, :-offset], line[:, offset:], out=widened[:, :-offset])
        blocks[top : top + _STRIP_ROWS] = widened.reshape(rows.shape)[:, ::factor]
    return blocks


def _without_specks(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, count = ndimage.label(ink, structure=np.ones((3, 3)))
    if count < 2:
        return ink
    inked = labels[ink]
    area = np.bincount(inked)
    keep = area >= min(6, 0.05 * area.max())
    kept = ink.copy()
    kept[ink] = keep[inked]
    return kept


def _tinted_share(contrast: NDArray[np.float32], ink: NDArray[np.bool_], threshold: float, noise: float) -> float:
    """Share of the drawing's box that is neither paper nor ink nor ink's soft edge."""
    near = _grown(_grown(_grown(ink)))
    tinted = (contrast > max(14.0, 4 * noise, 0.35 * threshold)) & ~near
    return float(tinted.mean())


def _grown(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`ndimage.binary_dilation`, seven times as fast."""
    grown = ink.copy()
    grown[1:] |= ink[:-1]
    grown[:-1] |= ink[1:]
    grown[:, 1:] |= ink[:, :-1]
    grown[:, :-1] |= ink[:, 1:]
    return grown


def _has_other_colours(
    low: NDArray[np.uint8], high: NDArray[np.uint8], ink: NDArray[np.bool_], box: tuple[slice, slice]
) -> bool:
    """Whether the drawing's box holds hues that are no mixture of one paper and one pen: the fills of a picture.

    Hue is taken relative to brightness, so that shade on coloured paper does not count, and the paper's from the
    border of the raster, since a fitted surface bends to large fills.
    """
    edge = max(1, round(0.02 * max(ink.shape)))
    border = ~frame(ink[..., None], edge)[:, 0]
    if bool(border.any()):
        papers = _hue(frame(low, edge)[border], frame(high, edge)[border])
    else:
        papers = _hue(low[~ink], high[~ink])
    paper = np.array([median(channel) for channel in papers])
    low, high, ink = low[box], high[box], ink[box]
    core = ink & ndimage.binary_erosion(ink)
    core = core if bool(core.any()) else ink
    pens = _hue(low[core], high[core])
    pen = np.array([median(channel) for channel in pens])
    if float((np.abs(pens - pen[:, None]).max(axis=0) > _PEN_DISTANCE).mean()) > _MAX_OTHER_PENS:
        return True
    along = pen - paper
    length = float(along @ along)
    foreign = 0
    for rows in strips(low):
        inside = _hue(low[rows], high[rows]).reshape(3, -1) - paper[:, None]
        if length > 1:
            # Pixel by pixel in memory: the product rounds by layout, and a rounding may decide.
            share = np.clip(np.tensordot(along, inside.copy("F"), 1) / np.float32(length), 0, 1)
            inside -= along[:, None] * share
        foreign += int((np.abs(inside).max(axis=0) > _FOREIGN_DISTANCE).sum())
    return foreign / ink.size > _MAX_FOREIGN_COLOUR


def _hue(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[…, 3] → [3, …], each channel in one piece: what a tone is more or less than grey, at one brightness."""
    middle = (np.moveaxis(low, -1, 0).astype(np.float32, "C") + np.moveaxis(high, -1, 0)) / 2
    mean = (middle[0] + middle[1] + middle[2]) / 3
    hue: NDArray[np.float32] = (middle - mean) * (128 / np.maximum(mean, 64))
    return hue


def _at_trace_scale(contrast: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Ink mask whose longer side is `_TRACE_SIDE`, with a border of paper."""
    height, width = contrast.shape
    scale = _TRACE_SIDE / max(height, width)
    if scale < 1:
        contrast = ndimage.maximum_filter(contrast, size=int(np.ceil(1 / scale)))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    padded = np.pad(contrast, 2)
    resized = Image.fromarray(padded).resize(
        (size[0] + round(4 * scale), size[1] + round(4 * scale)), Image.Resampling.BILINEAR
    )
    return np.pad(np.asarray(resized) > threshold, 2)


def _ink_colour(
    low: NDArray[np.uint8], high: NDArray[np.uint8], contrast: NDArray[np.float32], ink: NDArray[np.bool_]
) -> tuple[float, float]:
    """Spread of the ink's colour and its median chroma, both on the 0–255 scale, at the ink's core."""
    core = ink & (contrast >= 0.75 * np.quantile(contrast[ink], 0.9))
    darker = low[core].astype(np.float32)
    lighter = darker if low is high else high[core].astype(np.float32)
    colour = darker if darker.mean() <= 255 - lighter.mean() else lighter
    spread = float(np.abs(colour - np.median(colour, axis=0)).mean())
    red, green, blue = np.ascontiguousarray(colour.T)
    largest, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    chroma = float(median(largest - least))
    return spread, chroma


def _skeleton(ink: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], float]:
    """Skeleton, contours in place of solid regions, and the mean line width, px of the trace scale."""
    skeleton: NDArray[np.bool_] = skeletonize(ink)
    depth = ndimage.distance_transform_edt(ink)
    half = float(np.median(depth[skeleton]))
    line_width = float(ink.sum()) / max(1, int(skeleton.sum()))
    solid = depth > max(2.5 * half, 5.0)
    if solid.any():
        shell = ink & ~ndimage.binary_dilation(solid, iterations=max(1, round(0.5 * half)), mask=depth > half)
        skeleton = skeletonize(shell)
    return skeleton, line_width


_Pixel = tuple[int, int]


def _polylines(skeleton: NDArray[np.bool_], min_spur: float) -> list[Polyline]:
    """Walk a skeleton into smoothed polylines, dropping short spurs that thinning leaves."""
    links = _links({(int(y), int(x)) for y, x in np.argwhere(skeleton)})
    walked: set[tuple[_Pixel, _Pixel]] = set()
    lines: list[list[_Pixel]] = [[pixel] for pixel, linked in links.items() if not linked]
    ends = [pixel for pixel, linked in links.items() if len(linked) not in (0, 2)]
    for start in ends + list(links):
        closed_only = len(links[start]) == 2
        if closed_only and any((start, step) in walked for step in links[start]):
            continue
        for step in links[start][: 1 if closed_only else None]:
            if (start, step) not in walked:
                lines.append(_walk(start, step, links, walked))
    kept = [line for line in lines if not _is_spur(line, links, min_spur)]
    return [_smoothed(line) for line in kept or lines]


def _links(pixels: set[_Pixel]) -> dict[_Pixel, list[_Pixel]]:
    """Neighbours of each pixel; a diagonal counts only where no shared side neighbour bridges it."""
    links: dict[_Pixel, list[_Pixel]] = {}
    for y, x in sorted(pixels):
        near = [(y + dy, x + dx) for dy, dx in ((-1, 0), (0, -1), (0, 1), (1, 0)) if (y + dy, x + dx) in pixels]
        for dy, dx in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            bridged = (y + dy, x) in pixels or (y, x + dx) in pixels
            if (y + dy, x + dx) in pixels and not bridged:
                near.append((y + dy, x + dx))
        links[y, x] = near
    return links


def _walk(
    start: _Pixel, step: _Pixel, links: dict[_Pixel, list[_Pixel]], walked: set[tuple[_Pixel, _Pixel]]
) -> list[_Pixel]:
    line = [start]
    here = step
    while True:
        walked.update(((line[-1], here), (here, line[-1])))
        line.append(here)
        ahead = [pixel for pixel in links[here] if (here, pixel) not in walked]
        if len(links[here]) != 2 or here == start or not ahead:
            return line
        here = ahead[0]


def _is_spur(line: list[_Pixel], links: dict[_Pixel, list[_Pixel]], min_spur: float) -> bool:
    degrees = sorted((len(links[line[0]]), len(links[line[-1]])))
    return degrees[0] == 1 and degrees[1] > 2 and len(line) < min_spur


def _smoothed(line: list[_Pixel], window: int = 5) -> Polyline:
    points = np.asarray(line, dtype=np.float64)
    if len(points) > 3:
        is_loop = line[0] == line[-1]
        ends = points[[0, -1]].copy()
        points = ndimage.uniform_filter1d(
            points[:-1] if is_loop else points, window, axis=0, mode="wrap" if is_loop else "nearest"
        )
        if is_loop:
            points = np.concatenate([points, points[:1]])
        else:
            points[[0, -1]] = ends
    return [points[:, 1].tolist(), points[:, 0].tolist()]
