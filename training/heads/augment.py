"""Makes clean outlines look drawn by a person, and drawings look like other people's.

Proportions drift, lines wobble, curves become chords, small parts are missing and ends do not meet. Everything works
on polylines; `models.transforms.render_strokes` renders them as canonical sketches afterwards.
"""

import numpy as np
from numpy.typing import NDArray
from skimage.feature import canny
from skimage.measure import approximate_polygon

from models.sketch.linework import trace_linework

Lines = list[NDArray[np.float64]]  # polylines, [P, 2] float64 each
_LEAST_EDGE_PIXELS = 40
_LEAST_LENGTH = 0.06  # of an edge, as a share of the drawing's longer side


def to_lines(strokes: list[list[list[float]]]) -> Lines:
    """Strokes `[[x…], [y…]]` as [P, 2] arrays, scaled so that the longer side of their box is 1."""
    lines = [np.stack([np.asarray(s[0], float), np.asarray(s[1], float)], axis=1) for s in strokes if len(s[0])]
    every = np.concatenate(lines)
    low, extent = every.min(axis=0), float(np.ptp(every, axis=0).max()) or 1.0
    return [(line - low) / extent for line in lines]


def to_strokes(lines: Lines) -> list[list[list[float]]]:
    """[P, 2] arrays as strokes `[[x…], [y…]]`."""
    return [[line[:, 0].tolist(), line[:, 1].tolist()] for line in lines]


def redraw(lines: Lines, rng: np.random.Generator, *, strength: float) -> Lines:
    """Another person's version of the same drawing.

    Args:
        lines: unit-sized polylines.
        rng: drawn from in a fixed order: the same state gives the same drawing.
        strength: 0 leaves the drawing as it is; 1 is a careless hand.
    """
    if strength <= 0:
        return lines  # draws nothing, so the next strength starts from the same state
    out = _forget(lines, rng, 0.15 * strength)
    out = [_resample(line) for line in out]
    out = _reproportion(out, rng, strength)
    out = [_wobble(line, rng, 0.018 * strength) for line in out]
    tolerance = float(rng.uniform(0.004, 0.004 + 0.022 * strength))
    out = [approximate_polygon(line, tolerance) if len(line) > 2 else line for line in out]
    return [_misjoin(line, rng, 0.025 * strength) for line in out]


def edge_lines(pixels: NDArray[np.uint8], sigma: float) -> Lines | None:
    """The edges of an image [H, W, 3] uint8 RGB as unit-sized polylines, or None when there are too few.

    `sigma` is the width of Canny's smoothing, px: a larger one leaves only the main contours.
    """
    edges = np.zeros(pixels.shape[:2], dtype=bool)
    # By channel: colours of equal brightness have an edge between them too.
    for channel in range(3):
        # Padded with white, so that what touches the border has an edge there.
        edges |= canny(np.pad(pixels[..., channel], 2, constant_values=255) / 255.0, sigma=sigma)[2:-2, 2:-2]
    if edges.sum() < _LEAST_EDGE_PIXELS:
        return None
    strokes = trace_linework(np.repeat(np.where(edges, 0, 255).astype(np.uint8)[..., None], 3, axis=2))
    long_enough = [line for line in to_lines(strokes) if _length(line) > _LEAST_LENGTH] if strokes else []
    return long_enough or None


def _forget(lines: Lines, rng: np.random.Generator, share: float) -> Lines:
    """Drop some strokes, the short ones most likely, the longest never."""
    if len(lines) < 3:
        return lines
    lengths = np.array([_length(line) for line in lines])
    odds = 2 * share * (1 - lengths / lengths.max())  # of evenly spread lengths, about `share` on average
    remains = rng.random(len(lines)) >= odds
    remains[int(lengths.argmax())] = True
    return [line for line, is_left in zip(lines, remains, strict=True) if is_left]


def _resample(line: NDArray[np.float64], spacing: float = 0.02) -> NDArray[np.float64]:
    """Points at equal distances along the line, so that a wobble bends straight parts too."""
    steps = np.hypot(*np.diff(line, axis=0).T) if len(line) > 1 else np.zeros(0)
    total = float(steps.sum())
    if total < spacing:
        return line
    along = np.concatenate([[0.0], np.cumsum(steps)])
    at = np.linspace(0, total, max(2, round(total / spacing)))
    return np.stack([np.interp(at, along, line[:, 0]), np.interp(at, along, line[:, 1])], axis=1)


def _reproportion(lines: Lines, rng: np.random.Generator, strength: float) -> Lines:
    """Rotate, stretch, shear and warp all strokes alike, then move each a little."""
    angle = rng.normal(0, 0.12 * strength)
    stretch = np.exp(rng.normal(0, 0.14 * strength, 2))
    shear = rng.normal(0, 0.1 * strength)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) @ np.diag(stretch)
    bend = rng.normal(0, 0.05 * strength, (2, 2))
    phase = rng.uniform(0, 2 * np.pi, (2, 2))
    mirrored = rng.random() < 0.5  # the drawing as a whole
    out = []
    for line in lines:
        centred = line - 0.5
        if mirrored:
            centred = centred * np.array([-1.0, 1.0])
        warp = np.stack([np.sin(np.pi * centred * 1.5 + phase[axis]) @ bend[axis] for axis in range(2)], axis=1)
        out.append(centred @ matrix.T + warp + rng.normal(0, 0.012 * strength, 2))
    return out


def _wobble(line: NDArray[np.float64], rng: np.random.Generator, amplitude: float) -> NDArray[np.float64]:
    """A smooth random displacement along the line."""
    count = len(line)
    if count < 4:
        return line
    knots = max(3, count // 8)
    at = np.linspace(0, count - 1, knots)
    shift = [np.interp(np.arange(count), at, rng.normal(0, amplitude, knots)) for _ in range(2)]
    return line + np.stack(shift, axis=1)


def _misjoin(line: NDArray[np.float64], rng: np.random.Generator, reach: float) -> NDArray[np.float64]:
    """Move both ends along the line's direction: gaps and overshoots."""
    if len(line) < 2:
        return line
    out = line.copy()
    for end, inner in ((0, 1), (-1, -2)):
        direction = line[end] - line[inner]
        norm = float(np.hypot(*direction))
        if norm > 0:
            out[end] += direction / norm * rng.normal(0, reach)
    return out


def _length(line: NDArray[np.float64]) -> float:
    return float(np.hypot(*np.diff(line, axis=0).T).sum()) if len(line) > 1 else 0.0
