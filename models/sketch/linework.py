"""Traces the lines of a drawn raster: background, foreground, skeleton, polylines.

`models.transforms` redraws the polylines at the canonical line width.
"""

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.morphology import skeletonize

from models.sketch.background import (
    FOREGROUND_NOISE,
    MAX_THRESHOLD,
    Map,
    Mask,
    Pixels,
    contrast_to_surface,
    contrast_to_tone,
    fit_background,
    frame,
    frame_tone,
    is_all_noise,
    is_vivid,
    median,
    noise_of,
    strips,
)

# Distances and contrasts are on the scale 0–255, all others are shares.
_SEARCH_SIDE = 1024  # px; a larger raster is reduced before its background is sought
_TRACE_SIDE = 256  # px; twice the canonical size, so that tracing costs the same for every raster
_STRIP_ROWS = 16
_MIN_CONTRAST = 40.0  # of the strongest line
_MIN_FOREGROUND = 24.0  # of every line
_MAX_COVERAGE = 0.45  # of the box around the lines; more is no line drawing but a silhouette
_MAX_LINE_WIDTH = 0.13  # of the longer side
_MAX_COLOURED_LINE_WIDTH = 0.06  # the limit from a chroma of 40
_MAX_TINTED_BACKGROUND = 0.06
# Contrast that at most 1 % of the background may exceed, half of that in uneven light: a share of the strongest line's,
# but no less than camera noise of a deviation of 4 as the largest value in a block of pixels.
_MAX_TEXTURE = 0.15
_LEAST_TEXTURE = 18.0
_MAX_TEXTURED = 0.01
_MAX_FOREIGN_COLOUR = 0.02
_FOREIGN_DISTANCE = 22.0
_PEN_DISTANCE = 40.0
_MAX_OTHER_PENS = 0.25  # of the lines: some may have another pen's colour

Polyline = list[list[float]]


def trace_linework(pixels: Pixels) -> list[Polyline] | None:
    """Returns the lines of a line drawing, or None if the raster is none.

    A line drawing has a background of one tone, which light may vary smoothly, and thin lines that stand out from it,
    darker or lighter. Solid regions much thicker than the lines keep their contour.

    Takes [H, W, 3] uint8 RGB and returns polylines `[[x…], [y…]]` in an arbitrary unit.
    """
    low, high = _block_extremes(pixels, _SEARCH_SIDE)
    tone, is_even = frame_tone(low, high)
    if is_vivid(tone):
        return None
    if is_even:
        contrast = contrast_to_tone(low, high, tone)
    else:
        background = fit_background(low, high)
        if is_all_noise(low, high, background):
            return None
        contrast = contrast_to_surface(low, high, background.surface)
    # The cheap tests come first: most photographs fail them.
    peak = float(contrast.max())
    if peak < _MIN_CONTRAST:
        return None
    noise = noise_of(contrast)
    threshold = max(_MIN_FOREGROUND, FOREGROUND_NOISE * noise, 0.35 * peak)
    if threshold >= MAX_THRESHOLD * peak:
        return None
    foreground = _without_specks(contrast > threshold)
    rows, columns = np.flatnonzero(foreground.any(axis=1)), np.flatnonzero(foreground.any(axis=0))
    if not len(rows):
        return None
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    if foreground[box].mean() > _MAX_COVERAGE and min(foreground[box].shape) > 0.1 * max(foreground[box].shape):
        return None
    soft = _grown(_grown(_grown(foreground)))  # with three pixels of soft edge
    textured = (contrast > max(_LEAST_TEXTURE, _MAX_TEXTURE * peak)) & ~soft
    if int(textured.sum()) > _MAX_TEXTURED * int((~soft).sum()):
        return None
    # Of the box: neither background nor foreground nor its soft edge.
    tinted = (contrast[box] > max(14.0, FOREGROUND_NOISE * noise, 0.35 * threshold)) & ~soft[box]
    if float(tinted.mean()) > _MAX_TINTED_BACKGROUND:
        return None
    if _has_other_colours(low, high, foreground, box):
        return None
    mask = _at_trace_scale(np.where(foreground, contrast, np.minimum(contrast, threshold))[box], threshold)
    colour_spread, chroma = _foreground_colour(low, high, contrast, foreground)
    skeleton, line_width = _skeleton(mask)
    limit = _MAX_LINE_WIDTH if chroma < 40 else _MAX_COLOURED_LINE_WIDTH
    if line_width > limit * _TRACE_SIDE or colour_spread > 45:
        return None
    return _polylines(skeleton, min_spur=0.6 * line_width)


