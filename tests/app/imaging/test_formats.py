"""File formats by their first bytes, PNG without copies, and opaque images without a composite."""

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from app.cli.importing.files import is_image
from app.domain import Limits
from app.errors import UndecodableImage
from app.imaging.formats import has_image_bytes, media_type, reduced_png
from app.imaging.pixels import _alpha
from app.imaging.raster import open_file
from tests.app.imaging import hostile
from tests.app.imaging.files import encoded

FILES: list[tuple[str, dict[str, object], str]] = [
    ("PNG", {}, "png"),
    ("JPEG", {}, "jpeg"),
    ("WEBP", {}, "webp"),
    ("GIF", {}, "gif"),
    ("BMP", {}, "bmp"),
    ("TIFF", {}, "tiff"),
    ("TIFF", {"big_tiff": True}, "tiff"),
    ("AVIF", {}, "avif"),
]


@pytest.mark.parametrize(("kind", "options", "expected"), FILES)
def test_what_is_decoded_is_imported_under_its_media_type(kind: str, options: dict[str, object], expected: str) -> None:
    data = encoded(hostile.photograph(9, 8), kind, **options)
    assert open_file(data, Limits()).read().shape == (8, 9, 3)
    assert is_image("without a suffix", lambda size: data[:size])
    assert media_type(data) == f"image/{expected}"


@pytest.mark.parametrize("order", [b"II\0*", b"MM*\0", b"MM\0+"])
def test_other_heads_of_tiff_that_are_decoded(order: bytes) -> None:
    assert media_type(order + bytes(8)) == "image/tiff"


@pytest.mark.parametrize(
    "head",
    [b"RIFF1234WAVEfmt ", b"\0\0\0\x18ftypmp42", b"\x89PDF", b"text", b""],
    ids=["WAV", "MP4", "other", "text", "empty"],
)
def test_other_files_are_no_images(head: bytes) -> None:
    assert not has_image_bytes(head)


def test_the_size_of_a_png_is_known_before_its_pixels_are_checked() -> None:
    data = bytearray(encoded(hostile.photograph(30, 20), "PNG"))
    data[-20] ^= 1  # in the pixels or their checksum
    opened = open_file(bytes(data), Limits())
    assert (opened.width, opened.height) == (30, 20)
    with pytest.raises(UndecodableImage, match="checksum"):
        opened.read()


def test_a_png_is_copied_once() -> None:
    data = encoded(hostile.photograph(1000, 800), "PNG", compress_level=0)
    tracemalloc.start()
    try:
        file, _ = reduced_png(data)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * len(data)
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), np.asarray(hostile.photograph(1000, 800)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "PA", "P"])
def test_an_opaque_image_has_no_alpha(mode: str) -> None:
    image = hostile.photograph(9, 8).convert("RGBA")
    if mode == "P":
        image = image.convert("RGB").quantize(16)
        image.info["transparency"] = bytes([255] * 16)
    else:
        image = image.convert("LA").convert("PA") if mode == "PA" else image.convert(mode)
    assert image.has_transparency_data
    assert _alpha(image, None) is None
