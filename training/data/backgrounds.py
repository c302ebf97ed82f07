"""Procedural textured backgrounds of composed scenes.

Segmentation heads are trained on `TRAINING_FAMILIES` alone; evaluation uses their textures and adds
`HELD_OUT_FAMILIES`. Every family draws its colours, scales and angles from the generator it receives. A reordered
random call changes every scene that follows.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Family = Callable[[np.random.Generator, int], NDArray[np.float32]]
"""(generator, side) → [side, side, 3] float32, about 0–255."""


def render_background(generator: np.random.Generator, side: int, families: tuple[Family, ...]) -> NDArray[np.uint8]:
    """A texture of one of `families`, picked and parametrised by `generator`: [side, side, 3] uint8 RGB."""
    texture = families[int(generator.integers(len(families)))](generator, side)
    # Grain keeps heads from taking "perfectly flat" as a sign of background.
    grain = generator.normal(0.0, generator.uniform(0.0, 6.0), (side, side, 1))
    return np.clip(texture + grain, 0, 255).astype(np.uint8)


def _noise(generator: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Value noise of several octaves between two or three colours."""
    field = _octaves(generator, side, coarsest=int(generator.integers(2, 7)), octaves=4)
    return _ramp(field, _colours(generator, 3))


def _gradient(generator: np.random.Generator, side: int) -> NDArray[np.float32]:
    """A linear or radial gradient."""
    y, x = _grid(side)
    if generator.random() < 0.5:
        field = _rotated(x, y, generator.uniform(0, 2 * np.pi))
    else:
        centre = generator.uniform(0.0, 1.0, 2)
        field = np.hypot(x - centre[0], y - centre[1])
    return _ramp(_unit(field), _colours(generator, int(generator.integers(2, 4))))


