"""Images as tasks see them."""

import base64
import hashlib
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.domain import Limits
from app.errors import ImageTooLarge, Malformed
from app.imaging.decoding import ImageCache, ImageDecoder, PixelBudget
from app.imaging.processes import DecoderProcesses
from app.imaging.raster import DecodedImage
from app.imaging.sources import Base64Image, EncodedImage, StrokesImage
from app.runtime.telemetry import Telemetry
from app.tasks.features import ImageInputs, Source
from models.transforms import canonical_image, cut_view, plan_views, whole_view
from models.types import TaskProfile

pytestmark = pytest.mark.anyio
SIZE = 128
LIMITS = Limits()
PROFILE = TaskProfile(resolution=SIZE, timestep=1, templates=("{}",))


def png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (210, 301, 3), dtype=np.uint8)
DRAWING = np.full((210, 301, 3), 255, np.uint8)
DRAWING[60:150, 80:84] = DRAWING[60:150, 200:204] = DRAWING[60:64, 80:204] = 0


@dataclass(kw_only=True)
class Setup:
    """Inputs over a decoder of one process."""

    inputs: ImageInputs
    decoder: ImageDecoder
    cache: ImageCache
    telemetry: Telemetry

    @property
    def decodes(self) -> int:
        """Number of decodes so far, from the telemetry."""
        return int(self.telemetry.registry.get_sample_value("vermouth_decode_seconds_count") or 0)


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    cache, telemetry = ImageCache(max_bytes=1 << 24), Telemetry()
    processes = DecoderProcesses(1, limits=LIMITS)
    decoder = ImageDecoder(limits=LIMITS, telemetry=telemetry, cache=cache, processes=processes)
    inputs = ImageInputs(decoder, None, None)  # type: ignore[arg-type]  # nothing is read from the stores
    yield Setup(inputs=inputs, decoder=decoder, cache=cache, telemetry=telemetry)
    await decoder.stop()


def new_budget() -> PixelBudget:
    return PixelBudget(max_pixels=LIMITS.max_request_pixels, max_images=LIMITS.max_request_images)


@pytest.mark.parametrize("pixels", [PHOTOGRAPH, DRAWING], ids=["photograph", "drawing"])
async def test_an_image_is_encoded_in_its_canonical_form_and_segmented_whole(
    setup: Setup, pixels: NDArray[np.uint8]
) -> None:
    source = EncodedImage(data=png(pixels))
    (prepared,) = await setup.inputs.prepare_all([source], new_budget(), PROFILE)
    assert np.array_equal(prepared.square, canonical_image(pixels, SIZE))
    tiled = await setup.inputs.tiles(source, new_budget(), PROFILE)
    assert np.array_equal(tiled.squares[0], cut_view(pixels, whole_view(*pixels.shape[:2]), SIZE))
    height, width = pixels.shape[:2]
    assert tiled.boxes == plan_views(height, width, SIZE, max_tiles=LIMITS.max_tiles)
    for box, square, key in zip(tiled.boxes, tiled.squares, tiled.keys, strict=True):
        assert np.array_equal(square, cut_view(pixels, box, SIZE))
        assert key == hashlib.sha256(square.tobytes()).hexdigest()


async def test_a_cached_file_needs_no_turn_of_the_pool_and_is_charged_all_the_same(setup: Setup) -> None:
    budget = PixelBudget(max_pixels=2 * 210 * 301, max_images=9)
    (first,) = await setup.inputs.prepare_all([EncodedImage(data=png(PHOTOGRAPH))], budget, PROFILE)
    await setup.decoder.stop()
    (again,) = await setup.inputs.prepare_all([EncodedImage(data=png(PHOTOGRAPH))], budget, PROFILE)
    assert again is first
    with pytest.raises(ImageTooLarge):
        await setup.inputs.prepare([EncodedImage(data=png(PHOTOGRAPH))], budget, PROFILE)


