"""Line drawings, and the styles in which they are sent."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Pixels = NDArray[np.uint8]
Lines = Sequence[Sequence[Sequence[float]]]

HOUSE: Lines = [
    [[20, 20, 200, 200, 20], [110, 230, 230, 110, 110]],
    [[10, 110, 210], [110, 20, 110]],
    [[90, 90, 130, 130], [230, 160, 160, 230]],
]
FISH: Lines = [
    [[10, 60, 120, 180, 240, 180, 120, 60, 10], [80, 40, 25, 40, 80, 120, 135, 120, 80]],
    [[240, 290, 290, 240], [80, 40, 120, 80]],
    [[50, 58, 50], [70, 74, 78]],
]
SPIRAL: Lines = [
    [
        [100 + 3 * t * np.cos(t) for t in np.linspace(1, 25, 150)],
        [100 + 3 * t * np.sin(t) for t in np.linspace(1, 25, 150)],
    ]
]


def raster(
    strokes: Lines,
    *,
    side: int = 400,
    scale: float = 1.2,
    offset: tuple[float, float] = (25, 25),
    line_width: int = 4,
    foreground: tuple[int, int, int] = (0, 0, 0),
    background: tuple[int, int, int] = (255, 255, 255),
) -> Pixels:
    """Strokes drawn at twice the size, and reduced for soft edges."""
    image = Image.new("RGB", (2 * side, 2 * side), background)
    draw = ImageDraw.Draw(image)
    for xs, ys, *_ in strokes:
        points = [(2 * (x * scale + offset[0]), 2 * (y * scale + offset[1])) for x, y in zip(xs, ys, strict=True)]
        draw.line(points, fill=foreground, width=2 * line_width, joint="curve")
        for x, y in (points[0], points[-1]):
            draw.ellipse((x - line_width, y - line_width, x + line_width, y + line_width), fill=foreground)
    return np.asarray(image.reduce(2), dtype=np.uint8)


def _uneven(pixels: Pixels, *, darkest: float = 0.6, deviation: float = 3.0) -> Pixels:
    """A photograph of a drawing: light falls off towards a corner, and the camera adds noise."""
    height, width = pixels.shape[:2]
    light = np.linspace(darkest, 1, height)[:, None] * np.linspace(1, 0.85, width)[None, :]
    noise = deviation * np.random.default_rng(0).standard_normal(pixels.shape, np.float32)
    return np.clip(pixels * light[:, :, None] + noise, 0, 255).astype(np.uint8)


def agreement(one: Pixels, other: Pixels) -> float:
    """Share of foreground pixels that lie on or beside the other's foreground."""
    first, second = one < 128, other < 128
    beside_first, beside_second = ndimage.binary_dilation(first), ndimage.binary_dilation(second)
    return float(((first & beside_second).sum() + (second & beside_first).sum()) / (first.sum() + second.sum()))


STYLES: dict[str, Callable[[Lines], Pixels]] = {
    "plain": raster,
    "thin": lambda s: raster(s, line_width=1),
    "thick": lambda s: raster(s, line_width=10),
    "white on black": lambda s: raster(s, foreground=(255, 255, 255), background=(0, 0, 0)),
    "blue on yellow": lambda s: raster(s, foreground=(20, 30, 160), background=(240, 220, 120)),
    "pencil on grey": lambda s: raster(s, foreground=(120, 120, 120), background=(215, 215, 210), line_width=2),
    "uneven light": lambda s: _uneven(raster(s, foreground=(30, 30, 30), background=(240, 235, 225))),
    "pencil by a phone": lambda s: _uneven(
        raster(s, side=2100, scale=7, line_width=2, foreground=(145, 145, 145), background=(225, 225, 225)),
        darkest=0.95,
        deviation=4.0,
    ),
    "small in a corner": lambda s: raster(s, side=900, scale=0.35, offset=(760, 30), line_width=2),
    "large and thin": lambda s: raster(s, side=2200, scale=7, offset=(50, 50), line_width=2),
    "128 px": lambda s: raster(s, side=128, scale=0.4, offset=(5, 5), line_width=2),
}
