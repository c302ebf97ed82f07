"""Kinds of TIFF that are read, and the refusals of the others."""

import io
import itertools
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from app.domain import Limits
from app.errors import UndecodableImage, UnsupportedMedia
from app.imaging.raster import open_file
from tests.app.imaging import hostile
from tests.app.imaging.files import encoded, grey_png, grey_profile, tiff

ORDERS = pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
DEFLATED = pytest.mark.parametrize("is_deflated", [False, True], ids=["raw", "deflated"])


def read(data: bytes) -> NDArray[np.uint8]:
    return open_file(data, Limits()).read()


def samples(count: int, bits: int, *, height: int = 13, width: int = 21) -> NDArray[np.uint16]:
    return np.random.default_rng(5).integers(0, 2**bits, (height, width, count), dtype=np.uint16)


@ORDERS
@DEFLATED
@pytest.mark.parametrize("photometric", [0, 1], ids=["min-is-white", "min-is-black"])
@pytest.mark.parametrize("bits", [12, 16])
def test_grey_of_12_and_16_bits(bits: int, photometric: int, is_deflated: bool, order: str) -> None:
    tones = samples(1, bits)
    found = read(tiff(tones, photometric=photometric, bits=bits, order=order, is_deflated=is_deflated))
    grey = tones >> (bits - 8)
    np.testing.assert_array_equal(found, np.repeat(grey if photometric else 255 - grey, 3, axis=2))


def test_grey_of_16_bits_is_oriented() -> None:
    found = read(tiff(samples(1, 16), photometric=0, bits=16, tags={274: [6]}))
    np.testing.assert_array_equal(found[:, :, :1], np.rot90(255 - (samples(1, 16) >> 8), -1))


@ORDERS
@DEFLATED
@pytest.mark.parametrize(("count", "tags"), [(3, {}), (4, {338: [2]}), (4, {338: [0]})], ids=["RGB", "RGBA", "RGBX"])
def test_planes_of_16_bits(count: int, tags: dict[int, list[int]], is_deflated: bool, order: str) -> None:
    pixels = samples(count, 16)
    pixels[:, :, 3:] = 65535
    data = tiff(pixels, photometric=2, bits=16, order=order, is_separate=True, is_deflated=is_deflated, tags=tags)
    np.testing.assert_array_equal(read(data), pixels[:, :, :3] >> 8)


def test_lab_becomes_srgb() -> None:
    image = hostile.photograph(40, 30)
    srgb, lab = (ImageCms.ImageCmsProfile(ImageCms.createProfile(name)) for name in ("sRGB", "LAB"))
    data = encoded(ImageCms.ImageCmsTransform(srgb, lab, "RGB", "LAB").apply(image), "TIFF")
    assert np.abs(read(data).astype(int) - np.asarray(image)).mean() < 2


def test_subsampled_ycbcr_without_compression() -> None:
    blocks = np.array([[[200, 200, 200, 200, 128, 128], [90, 90, 90, 90, 128, 128]]], np.uint8)  # 2 x 2 px each
    tags = {256: [4], 257: [2], 258: [8] * 3, 277: [3], 278: [2], 530: [2, 2]}
    data = tiff(blocks, photometric=6, bits=8, tags=tags)
    assert read(data)[:, :, 0].tolist() == [[200, 200, 90, 90]] * 2


def test_a_palette_of_8_bits() -> None:
    colours = np.random.default_rng(6).integers(0, 256, (3, 256))
    indices = samples(1, 8).astype(np.uint8)
    for scale in (1, 257):
        data = tiff(indices, photometric=3, bits=8, tags={320: (colours * scale).ravel().tolist()})
        np.testing.assert_array_equal(read(data), colours.T[indices[:, :, 0]])


def test_a_head_of_mixed_byte_orders() -> None:
    image = hostile.photograph(20, 10)
    for compression in ("raw", "tiff_lzw"):
        data = encoded(image, "TIFF", compression=compression)
        np.testing.assert_array_equal(read(b"II\0*" + data[4:]), np.asarray(image))


