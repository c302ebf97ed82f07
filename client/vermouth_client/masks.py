"""Masks as NumPy arrays, and views of results; needs the extra `images` (NumPy and Pillow)."""

import colorsys
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    Array = np.ndarray[Any, Any]


def decode_rle(size: tuple[int, int], counts: str) -> "Array":
    """The mask `[H, W]` bool of COCO's compressed run-length encoding (`rleFrString` in pycocotools' maskApi.c)."""
    import numpy as np

    runs: list[int] = []
    value = shift = 0
    for byte in counts.encode():
        bits = byte - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))  # from the fourth on a run is a difference
        value = shift = 0
    height, width = size
    pixels: Array = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return pixels.reshape(width, height).T  # the runs go down the columns


def overlay(image: bytes, labels: "Array") -> "Image.Image":
    """An image under coloured labels `[H, W]`, 0 of them unseen; on white where the image is empty or unreadable."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    height, width = labels.shape
    try:
        ground = ImageOps.exif_transpose(Image.open(io.BytesIO(image))).convert("RGB").resize((width, height))
    except UnidentifiedImageError:
        ground = Image.new("RGB", (width, height), "white")
    hues = np.array([colorsys.hsv_to_rgb(0.618 * index % 1, 0.8, 1) for index in range(256)])
    pixels: Array = np.asarray(ground, dtype=np.float32)
    mixed = np.where(labels[..., None] > 0, 0.5 * pixels + 127.5 * hues[labels], pixels)
    return Image.fromarray(mixed.astype(np.uint8))


def contact_sheet(images: Iterable[bytes], captions: Sequence[str], *, size: int = 160) -> "Image.Image":
    """Images in rows of five, each over its caption."""
    from PIL import Image, ImageDraw

    columns = min(5, max(1, len(captions)))
    sheet = Image.new("RGB", (columns * size, -(-len(captions) // columns) * (size + 16)), "white")
    for at, (data, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = at % columns * size, at // columns * (size + 16)
        image = Image.open(io.BytesIO(data)).convert("RGB")
        image.thumbnail((size, size))
        sheet.paste(image, (x, y))
        ImageDraw.Draw(sheet).text((x + 2, y + size + 2), caption[: size // 6], fill="black")
    return sheet
