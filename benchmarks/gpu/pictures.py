"""Pictures and drawings of the same things: OpenMoji as it is, and its black lines alone."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from models.transforms import canonical_image, canonical_sketch

DARK = 90


def render(file: Path, count: int) -> None:
    """Write `pictures` and `drawings`, [N, 128, 128, 3] uint8 each, of about `count` emoji."""
    # Here, because a machine that is handed the file has no need of the package.
    from app.cli.demo import demo_images

    known = demo_images()
    pictures, drawings = [], []
    for each in known[:: max(1, len(known) // count)][:count]:
        with Image.open(io.BytesIO(each.render())) as opened:
            picture = opened.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        pixels = np.asarray(Image.alpha_composite(ground, picture).convert("RGB"))
        lines = np.where(pixels.max(axis=2, keepdims=True) < DARK, 0, 255).astype(np.uint8).repeat(3, axis=2)
        drawing = canonical_sketch(lines)
        if drawing is not None:
            pictures.append(canonical_image(pixels))
            drawings.append(drawing)
    np.savez_compressed(file, pictures=np.stack(pictures), drawings=np.stack(drawings))
