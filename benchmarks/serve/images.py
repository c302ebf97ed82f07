"""Distinct one-megapixel JPEGs, made from a seed."""

import io

import numpy as np
from PIL import Image

SIDE = 1000


def jpeg(seed: int) -> bytes:
    """Soft colours, some texture and sensor noise: about 180 KB, like a photograph of that size."""
    generator = np.random.default_rng(seed)
    soft = Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    pixels = np.asarray(soft.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
    noise = generator.integers(-12, 13, (SIDE // 2, SIDE // 2, 1), dtype=np.int16).repeat(2, 0).repeat(2, 1)
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
    return out.getvalue()
