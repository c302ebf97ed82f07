"""Rendering of source files to one size, with their transparency."""

import io
from pathlib import Path

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

SIDE = 128


def render_file(path: Path, side: int = SIDE) -> NDArray[np.uint8]:
    """A PNG or SVG file, fitted into a square and centred.

    Returns:
        [side, side, 4] uint8 RGBA, straight alpha.
    """
    if path.suffix == ".svg":
        return fit(Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=side)))), side)
    with Image.open(path) as image:
        return fit(image, side)


def fit(image: Image.Image, side: int = SIDE) -> NDArray[np.uint8]:
    """`image` scaled to touch the square's border and centred on transparency: [side, side, 4] uint8."""
    rgba = image.convert("RGBA")
    scale = side / max(rgba.size)
    width, height = (max(1, round(length * scale)) for length in rgba.size)
    # Premultiplied resampling: colours under full transparency must not bleed into the edges.
    resized = rgba.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    canvas.paste(resized, ((side - width) // 2, (side - height) // 2))
    return np.asarray(canvas, dtype=np.uint8)


def on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 4] uint8 RGBA composited on white: [H, W, 3] uint8."""
    alpha = rgba[..., 3:].astype(np.uint16)
    colour = rgba[..., :3].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