def _stripes(generator: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Straight stripes of two colours, hard or soft, at any angle."""
    y, x = _grid(side)
    phase = _rotated(x, y, generator.uniform(0, np.pi)) * generator.uniform(3, 16) * 2 * np.pi
    return _ramp(_harden(np.sin(phase), generator.uniform(1, 8)), _colours(generator, 2))


def _blobs(generator: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Flat patches of three to five colours with smooth borders."""
    colours = _colours(generator, int(generator.integers(3, 6)))
    field = _octaves(generator, side, coarsest=int(generator.integers(4, 9)), octaves=2)
    level = np.minimum((field * len(colours)).astype(np.int64), len(colours) - 1)
    return np.asarray(colours[level], dtype=np.float32)


def _fibres(generator: np.random.Generator, side: int) -> NDArray[np.float32]:
    """A light sheet with fibres, unevenly lit."""
    tone = generator.uniform(200, 252) + generator.normal(0, 6, 3)
    fibres = np.asarray(
        Image.fromarray(generator.integers(0, 256, (side, side), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(1)),
        dtype=np.float32,
    )
    light = _octaves(generator, side, coarsest=2, octaves=1) * generator.uniform(5, 45)
    grey = (fibres - fibres.mean()) * generator.uniform(0.1, 0.4) - light
    return np.asarray(tone + grey[:, :, None], dtype=np.float32)


def _dots(generator: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Discs of one colour scattered over another."""
    y, x = _grid(side)
    field = np.full((side, side), -1.0)  # positive inside a disc
    for centre_x, centre_y in generator.uniform(0, 1, (int(generator.integers(10, 50)), 2)):
        radius = generator.uniform(0.01, 0.06)
        field = np.maximum(field, 1 - np.hypot(x - centre_x, y - centre_y) / radius)
    return _ramp(_harden(field, 20.0), _colours(generator, 2))


def _checks(generator: np.random.Generator, side: int) -> NDArray[np.float32]:
    """A chessboard, turned a little."""
    y, x = _grid(side)
    angle, scale = generator.uniform(-0.6, 0.6), generator.uniform(3, 12)
    board = np.sin(_rotated(x, y, angle) * scale * np.pi) * np.sin(_rotated(x, y, angle + np.pi / 2) * scale * np.pi)
    return _ramp(_harden(board, 12.0), _colours(generator, 2))


def _rings(generator: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Concentric rings about a point, slightly warped."""
    y, x = _grid(side)
    centre = generator.uniform(-0.2, 1.2, 2)  # may lie outside the image
    warp = _octaves(generator, side, coarsest=3, octaves=1) * generator.uniform(0, 0.15)
    phase = (np.hypot(x - centre[0], y - centre[1]) + warp) * generator.uniform(4, 14) * 2 * np.pi
    return _ramp(_harden(np.sin(phase), generator.uniform(1, 6)), _colours(generator, 2))


def _bricks(generator: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Rows of bricks with mortar, each brick its own shade."""
    y, x = _grid(side)
    rows, columns = int(generator.integers(5, 14)), int(generator.integers(3, 7))
    row = (y * rows).astype(np.int64)
    shifted = x * columns + 0.5 * (row % 2)  # every other row by half a brick
    shade = generator.normal(0, 14, (rows + 1, columns + 2))[row, shifted.astype(np.int64)]
    mortar = ((y * rows) % 1 < 0.12) | (shifted % 1 < 0.06)
    brick, joint = _colours(generator, 2)
    return np.asarray(np.where(mortar[:, :, None], joint, brick + shade[:, :, None]), dtype=np.float32)


def _plain(generator: np.random.Generator, side: int) -> NDArray[np.float32]:
    """One colour, white half of the time, as product photographs have it."""
    colour = np.full(3, 255.0) if generator.random() < 0.5 else generator.uniform(0, 255, 3)
    return np.broadcast_to(colour.astype(np.float32), (side, side, 3))


TEXTURES: tuple[Family, ...] = (_noise, _gradient, _stripes, _blobs, _fibres, _dots)
TRAINING_FAMILIES: tuple[Family, ...] = (*TEXTURES, _plain, _plain)  # twice: one scene in four
EVEN_FAMILIES: tuple[Family, ...] = (_plain, _gradient)
HELD_OUT_FAMILIES: tuple[Family, ...] = (_checks, _rings, _bricks)


def _colours(generator: np.random.Generator, count: int) -> NDArray[np.float32]:
    """`count` colours around a common one: [count, 3] float32, 0–255."""
    base = generator.uniform(20, 235, 3)
    spread = generator.uniform(15, 110)
    return np.clip(base + generator.uniform(-spread, spread, (count, 3)), 0, 255).astype(np.float32)


def _octaves(generator: np.random.Generator, side: int, *, coarsest: int, octaves: int) -> NDArray[np.float64]:
    """Value noise, each octave twice as fine and half as strong: [side, side] in 0–1."""
    field = np.zeros((side, side))
    for octave in range(octaves):
        cells = coarsest * 2**octave + 1
        grid = Image.fromarray(generator.random((cells, cells)).astype(np.float32))
        field += np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64) / 2**octave
    return _unit(field)


def _grid(side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    line = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(line, line, indexing="ij")
    return y, x


def _rotated(x: NDArray[np.float64], y: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    return np.asarray(x * np.cos(angle) + y * np.sin(angle))


def _unit(field: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = float(field.min()), float(field.max())
    return np.asarray((field - low) / max(high - low, 1e-9), dtype=np.float64)  # a flat field has no range


def _harden(field: NDArray[np.float64], sharpness: float) -> NDArray[np.float64]:
    return np.clip(field * sharpness, -1, 1) / 2 + 0.5


def _ramp(field: NDArray[np.float64], colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours interpolated along a field of 0–1: [side, side, 3]."""
    position = np.clip(field, 0, 1) * (len(colours) - 1)
    below = np.minimum(position.astype(np.int64), len(colours) - 2)
    share = (position - below)[:, :, None]
    return np.asarray(colours[below] * (1 - share) + colours[below + 1] * share, dtype=np.float32)
