"""However it is drawn: the validation drawings as rasters that people really send."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from training.data.dataset import DrawingRecord, Strokes

VERSION = "drawn-1"
"""Of the rasters; evaluations keep their canonical forms under it."""
CANVAS_SIDE = 256
"""Side of the canvas on which line widths are told, px."""
_SUPERSAMPLING = 4
_MARGIN = 16

Draw = Callable[[Strokes, np.random.Generator], NDArray[np.uint8]]


def drawn(strokes: Strokes, *, side: int = CANVAS_SIDE, box: tuple[int, int, int], width: float) -> NDArray[np.float32]:
    """Strokes with a round pen, antialiased.

    Args:
        strokes: `[[x…], [y…]]` in 0–255.
        side: of the canvas, px.
        box: left, top and side of the square that 0–255 is mapped to, px.
        width: of the line, px.

    Returns:
        [side, side] float32: ink, 0 to 1.
    """
    left, top, extent = (value * _SUPERSAMPLING for value in box)
    canvas = Image.new("L", (side * _SUPERSAMPLING,) * 2)
    pen = ImageDraw.Draw(canvas)
    thick = max(1, round(width * _SUPERSAMPLING))
    for xs, ys in strokes:
        points = [(left + x / 255 * extent, top + y / 255 * extent) for x, y in zip(xs, ys, strict=True)]
        if len(points) > 1:
            pen.line(points, fill=255, width=thick, joint="curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=255)
    small = canvas.resize((side, side), Image.Resampling.BOX)
    return np.asarray(np.asarray(small) / 255, dtype=np.float32)


def variants() -> Mapping[str, Draw]:
    """Ways of drawing by name; `plain` is what the others are held against."""
    whole = (_MARGIN, _MARGIN, CANVAS_SIDE - 2 * _MARGIN)

    def lines(width: float) -> Draw:
        return lambda strokes, _rng: on_paper(drawn(strokes, box=whole, width=width))

    def in_a_corner(strokes: Strokes, rng: np.random.Generator) -> NDArray[np.uint8]:
        side = 3 * CANVAS_SIDE
        left, top = (int(v) for v in rng.choice([_MARGIN, side - CANVAS_SIDE + _MARGIN], 2))
        return on_paper(drawn(strokes, side=side, box=(left, top, CANVAS_SIDE - 2 * _MARGIN), width=3))

    def small(strokes: Strokes, rng: np.random.Generator) -> NDArray[np.uint8]:
        extent = round(0.3 * whole[2])
        left, top = (int(v) for v in rng.integers(4, CANVAS_SIDE - extent - 4, 2))
        return on_paper(drawn(strokes, box=(left, top, extent), width=1.5))

    return {
        "plain": lines(3),
        "in a corner": in_a_corner,
        "scaled × 0.3": small,
        "1 px lines": lines(1),
        "6 px lines": lines(6),
        "12 px lines": lines(12),
        "white on black": lambda strokes, _rng: 255 - on_paper(drawn(strokes, box=whole, width=3)),
        "photographed": lambda strokes, rng: photographed(drawn(strokes, box=whole, width=3), rng),
    }


def on_paper(ink: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Black ink on white: [H, W] float32 → [H, W, 3] uint8."""
    return np.repeat(np.round(255 * (1 - ink)).astype(np.uint8)[..., None], 3, axis=2)


def photographed(ink: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A pen on grey paper in uneven light, slightly soft and noisy: [H, W] float32 → [H, W, 3] uint8."""
    height, width = ink.shape
    soft = Image.fromarray((255 * ink).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6))
    y, x = np.mgrid[:height, :width] / max(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 - rng.uniform(0.25, 0.45) * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) + 0.5)
    paper = rng.uniform(170, 215) + rng.normal(0, 4, 3)
    pen = rng.uniform(20, 60) + rng.normal(0, 6, 3)
    coverage = np.asarray(soft, dtype=np.float64)[..., None] / 255
    photo = (paper + (pen - paper) * coverage) * light[..., None] + rng.normal(0, 3, (height, width, 1))
    return np.asarray(np.clip(np.round(photo), 0, 255), dtype=np.uint8)


def rasters(drawings: list[DrawingRecord], draw: Draw) -> list[NDArray[np.uint8]]:
    """Every drawing in one way; the same every time."""
    return [draw(drawing.strokes, np.random.default_rng([7, number])) for number, drawing in enumerate(drawings)]