@pytest.mark.parametrize("pixels", [PHOTOGRAPH, PHOTOGRAPH[:100, :120]], ids=["large", "small"])
async def test_a_tile_may_show_less_of_an_image_than_its_view_has_pixels(
    setup: Setup, pixels: NDArray[np.uint8]
) -> None:
    setup.decoder.size_tiles(64, most=9)
    source = EncodedImage(data=png(pixels))
    await setup.inputs.prepare_all([source], new_budget(), PROFILE)
    tiled = await setup.inputs.tiles(source, new_budget(), PROFILE)
    height, width = pixels.shape[:2]
    assert tiled.boxes == plan_views(height, width, 64, max_tiles=9)
    assert 1 < len(tiled.boxes) <= 10
    for box, square in zip(tiled.boxes, tiled.squares, strict=True):
        assert np.array_equal(square, cut_view(pixels, box, SIZE))


async def test_cached_tiles_need_no_turn_of_the_pool(setup: Setup) -> None:
    first = await setup.inputs.tiles(EncodedImage(data=png(PHOTOGRAPH)), new_budget(), PROFILE)
    await setup.decoder.stop()
    assert await setup.inputs.tiles(EncodedImage(data=png(PHOTOGRAPH)), new_budget(), PROFILE) is first


async def test_base64_text_needs_no_turn_of_the_database(setup: Setup) -> None:
    data = png(PHOTOGRAPH)
    source, file = Base64Image(text=base64.b64encode(data).decode()), EncodedImage(data=data)
    several: list[Source] = [source, file, Base64Image(text="%")]
    for sources in (several[:1], several):
        prepared, *others = await setup.inputs.prepare(sources, new_budget(), PROFILE)
        assert isinstance(prepared, DecodedImage)
        assert (prepared.data, prepared.media_type) == (data, "image/png")
        # One entry of the cache, whichever way the file came.
        assert others[:1] in ([], [prepared])
        assert [type(other) for other in others[1:]] in ([], [Malformed])


async def test_pixels_are_not_cached_and_tiles_decode_again(setup: Setup) -> None:
    source = EncodedImage(data=png(PHOTOGRAPH))
    for _ in range(2):
        await setup.inputs.prepare_all([source], new_budget(), PROFILE)
        assert setup.cache.size_bytes < PHOTOGRAPH.nbytes + len(source.data)
    assert setup.decodes == 1
    tiled = await setup.inputs.tiles(source, new_budget(), PROFILE)
    assert setup.decodes == 2
    assert (tiled.height, tiled.width) == PHOTOGRAPH.shape[:2]
    assert len(tiled.squares) > 1
    before = setup.cache.size_bytes
    await setup.inputs.tiles(source, new_budget(), PROFILE)
    assert (setup.decodes, setup.cache.size_bytes) == (2, before)


async def test_a_small_image_is_decoded_once_for_all_tasks(setup: Setup) -> None:
    source = EncodedImage(data=png(PHOTOGRAPH[:100, :120]))
    (prepared,) = await setup.inputs.prepare_all([source], new_budget(), PROFILE)
    await setup.decoder.stop()
    tiled = await setup.inputs.tiles(source, new_budget(), PROFILE)
    assert tiled.squares[0] is prepared.square, "not made twice"
    assert (setup.decodes, tiled.keys) == (1, [prepared.key])
    assert prepared.size_bytes == prepared.square.nbytes


async def test_strokes_are_segmented_on_their_canvas(setup: Setup) -> None:
    source = StrokesImage(strokes=[[[10.0, 90.0], [20.0, 20.0]], [[], []]], width=100, height=60)
    tiled = await setup.inputs.tiles(source, new_budget(), PROFILE)
    assert (tiled.height, tiled.width, len(tiled.squares)) == (60, 100, 1)
    # A 100 × 60 canvas is scaled by 1.28 and centred: the line lies at 20 · 1.28 + 25.6 = 51.2.
    assert np.flatnonzero((tiled.squares[0] < 128).any(axis=(1, 2))).mean() == pytest.approx(51.2, abs=2)
