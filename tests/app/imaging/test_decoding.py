import asyncio
import base64
import struct
import zlib
from collections.abc import AsyncIterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.domain import Limits
from app.errors import (
    ImageTooLarge,
    Invalid,
    Malformed,
    QueueFull,
    ServiceError,
    TooMuchWork,
    UndecodableImage,
    UnsupportedMedia,
)
from app.imaging.decoding import ImageCache, ImageDecoder, PixelBudget
from app.imaging.drawings import LEAST_SIDE
from app.imaging.processes import DecoderProcesses
from app.imaging.raster import DecodedImage, open_file
from app.imaging.sources import Base64Image, EncodedImage, ImageSource, StrokesImage, SvgImage
from app.runtime.telemetry import Telemetry
from tests.app.imaging import hostile
from tests.app.imaging.files import chunk, encoded

pytestmark = pytest.mark.anyio
SIZE = 128
KINDS = ("PNG", "BMP", "WEBP", "GIF", "JPEG", "TIFF", "AVIF")


def new_decoder(*, max_waiting: int = 256) -> ImageDecoder:
    limits, cache = Limits(), ImageCache(max_bytes=1 << 20)
    processes = DecoderProcesses(1, limits=limits)
    return ImageDecoder(limits=limits, telemetry=Telemetry(), cache=cache, processes=processes, max_waiting=max_waiting)


@pytest.fixture
async def decoder() -> AsyncIterator[ImageDecoder]:
    decoder = new_decoder()
    yield decoder
    await decoder.stop()


def budget(*, max_pixels: int = 256_000_000, max_images: int = 1000) -> PixelBudget:
    return PixelBudget(max_pixels=max_pixels, max_images=max_images)


def image(width: int = 48, height: int = 32) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of under a hundred bytes whose header claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    return open_file(data, Limits()).read()


async def decoded(decoder: ImageDecoder, source: ImageSource, within: PixelBudget | None = None) -> DecodedImage:
    (outcome,) = await decoder.decode_many([source], within or budget(), SIZE)
    if isinstance(outcome, ServiceError):
        raise outcome
    return outcome


