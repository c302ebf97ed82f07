"""Finding the lines of a drawn raster: paper, ink, skeleton, polylines.

NumPy in, polylines out; `models.transforms` redraws them at the canonical line width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.morphology import skeletonize

_SEARCH_SIDE = 1024
_TRACE_SIDE = 256
_MIN_CONTRAST = 40.0
_MIN_INK = 24.0
_INK_NOISE = 4.0
_MAX_THRESHOLD = 0.8
_SAMPLE_MARGIN = 0.9
_MAX_COVERAGE = 0.45
_MAX_LINE_WIDTH = 0.13
_MAX_COLOURED_LINE_WIDTH = 0.06
_MAX_TINTED_PAPER = 0.06
_MAX_FOREIGN_COLOUR = 0.02
_FOREIGN_DISTANCE = 22.0
_PEN_DISTANCE = 40.0
_PAPER_SAMPLES = 128
_STRIP_PIXELS = 1 << 15
_CUBIC = [4 * i + j for i in range(4) for j in range(4 - i)]
"""Of the 16 products of four powers each way, those of degree three or less."""
_MAX_OTHER_PENS = 0.25
_EVEN_TONE = 4.0
_EVEN_FRAME = 0.75
_VIVID_CHROMA = 90.0
_VIVID_BRIGHTNESS = 190.0
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)

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
    tone, is_even = _frame_tone(low, high)
    if _is_vivid(tone):
        return None
    if is_even:
        contrast = _contrast_to_tone(low, high, tone)
    else:
        paper = _fitted_paper(low, high)
        if _is_all_noise(low, high, paper):
            return None
        contrast = _contrast_to_paper(low, high, paper.surface)
    peak = float(contrast.max())
    if peak < _MIN_CONTRAST:
        return None
    noise = _noise(contrast)
    threshold = max(_MIN_INK, _INK_NOISE * noise, 0.35 * peak)
    if threshold >= _MAX_THRESHOLD * peak:
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
    """`extreme` over blocks of `factor` × `factor`; slice by slice, which is ten times as fast as `reduceat`."""
    rows = pixels[::factor].copy()
    for offset in range(1, factor):
        part = pixels[offset::factor]
        extreme(rows[: len(part)], part, out=rows[: len(part)])
    blocks = rows[:, ::factor].copy()
    for offset in range(1, factor):
        part = rows[:, offset::factor]
        extreme(blocks[:, : part.shape[1]], part, out=blocks[:, : part.shape[1]])
    return blocks


def _frame_tone(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> tuple[NDArray[np.float32], bool]:
    """The median tone of the raster's outermost pixels, [3], and whether all have it: no camera has seen those."""
    edge = max(1, round(0.01 * max(low.shape[:2])))
    darkest, lightest = _frame(low, edge).astype(np.float32), _frame(high, edge).astype(np.float32)
    tone: NDArray[np.float32] = np.median((darkest + lightest) / 2, axis=0)
    is_even = np.maximum(tone - darkest, lightest - tone).max(axis=1) <= _EVEN_TONE
    return tone, bool(is_even.mean() >= _EVEN_FRAME)


def _frame(pixels: NDArray[np.uint8], edge: int) -> NDArray[np.uint8]:
    """The outermost `edge` pixels on every side, [N, 3]."""
    if min(pixels.shape[:2]) <= 2 * edge:
        return pixels.reshape(-1, 3)
    sides = (pixels[:edge], pixels[-edge:], pixels[edge:-edge, :edge], pixels[edge:-edge, -edge:])
    return np.concatenate([side.reshape(-1, 3) for side in sides])


def _is_vivid(tone: NDArray[np.float32]) -> bool:
    """Whether a tone is a colour that nobody draws on: the ground of a sign or a button."""
    return float(np.ptp(tone)) > _VIVID_CHROMA and float(tone @ _LUMINANCE) < _VIVID_BRIGHTNESS