UNSUPPORTED: dict[str, tuple[str, NDArray[Any], dict[str, Any]]] = {
    "RGB of float32": ("RGB, 3 × 32 bits, floating point", samples(3, 8).astype("f4"), {"photometric": 2}),
    "RGB of float16": ("RGB, 3 × 16 bits, floating point", samples(3, 8).astype("f2"), {"photometric": 2}),
    "grey of float32": ("grey, 1 × 32 bits, floating point", samples(1, 8).astype("f4"), {"photometric": 1}),
    "grey of int8": ("grey, 1 × 8 bits, signed", samples(1, 7).astype("i1"), {"photometric": 1}),
    "RGB of 32 bits": ("RGB, 3 × 32 bits", samples(3, 8).astype("u4"), {"photometric": 2}),
    "grey and alpha of 16 bits": ("grey, 2 × 16 bits", samples(2, 16), {"photometric": 1, "tags": {338: [2]}}),
    "CMYK and alpha": ("CMYK, 5 × 8 bits", samples(5, 8).astype("u1"), {"photometric": 5, "tags": {338: [2]}}),
    "Lab of 16 bits": ("Lab, 3 × 16 bits", samples(3, 16), {"photometric": 8}),
    "planes of grey and alpha": (
        "grey, 2 × 8 bits, in separate planes",
        samples(2, 8).astype("u1"),
        {"photometric": 1, "is_separate": True, "tags": {338: [2]}},
    ),
    "planes of Lab": (
        "Lab, 3 × 8 bits, in separate planes",
        samples(3, 8).astype("u1"),
        {"photometric": 8, "is_separate": True},
    ),
    "planes of RGB, alpha and a mask": (
        "RGB, 5 × 8 bits, in separate planes",
        samples(5, 8).astype("u1"),
        {"photometric": 2, "is_separate": True, "tags": {338: [2, 0]}},
    ),
    "a camera's raw data": ("photometric interpretation 32803, 1 × 16 bits", samples(1, 16), {"photometric": 32803}),
    "WebP in TIFF": ("RGB, 3 × 8 bits, compression 50001", samples(3, 8).astype("u1"), {"tags": {259: [50001]}}),
    "JPEG XL in TIFF": ("RGB, 3 × 8 bits, compression 52546", samples(3, 8).astype("u1"), {"tags": {259: [52546]}}),
}


def unsupported(kind: str) -> bytes:
    _, pixels, options = UNSUPPORTED[kind]
    formats = [{"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * pixels.shape[2]
    tags = {339: formats, **options.get("tags", {})}
    return tiff(pixels, **{"photometric": 2, "bits": 8 * pixels.itemsize, **options, "tags": tags})


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_other_kinds_are_415_and_named(kind: str) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        read(unsupported(kind))
    assert f"({UNSUPPORTED[kind][0]}): save it as RGB with 8 or 16 bits" in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*(EXIF|Metadata):UserWarning")  # a decoder process only prints them
@pytest.mark.parametrize("kind", ["RGB", "RGB of float32"])
def test_a_tiff_that_is_cut_short_is_damaged_wherever_it_ends(kind: str) -> None:
    pixels = samples(3, 8).astype("u1")
    data = tiff(pixels, photometric=2, bits=8) if kind == "RGB" else unsupported(kind)
    for length in itertools.chain(range(8, 400, 50), range(len(data) - 250, len(data))):
        with pytest.raises(UndecodableImage, match="truncated or damaged"):
            read(data[:length])


@pytest.mark.parametrize("number", [b"x" * 5000, b"8"], ids=["long", "short"])
def test_a_refusal_repeats_no_text_of_the_file(number: bytes) -> None:
    data = bytearray(tiff(samples(1, 16), photometric=1, bits=16, tags={262: number}))
    at = data.index(struct.pack("<HH", 262, 7))
    data[at + 2] = 2  # ASCII
    with pytest.raises(UndecodableImage) as caught:
        read(bytes(data))
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("kind", ["AVIF", "WEBP", "GIF", "BMP"])
def test_other_formats_that_are_cut_short_are_called_damaged(kind: str) -> None:
    data = encoded(hostile.photograph(90, 70), kind)
    for length in (14, 40, len(data) // 2, len(data) - 500):
        with pytest.raises(UndecodableImage, match="truncated or damaged"):
            read(data[:length])


def test_a_jpeg_of_12_bits_is_415() -> None:
    data = bytearray(encoded(hostile.photograph(20, 10), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(UnsupportedMedia, match="12 bits"):
        read(bytes(data))


def test_a_bmp_of_other_bit_fields_is_415() -> None:
    fields = struct.pack("<IiiHHIIiiII", 56, 2, 2, 1, 16, 3, 8, 0, 0, 0, 0)
    masks = struct.pack("<IIII", 0xF00, 0xF0, 0xF, 0xF000)
    with pytest.raises(UnsupportedMedia, match="BMP of this kind"):
        read(b"BM" + struct.pack("<IHHI", 78, 0, 0, 70) + fields + masks + bytes(8))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_grey_profile_counts_for_8_and_16_bits(kind: str) -> None:
    tones, profile = samples(1, 16), grey_profile(1.0)
    eight = Image.fromarray((tones[:, :, 0] >> 8).astype(np.uint8))
    sixteen = Image.open(io.BytesIO(grey_png(tones.astype(np.int64), bits=16, transparent=None)))
    expected = read(encoded(eight, kind, icc_profile=profile))
    assert np.abs(expected[:, :, 0].astype(int) - np.asarray(eight)).max() > 40  # linear light is far from sRGB
    np.testing.assert_array_equal(read(encoded(sixteen, kind, icc_profile=profile)), expected)


def test_a_transparent_tone_of_16_bits_is_white_beside_a_profile() -> None:
    tones = samples(1, 16).astype(np.int64)
    data = grey_png(tones, bits=16, transparent=int(tones[0, 0, 0]))
    image = Image.open(io.BytesIO(data))
    found = read(encoded(image, "PNG", icc_profile=grey_profile(1.0), transparency=int(tones[0, 0, 0])))
    assert (found[0, 0] == 255).all()
    assert found.min() < 100