def _block_extremes(pixels: Pixels, side: int) -> tuple[Pixels, Pixels]:
    """Returns the smallest and largest value per channel of each block: thin lines survive the reduction."""
    factor = -(-max(pixels.shape[:2]) // side)
    if factor == 1:
        return pixels, pixels
    return _reduced(pixels, factor, np.minimum), _reduced(pixels, factor, np.maximum)


def _reduced(pixels: Pixels, factor: int, extreme: np.ufunc) -> Pixels:
    """Returns `extreme` over blocks of `factor` × `factor`, a few rows at a time, to stay in a processor's cache."""
    height, width = pixels.shape[:2]
    blocks = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    for top in range(0, len(blocks), _STRIP_ROWS):
        part = pixels[top * factor : (top + _STRIP_ROWS) * factor]
        rows = part[::factor].copy()
        for offset in range(1, factor):
            below = part[offset::factor]
            extreme(rows[: len(below)], below, out=rows[: len(below)])
        # Over all columns, of which every `factor`-th is used: NumPy is slow on runs of three.
        line = rows.reshape(len(rows), -1)
        widened = line.copy()
        for offset in range(3, 3 * factor, 3):
            extreme(widened[:, :-offset], line[:, offset:], out=widened[:, :-offset])
        blocks[top : top + _STRIP_ROWS] = widened.reshape(rows.shape)[:, ::factor]
    return blocks


def _without_specks(foreground: Mask) -> Mask:
    labels, count = ndimage.label(foreground, structure=np.ones((3, 3)))
    if count < 2:
        return foreground
    labelled = labels[foreground]
    area = np.bincount(labelled)
    keep = area >= min(6, 0.05 * area.max())  # a drawing may consist of dots
    large = foreground.copy()
    large[foreground] = keep[labelled]
    return large


def _grown(foreground: Mask) -> Mask:
    """Returns `ndimage.binary_dilation`, seven times as fast."""
    grown = foreground.copy()
    grown[1:] |= foreground[:-1]
    grown[:-1] |= foreground[1:]
    grown[:, 1:] |= foreground[:, :-1]
    grown[:, :-1] |= foreground[:, 1:]
    return grown


def _has_other_colours(low: Pixels, high: Pixels, foreground: Mask, box: tuple[slice, slice]) -> bool:
    """Returns whether the box holds hues that are no mixture of one background and one pen, as filled areas do.

    Hue is relative to brightness, so that shade on a coloured background does not count. The background's hue is that
    of the raster's border, because a fitted surface bends to large fills.
    """
    edge = max(1, round(0.02 * max(foreground.shape)))
    border = ~frame(foreground[..., None], edge)[:, 0]
    if bool(border.any()):
        backgrounds = _hue(frame(low, edge)[border], frame(high, edge)[border])
    else:
        backgrounds = _hue(low[~foreground], high[~foreground])
    background = np.array([median(channel) for channel in backgrounds])
    low, high, foreground = low[box], high[box], foreground[box]
    core = foreground & ndimage.binary_erosion(foreground)  # edges are mixtures of pen and background
    core = core if bool(core.any()) else foreground
    pens = _hue(low[core], high[core])
    pen = np.array([median(channel) for channel in pens])
    if float((np.abs(pens - pen[:, None]).max(axis=0) > _PEN_DISTANCE).mean()) > _MAX_OTHER_PENS:
        return True
    along = pen - background
    length = float(along @ along)
    foreign = 0
    for rows in strips(low):
        inside = _hue(low[rows], high[rows]).reshape(3, -1) - background[:, None]
        if length > 1:
            # Fortran order: rounding of the product depends on the layout, and may decide at a threshold.
            share = np.clip(np.tensordot(along, inside.copy("F"), 1) / np.float32(length), 0, 1)
            inside -= along[:, None] * share
        foreign += int((np.abs(inside).max(axis=0) > _FOREIGN_DISTANCE).sum())
    return foreign / foreground.size > _MAX_FOREIGN_COLOUR


def _hue(low: Pixels, high: Pixels) -> Map:
    """Returns the difference of each tone from grey at one brightness: […, 3] → [3, …], channels contiguous."""
    middle = (np.moveaxis(low, -1, 0).astype(np.float32, "C") + np.moveaxis(high, -1, 0)) / 2
    mean = (middle[0] + middle[1] + middle[2]) / 3
    hue: Map = (middle - mean) * (128 / np.maximum(mean, 64))
    return hue


def _at_trace_scale(contrast: Map, threshold: float) -> Mask:
    """Returns a foreground mask whose longer side is `_TRACE_SIDE`, with a border of background."""
    height, width = contrast.shape
    scale = _TRACE_SIDE / max(height, width)
    if scale < 1:
        contrast = ndimage.maximum_filter(contrast, size=int(np.ceil(1 / scale)))  # keeps thin lines
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    padded = np.pad(contrast, 2)
    resized = Image.fromarray(padded).resize(
        (size[0] + round(4 * scale), size[1] + round(4 * scale)), Image.Resampling.BILINEAR
    )
    return np.pad(np.asarray(resized) > threshold, 2)


def _foreground_colour(low: Pixels, high: Pixels, contrast: Map, foreground: Mask) -> tuple[float, float]:
    """Returns the spread of the foreground's colour and its median chroma, from its core, both in 0–255."""
    core = foreground & (contrast >= 0.75 * np.quantile(contrast[foreground], 0.9))
    darker = low[core].astype(np.float32)
    lighter = darker if low is high else high[core].astype(np.float32)
    colour = darker if darker.mean() <= 255 - lighter.mean() else lighter  # dark lines or light ones
    spread = float(np.abs(colour - np.median(colour, axis=0)).mean())
    red, green, blue = np.ascontiguousarray(colour.T)
    largest, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    chroma = float(median(largest - least))
    return spread, chroma


def _skeleton(foreground: Mask) -> tuple[Mask, float]:
    """Returns the skeleton, with contours in place of solid regions, and the mean line width in px."""
    skeleton: Mask = skeletonize(foreground)
    depth = ndimage.distance_transform_edt(foreground)
    half = float(np.median(depth[skeleton]))
    line_width = float(foreground.sum()) / max(1, int(skeleton.sum()))
    solid = depth > max(2.5 * half, 5.0)
    if solid.any():  # a filled region has a meaningless skeleton: its contour is traced
        shell = foreground & ~ndimage.binary_dilation(solid, iterations=max(1, round(0.5 * half)), mask=depth > half)
        skeleton = skeletonize(shell)
    return skeleton, line_width


_Pixel = tuple[int, int]
_Links = dict[_Pixel, list[_Pixel]]


def _polylines(skeleton: Mask, min_spur: float) -> list[Polyline]:
    """Follows a skeleton along smoothed polylines and drops the short spurs that thinning leaves."""
    links = _links({(int(y), int(x)) for y, x in np.argwhere(skeleton)})
    walked: set[tuple[_Pixel, _Pixel]] = set()
    lines: list[list[_Pixel]] = [[pixel] for pixel, linked in links.items() if not linked]
    ends = [pixel for pixel, linked in links.items() if len(linked) not in (0, 2)]
    for start in ends + list(links):  # open lines first: what then remains unwalked are closed loops
        closed_only = len(links[start]) == 2
        if closed_only and any((start, step) in walked for step in links[start]):
            continue
        for step in links[start][: 1 if closed_only else None]:
            if (start, step) not in walked:
                lines.append(_walk(start, step, links, walked))
    long = [line for line in lines if not _is_spur(line, links, min_spur)]
    return [_smoothed(line) for line in long or lines]  # a drawing of spurs alone keeps them


def _links(pixels: set[_Pixel]) -> _Links:
    """Returns the neighbours of each pixel; a diagonal counts only if no common neighbour bridges it."""
    links: _Links = {}
    for y, x in sorted(pixels):  # in a fixed order, so that equal rasters give equal lines
        near = [(y + dy, x + dx) for dy, dx in ((-1, 0), (0, -1), (0, 1), (1, 0)) if (y + dy, x + dx) in pixels]
        for dy, dx in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            bridged = (y + dy, x) in pixels or (y, x + dx) in pixels
            if (y + dy, x + dx) in pixels and not bridged:
                near.append((y + dy, x + dx))
        links[y, x] = near
    return links


def _walk(start: _Pixel, step: _Pixel, links: _Links, walked: set[tuple[_Pixel, _Pixel]]) -> list[_Pixel]:
    line = [start]
    here = step
    while True:
        walked.update(((line[-1], here), (here, line[-1])))
        line.append(here)
        ahead = [pixel for pixel in links[here] if (here, pixel) not in walked]
        if len(links[here]) != 2 or here == start or not ahead:
            return line
        here = ahead[0]


def _is_spur(line: list[_Pixel], links: _Links, min_spur: float) -> bool:
    degrees = sorted((len(links[line[0]]), len(links[line[-1]])))
    return degrees[0] == 1 and degrees[1] > 2 and len(line) < min_spur


def _smoothed(line: list[_Pixel], window: int = 5) -> Polyline:
    points = np.asarray(line, dtype=np.float64)
    if len(points) > 3:
        is_loop = line[0] == line[-1]
        ends = points[[0, -1]].copy()
        points = ndimage.uniform_filter1d(  # thinning leaves steps of a pixel
            points[:-1] if is_loop else points, window, axis=0, mode="wrap" if is_loop else "nearest"
        )
        if is_loop:
            points = np.concatenate([points, points[:1]])
        else:
            points[[0, -1]] = ends
    return [points[:, 1].tolist(), points[:, 0].tolist()]
