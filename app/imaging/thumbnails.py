"""Small WebP versions of stored pictures."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.domain import Limits, Picture
from app.errors import ServiceError
from app.imaging.sources import EncodedImage, ImageDecoder, ImageSource, PixelBudget


class Thumbnails:
    """Decodes and shrinks in the decoder's pool."""

    def __init__(self, decoder: ImageDecoder, limits: Limits) -> None:
        self._decoder = decoder
        self._limits = limits

    async def make(self, data: bytes, size: int) -> bytes:
        """A WebP whose longest side is at most `size` px.

        Raises:
            As `ImageDecoder.convert_many`.
        """
        budget = PixelBudget(max_pixels=self._limits.max_image_pixels, max_images=1)

        def shrink(_source: ImageSource, picture: Picture) -> bytes:
            return _webp(picture.pixels, size)

        (outcome,) = await self._decoder.convert_many([EncodedImage(data=data)], budget, shrink)
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome


def _webp(pixels: NDArray[np.uint8], size: int) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=2.0)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=85, method=2)
    return out.getvalue()