def _contrast_to_tone(
    low: NDArray[np.uint8], high: NDArray[np.uint8], tone: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Largest channel difference to one tone."""
    contrast = np.zeros(low.shape[:2], np.float32)
    for rows in _strips(low):
        for channel in range(3):
            _widen(contrast[rows], low[rows, :, channel], high[rows, :, channel], tone[channel])
    return contrast


@dataclass(frozen=True, slots=True)
class _Paper:
    """A cubic surface a channel, fitted robustly to the paper.

    Attributes:
        surface: [16, 3], a weight for each product of powers.
        tones: [S, 3], of the surface at the sampled pixels.
        contrast: [S], of the middle of the sampled pixels to it: never more than theirs.
    """

    surface: NDArray[np.float64]
    tones: NDArray[np.float64]
    contrast: NDArray[np.float64]


def _fitted_paper(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> _Paper:
    height, width = low.shape[:2]
    rows = np.linspace(0, height - 1, min(height, _PAPER_SAMPLES)).astype(int)
    columns = np.linspace(0, width - 1, min(width, _PAPER_SAMPLES)).astype(int)
    middle = (low[np.ix_(rows, columns)].astype(np.float32) + high[np.ix_(rows, columns)]) / 2
    down, across = _powers(rows / height), _powers(columns / width)
    sampled = down[:, None, :, None] * across[None, :, None, :]
    terms = sampled.reshape(-1, 16)[:, _CUBIC]
    values = middle.reshape(-1, 3)
    distance = np.abs(values - np.median(values, axis=0)).max(axis=1)
    for _ in range(6):
        kept = terms * (distance <= max(8.0, float(np.quantile(distance, 0.6))))[:, None]
        # Ten unknowns: the normal equations are as exact here and ten times as fast as an SVD of all rows.
        weights, *_ = np.linalg.lstsq(kept.T @ kept, kept.T @ values, rcond=1e-12)
        distance = _largest([values[:, channel] - terms @ weights[:, channel] for channel in range(3)])
    surface = np.zeros((16, 3))
    surface[_CUBIC] = weights
    tones = np.clip(terms @ weights, 0, 255)
    return _Paper(surface, tones, np.abs(values - tones).max(axis=1))


def _is_all_noise(low: NDArray[np.uint8], high: NDArray[np.uint8], paper: _Paper) -> bool:
    """Whether a sample shows already that nothing will stand out from the noise: so end most photographs."""
    above = [int(high[..., channel].max()) - paper.tones[:, channel].min() for channel in range(3)]
    below = [paper.tones[:, channel].max() - int(low[..., channel].min()) for channel in range(3)]
    largest = max(*above, *below)
    return bool(_SAMPLE_MARGIN * _INK_NOISE * _noise(paper.contrast) >= _MAX_THRESHOLD * largest)


def _noise(contrast: NDArray[np.floating[Any]]) -> float:
    """The deviation of a normal distribution that has this median of magnitudes."""
    return 1.4826 * float(np.median(contrast))


def _contrast_to_paper(
    low: NDArray[np.uint8], high: NDArray[np.uint8], surface: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Largest channel difference to the paper's surface."""
    height, width = low.shape[:2]
    down, across = _powers(np.arange(height) / height), _powers(np.arange(width) / width)
    contrast = np.zeros((height, width), np.float32)
    for part in _strips(low):
        for channel in range(3):
            fitted = down[part] @ surface[:, channel].reshape(4, 4) @ across.T
            paper = np.clip(fitted, 0, 255, dtype=np.float32, casting="same_kind")
            _widen(contrast[part], low[part, :, channel], high[part, :, channel], paper)
    return contrast


def _strips(pixels: NDArray[np.uint8]) -> list[slice]:
    """Rows in parts small enough for a processor's cache."""
    count = max(1, _STRIP_PIXELS // pixels.shape[1])
    return [slice(top, top + count) for top in range(0, pixels.shape[0], count)]


def _widen(
    contrast: NDArray[np.float32],
    low: NDArray[np.uint8],
    high: NDArray[np.uint8],
    paper: NDArray[np.float32] | np.float32,
) -> None:
    """Raises `contrast` [h, w] to one channel's larger difference to the paper."""
    np.maximum(contrast, high - paper, out=contrast)
    np.maximum(contrast, paper - low, out=contrast)


def _powers(along: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N] positions in [0, 1] → [N, 4]: powers 0 to 3 about the middle."""
    return np.vander(along - 0.5, 4, increasing=True)


def _largest(differences: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The largest magnitude at each place."""
    first, second, third = (np.abs(difference) for difference in differences)
    return np.asarray(np.maximum(np.maximum(first, second), third))


def _without_specks(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, count = ndimage.label(ink, structure=np.ones((3, 3)))
    if count < 2:
        return ink
    area = np.bincount(labels.ravel())
    area[0] = 0
    keep = area >= min(6, 0.05 * area.max())
    keep[0] = False
    return np.asarray(keep[labels], dtype=np.bool_)


def _tinted_share(contrast: NDArray[np.float32], ink: NDArray[np.bool_], threshold: float, noise: float) -> float:
    """Share of the drawing's box that is neither paper nor ink nor ink's soft edge."""
    near = ndimage.binary_dilation(ink, iterations=3)
    tinted = (contrast > max(14.0, 4 * noise, 0.35 * threshold)) & ~near
    return float(tinted.mean())


def _has_other_colours(
    low: NDArray[np.uint8], high: NDArray[np.uint8], ink: NDArray[np.bool_], box: tuple[slice, slice]
) -> bool:
    """Whether the drawing's box holds hues that are no mixture of one paper and one pen: the fills of a picture.

    Hue is taken relative to brightness, so that shade on coloured paper does not count, and the paper's from the
    border of the raster, since a fitted surface bends to large fills.
    """
    middle = (low.astype(np.float32) + high) / 2
    mean = middle.mean(axis=2, keepdims=True)
    hue = (middle - mean) * (128 / np.maximum(mean, 64))
    edge = max(1, round(0.02 * max(ink.shape)))
    border = ~ink
    border[edge:-edge, edge:-edge] = False
    paper = np.median(hue[border if bool(border.any()) else ~ink], axis=0)
    core = ink & ndimage.binary_erosion(ink)
    pens = hue[core if bool(core.any()) else ink]
    pen = np.median(pens, axis=0)
    if float((np.abs(pens - pen).max(axis=1) > _PEN_DISTANCE).mean()) > _MAX_OTHER_PENS:
        return True
    along = pen - paper
    length = float(along @ along)
    inside = hue[box].reshape(-1, 3) - paper
    share = np.clip(inside @ along / length, 0, 1) if length > 1 else np.zeros(len(inside), dtype=np.float32)
    distance = np.abs(inside - share[:, None] * along).max(axis=1)
    return float((distance > _FOREIGN_DISTANCE).mean()) > _MAX_FOREIGN_COLOUR


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
    lighter = high[core].astype(np.float32)
    colour = darker if darker.mean() <= 255 - lighter.mean() else lighter
    spread = float(np.abs(colour - np.median(colour, axis=0)).mean())
    chroma = float(np.median(colour.max(axis=1) - colour.min(axis=1)))
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
