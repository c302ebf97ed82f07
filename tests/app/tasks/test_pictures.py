"""What a task sees of a picture."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.domain import Limits, Picture
from app.errors import ImageTooLarge, Malformed
from app.imaging.cache import PictureCache
from app.imaging.sources import Base64Image, EncodedImage, ImageDecoder, PixelBudget
from app.runtime.telemetry import Telemetry
from app.tasks.pictures import Pictures, Prepared, Source
from models.transforms import canonical_image, cut_view, whole_view
from models.types import TaskProfile

pytestmark = pytest.mark.anyio
SIZE = 128
PROFILE = TaskProfile(resolution=SIZE, timestep=1, templates=("{}",))


def png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (210, 301, 3), dtype=np.uint8)
DRAWING = np.full((210, 301, 3), 255, np.uint8)
DRAWING[60:150, 80:84] = DRAWING[60:150, 200:204] = DRAWING[60:64, 80:204] = 0


@dataclass(frozen=True, slots=True)
class Whole:
    """All pixels of a picture."""

    pixels: NDArray[np.uint8]

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def size_bytes(self) -> int:
        return self.pixels.nbytes


@pytest.mark.parametrize("pixels", [PHOTOGRAPH, DRAWING], ids=["photograph", "drawing"])
async def test_the_shared_square_changes_no_form(pixels: NDArray[np.uint8]) -> None:
    cache, limits = PictureCache(max_bytes=1 << 24), Limits()
    decoder = ImageDecoder(limits=limits, telemetry=Telemetry(), cache=cache, workers=1)
    pictures = Pictures(decoder, None, None)  # type: ignore[arg-type]  # no item is read
    budget = PixelBudget(max_pixels=limits.max_request_pixels, max_images=limits.max_request_images)
    (prepared,) = await pictures.prepare_all([EncodedImage(data=png(pixels))], budget, PROFILE)
    decoder.stop()
    assert np.array_equal(prepared.square, canonical_image(pixels, SIZE))
    square = Picture(pixels).square(SIZE)
    assert np.array_equal(square, cut_view(pixels, whole_view(*pixels.shape[:2]), SIZE))


async def test_a_known_file_needs_no_turn_of_the_pool_and_is_charged_all_the_same() -> None:
    cache, limits = PictureCache(max_bytes=1 << 24), Limits()
    decoder = ImageDecoder(limits=limits, telemetry=Telemetry(), cache=cache, workers=1)
    pictures = Pictures(decoder, None, None)  # type: ignore[arg-type]  # no item is read
    budget = PixelBudget(max_pixels=2 * 210 * 301, max_images=9)
    (first,) = await pictures.prepare_all([EncodedImage(data=png(PHOTOGRAPH))], budget, PROFILE)
    decoder.stop()
    (again,) = await pictures.prepare_all([EncodedImage(data=png(PHOTOGRAPH))], budget, PROFILE)
    assert again is first
    with pytest.raises(ImageTooLarge):
        await pictures.prepare([EncodedImage(data=png(PHOTOGRAPH))], budget, PROFILE)


async def test_base64_text_needs_no_turn_of_the_database() -> None:
    limits, data = Limits(), png(PHOTOGRAPH)
    decoder = ImageDecoder(limits=limits, telemetry=Telemetry(), cache=PictureCache(max_bytes=1 << 24), workers=1)
    pictures = Pictures(decoder, None, None)  # type: ignore[arg-type]  # nothing is read from the stores
    source, file = Base64Image(text=base64.b64encode(data).decode()), EncodedImage(data=data)
    several: list[Source] = [source, file, Base64Image(text="%")]
    for sources in (several[:1], several):
        budget = PixelBudget(max_pixels=limits.max_request_pixels, max_images=limits.max_request_images)
        prepared, *others = await pictures.prepare(sources, budget, PROFILE)
        assert isinstance(prepared, Prepared)
        assert (prepared.data, prepared.media_type) == (data, "image/png")
        # One entry of the cache, whichever way the file came.
        assert others[:1] in ([], [prepared])
        assert [type(other) for other in others[1:]] in ([], [Malformed])
    decoder.stop()


async def test_pixels_that_left_the_cache_are_read_again() -> None:
    cache, limits = PictureCache(max_bytes=1 << 24), Limits()
    decoder = ImageDecoder(limits=limits, telemetry=Telemetry(), cache=cache, workers=1)
    pictures = Pictures(decoder, None, None)  # type: ignore[arg-type]  # no item is read
    budget = PixelBudget(max_pixels=limits.max_request_pixels, max_images=limits.max_request_images)
    source = EncodedImage(data=png(PHOTOGRAPH))
    for _ in range(2):
        await pictures.prepare_all([source], budget, PROFILE)
        assert cache.size_bytes < PHOTOGRAPH.nbytes + len(source.data)
    whole = await pictures.make(source, budget, lambda _, picture: Whole(picture.pixels), size=SIZE, what="whole")
    decoder.stop()
    assert np.array_equal(whole.pixels, PHOTOGRAPH)


def test_a_square_is_made_once_and_counted() -> None:
    picture = Picture(PHOTOGRAPH)
    square = picture.square(SIZE)
    assert picture.square(SIZE) is square
    assert picture.size_bytes == PHOTOGRAPH.nbytes + square.nbytes
