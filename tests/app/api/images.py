"""Small images and drawings for requests."""

import base64
import io

import numpy as np
from PIL import Image

SQUARE: dict[str, object] = {"strokes": [[[0, 100, 100, 0, 0], [0, 0, 100, 100, 0]]], "width": 128, "height": 128}
CROSS: dict[str, object] = {"strokes": [[[0, 100], [0, 100]], [[0, 100], [100, 0]]], "width": 128, "height": 128}
BAR: dict[str, object] = {"strokes": [[[0, 100], [50, 50]]], "width": 128, "height": 128}


def png(width: int = 60, height: int = 40, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    """An image with a coloured disc's worth of noise, so that it is no line drawing."""
    generator = np.random.default_rng(sum(colour))
    pixels = np.clip(generator.normal(colour, 40, (height, width, 3)), 0, 255).astype(np.uint8)
    return encoded(pixels)


def encoded(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def bomb(side: int = 8000) -> bytes:
    """A PNG of a few KB that holds side² pixels."""
    out = io.BytesIO()
    Image.new("1", (side, side)).save(out, "PNG", compress_level=9)
    return out.getvalue()


def base64_image(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}