@pytest.mark.parametrize("kind", KINDS)
def test_every_allowed_format_gives_its_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(image(), kind, **options)
    found = pixels_of(data)
    assert found.shape == (32, 48, 3)
    if kind in ("PNG", "BMP", "WEBP", "TIFF"):
        np.testing.assert_array_equal(found, np.asarray(image()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
async def test_a_truncated_image_is_undecodable(decoder: ImageDecoder, kind: str, share: float) -> None:
    data = encoded(image(200, 150), kind)
    with pytest.raises(UndecodableImage):
        await decoded(decoder, EncodedImage(data=data[: int(len(data) * share)]))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(b"", UndecodableImage, id="nothing"),
        pytest.param(b"this is a text file named cat.png\n" * 20, UndecodableImage, id="text"),
        pytest.param(b"\x89PNG\r\n\x1a\n", UndecodableImage, id="signature alone"),
        pytest.param(encoded(image(), "TIFF")[:-500], UndecodableImage, id="tiff cut short"),
        pytest.param(encoded(image(), "ICO"), UnsupportedMedia, id="ico"),
        pytest.param(encoded(image(), "PPM"), UnsupportedMedia, id="ppm"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", UnsupportedMedia, id="svg as a file"),
        pytest.param(b"%PDF-1.7\n", UnsupportedMedia, id="pdf"),
        pytest.param(png_claiming(8193, 8193), ImageTooLarge, id="67 megapixels"),
        pytest.param(png_claiming(50_000, 50_000), ImageTooLarge, id="2500 megapixels"),
        pytest.param(png_claiming(0, 5), UndecodableImage, id="no width"),
        pytest.param(hostile.png_without_palette(), UndecodableImage, id="no palette"),
        pytest.param(hostile.repeated_scans(64, 3000), TooMuchWork, id="scans"),
    ],
)
async def test_bad_bytes_have_their_own_error(decoder: ImageDecoder, data: bytes, error: type[ServiceError]) -> None:
    with pytest.raises(error):
        await decoded(decoder, EncodedImage(data=data))


def test_a_limit_above_pillows_own_is_the_one_that_counts() -> None:
    opened = open_file(png_claiming(20_000, 10_000), Limits(max_image_pixels=256_000_000))
    assert (opened.width, opened.height) == (20_000, 10_000)


async def test_flipped_bytes_never_raise_anything_else(decoder: ImageDecoder) -> None:
    random = np.random.default_rng(11)
    for kind in KINDS:
        whole = encoded(image(24, 20), kind)
        for _ in range(60):
            data = bytearray(whole)
            for place in random.integers(0, len(data), 3).tolist():
                data[place] ^= int(random.integers(1, 256))
            (outcome,) = await decoder.decode_many([EncodedImage(data=bytes(data))], budget(), SIZE)
            assert isinstance(outcome, (DecodedImage, ServiceError))


async def test_many_bombs_are_refused_before_any_is_decoded(decoder: ImageDecoder) -> None:
    bomb = encoded(Image.new("1", (8000, 8000)), "PNG")
    assert len(bomb) < 20_000
    with pytest.raises(ImageTooLarge):
        await decoder.decode_many([EncodedImage(data=bomb)] * 256, budget(), SIZE)
    assert decoder._telemetry.registry.get_sample_value("vermouth_decode_seconds_count") == 0


async def test_images_are_counted_over_the_request(decoder: ImageDecoder) -> None:
    source = EncodedImage(data=encoded(image(4, 4), "PNG"))
    with pytest.raises(TooMuchWork):
        await decoder.decode_many([source] * 4, budget(max_images=3), SIZE)
    shared = budget(max_pixels=40)
    await decoder.decode_many([source] * 2, shared, SIZE)
    with pytest.raises(ImageTooLarge):
        await decoded(decoder, source, shared)


async def test_one_bad_image_rejects_itself_alone(decoder: ImageDecoder) -> None:
    good = EncodedImage(data=encoded(image(), "PNG"))
    outcomes = await decoder.decode_many([good, EncodedImage(data=b"no"), good], budget(), SIZE)
    assert [type(outcome) for outcome in outcomes] == [DecodedImage, UndecodableImage, DecodedImage]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(orientation: int) -> None:
    original = image()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(original, "PNG", exif=exif)
    methods = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    expected = original.transpose(methods[orientation]) if orientation in methods else original
    np.testing.assert_array_equal(pixels_of(data), np.asarray(expected))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_composited_on_white(mode: str) -> None:
    layer = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    layer.putpixel((1, 0), (0, 0, 0, 255))
    assert pixels_of(encoded(layer.convert(mode), "PNG"))[0, :, 0].tolist() == [255, 0]


def test_sixteen_bit_grey_keeps_its_tones() -> None:
    grey = Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], dtype=np.uint16))
    assert pixels_of(encoded(grey, "PNG"))[0, :, 0].tolist() == [0, 128, 255]


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels_of(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:;base64,"])
async def test_base64_with_and_without_a_data_uri(decoder: ImageDecoder, prefix: str) -> None:
    text = prefix + base64.encodebytes(encoded(image(), "PNG")).decode()
    found = await decoded(decoder, Base64Image(text=text))
    assert (found.height, found.width) == (32, 48)


STAR = [[[0.0, 50.0, 100.0], [90.0, 0.0, 90.0]], [[0.0, 100.0], [30.0, 30.0]]]


@pytest.mark.parametrize(
    ("source", "error"),
    [
        pytest.param(Base64Image(text="%%%"), Malformed, id="not base64"),
        pytest.param(Base64Image(text="data:image/png,raw"), Malformed, id="data URI that is not base64"),
        pytest.param(Base64Image(text="é"), Malformed, id="not ASCII"),
        pytest.param(StrokesImage(strokes=[], width=9, height=9), Invalid, id="no points"),
        pytest.param(StrokesImage(strokes=[[[1.0], []]], width=9, height=9), Invalid, id="odd lists"),
        pytest.param(StrokesImage(strokes=STAR, width=4097, height=9), ImageTooLarge, id="canvas"),
        pytest.param(StrokesImage(strokes=STAR, width=0, height=9), Invalid, id="no canvas"),
        pytest.param(
            StrokesImage(strokes=[[[0.0] * 50_001, [0.0] * 50_001]], width=9, height=9), TooMuchWork, id="points"
        ),
    ],
)
async def test_bad_sources_have_their_own_error(
    decoder: ImageDecoder, source: ImageSource, error: type[ServiceError]
) -> None:
    with pytest.raises(error):
        await decoded(decoder, source)


async def test_strokes_become_a_canonical_sketch(decoder: ImageDecoder) -> None:
    found = await decoded(decoder, StrokesImage(strokes=STAR, width=256, height=256))
    assert found.is_sketch
    assert found.square.shape == (128, 128, 3)
    assert 0.01 < float((found.square < 128).mean()) < 0.3


async def test_a_crowd_before_the_pool_is_refused() -> None:
    decoder = new_decoder(max_waiting=1)
    source = SvgImage(
        text="<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><rect width='5' height='5'/></svg>"
    )
    first = asyncio.create_task(decoded(decoder, source))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await decoded(decoder, source)
    assert decoder._telemetry.requests_rejected.labels("decode_queue_full")._value.get() == 1
    assert ((await first).height, (await first).width) == (LEAST_SIDE, LEAST_SIDE)
    await decoder.stop()


async def test_a_batch_uses_the_processes_that_nobody_waits_for() -> None:
    limits, telemetry = Limits(), Telemetry()
    processes = DecoderProcesses(3, limits=limits)
    decoder = ImageDecoder(limits=limits, telemetry=telemetry, cache=ImageCache(max_bytes=0), processes=processes)
    sources: list[ImageSource] = [EncodedImage(data=encoded(image(40 + side), "PNG")) for side in range(9)]
    outcomes = await decoder.decode_many(sources, budget(), SIZE)
    assert [outcome.width for outcome in outcomes if isinstance(outcome, DecodedImage)] == list(range(40, 49))
    assert 2 < len(processes.pids) <= 4
    await decoder.stop()


async def test_a_client_that_leaves_frees_its_process(decoder: ImageDecoder) -> None:
    leaving = asyncio.create_task(decoded(decoder, SvgImage(text=hostile.SLOW)))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(leaving, 1.0)
    assert (await decoded(decoder, EncodedImage(data=encoded(image(), "PNG")))).width == 48
