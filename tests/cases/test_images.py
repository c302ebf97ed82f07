"""Image files as cameras, browsers and editors write them are read as every viewer shows them."""

import io
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from app.domain import Limits
from app.errors import Invalid, ServiceError, TooMuchWork, UndecodableImage, UnsupportedMedia
from app.imaging.raster import decode_image, open_file, thumbnail_of, tile_image
from tests.app.imaging.files import bmp, chunk, encoded, grey_png, swapped_profile, with_chunks

Random = np.random.Generator
Pixels = NDArray[np.uint8]


def read(data: bytes) -> Pixels:
    return open_file(data, Limits()).read()


def noise(random: Random, *, least: int = 3, most: int = 40) -> Pixels:
    height, width = random.integers(least, most, 2)
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(random: Random, height: int, width: int) -> Pixels:
    """An image that JPEG keeps within a few tones."""
    corners = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return np.asarray(corners.resize((width, height), Image.Resampling.BICUBIC))


def deflated(random: Random, size: int) -> bytes:
    return zlib.compress(bytes([65 + int(random.integers(26))]) * size)


def bomb(random: Random) -> bytes:
    """A gigabyte of one letter, compressed."""
    compressor, letters = zlib.compressobj(1), bytes([65 + int(random.integers(26))]) * (8 << 20)
    return b"".join([compressor.compress(letters) for _ in range(128)] + [compressor.flush()])


LARGE_CHUNKS: dict[str, Callable[[Random], tuple[bytes, bytes]]] = {
    "zTXt": lambda random: (chunk(b"zTXt", b"a\0\0" + deflated(random, (1 << 20) + 100)), b"IDAT"),
    "iTXt after the pixels": lambda random: (chunk(b"iTXt", b"a\0\1\0\0\0" + deflated(random, 2 << 20)), b"IEND"),
    "iCCP": lambda random: (chunk(b"iCCP", b"a\0\0" + deflated(random, 3 << 19)), b"IDAT"),
    "tEXt": lambda random: (chunk(b"tEXt", b"a\0" + random.bytes(3 << 20).replace(b"\0", b"b")), b"IDAT"),
    "a gigabyte": lambda random: (chunk(b"zTXt", b"a\0\0" + bomb(random)), b"IDAT"),
    "a gigabyte of profile": lambda random: (chunk(b"iCCP", b"a\0\0" + bomb(random)), b"IDAT"),
    "a hundred": lambda random: (chunk(b"zTXt", b"a\0\0" + deflated(random, 1 << 20)) * 100, b"IDAT"),
}


@pytest.mark.parametrize("kind", LARGE_CHUNKS)
def test_6_large_chunks_of_a_png_are_skipped(random: Random, kind: str) -> None:
    pixels = noise(random)
    found, before = LARGE_CHUNKS[kind](random)
    np.testing.assert_array_equal(read(with_chunks(encoded(pixels, "PNG"), found, before=before)), pixels)


@pytest.mark.parametrize("kind", [b"tEXt", b"pHYs", b"iCCP", b"teSt", b"gAMA", b"eXIf", b"tIME", b"zTXt", b"cHRM"])
def test_7_wrong_checksums_of_chunks_that_viewers_ignore(random: Random, kind: bytes) -> None:
    pixels = noise(random)
    damaged = chunk(kind, random.bytes(int(random.integers(1, 60))), damage=1 << int(random.integers(32)))
    before = b"IEND" if random.integers(2) else b"IDAT"
    np.testing.assert_array_equal(read(with_chunks(encoded(pixels, "PNG"), damaged, before=before)), pixels)


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"PLTE"])
def test_7_wrong_checksums_of_pixels_are_named(random: Random, kind: bytes) -> None:
    image = Image.fromarray(noise(random)).quantize(7)
    data = bytearray(encoded(image, "PNG"))
    at = data.index(kind)
    end = at + 4 + int.from_bytes(data[at - 4 : at])
    data[end + int(random.integers(4))] ^= 1 << int(random.integers(8))
    with pytest.raises(UndecodableImage, match=f"checksum of the PNG's {kind.decode()}"):
        read(bytes(data))


@pytest.mark.parametrize(("header", "alpha"), [(124, 0), (124, 255), (108, 0), (40, 0), (40, 77)])
def test_8_a_bmp_whose_alpha_is_all_zero_is_opaque(random: Random, header: int, alpha: int) -> None:
    pixels = noise(random)
    np.testing.assert_array_equal(read(bmp(pixels, alpha, header=header)), pixels)


def test_8_a_bmp_with_alpha_lies_on_white(random: Random) -> None:
    data = bytearray(bmp(np.zeros((2, 2, 3), np.uint8), 0))
    data[len(data) - 1 - 4 * int(random.integers(4))] = 255  # one opaque pixel
    assert sorted(read(bytes(data))[:, :, 0].reshape(-1).tolist()) == [0, 255, 255, 255]


@pytest.mark.parametrize("bits", [8, 16])
def test_10_a_transparent_tone_is_white(random: Random, bits: int) -> None:
    height, width = int(random.integers(2, 20)), int(random.integers(2, 20))
    one, other = random.choice(2**bits - 1, 2, replace=False).tolist()
    tones = np.full((height, 2 * width), other)
    tones[:, :width] = one
    found = read(grey_png(tones, bits=bits, transparent=one))
    assert (found[:, :width, :] == 255).all()
    assert (found[:, width:, :] == (other >> 8 if bits == 16 else other)).all()


def test_10_a_transparent_tone_of_one_bit_is_white(random: Random) -> None:
    tones = random.integers(0, 2, (int(random.integers(2, 20)), int(random.integers(8, 20))))
    tones[0, 0] = 0
    assert (read(grey_png(tones, bits=1, transparent=1))[:, :, 0] == np.where(tones == 1, 255, 0)).all()
    with pytest.raises(Invalid, match="nothing to see"):  # white on white
        read(grey_png(tones, bits=1, transparent=0))


def test_10_controls_of_16_bits(random: Random) -> None:
    height, width = random.integers(2, 20, 2).tolist()
    tone = int(random.integers(256, 65536))
    rgb = np.full((height, 2 * width, 3), tone)
    rgb[:, :width] = 0
    assert (read(grey_png(rgb, bits=16, transparent=0, kind=2))[:, :width] == 255).all()
    assert (read(grey_png(rgb[:, :, 0], bits=16, transparent=None))[:, :width] == 0).all()
    assert (read(grey_png(rgb[:, :, 0], bits=16, transparent=None))[:, width:] == tone >> 8).all()


@pytest.mark.parametrize("progressive", [False, True])
def test_22_a_jpeg_without_its_end_marker(random: Random, progressive: bool) -> None:
    pixels = smooth(random, *random.integers(20, 90, 2).tolist())
    options = {"quality": int(random.integers(60, 96)), "progressive": progressive}
    options |= {"subsampling": int(random.integers(3))}
    data = encoded(pixels, "JPEG", **options)
    whole = read(data)
    for changed in (
        data[:-2],
        data[:-1],
        data + b"\xff\xd9",
        data + random.bytes(4000),
        data[:-2] + b"\xff\xff\xff\xd9",
    ):
        np.testing.assert_array_equal(read(changed), whole)
    for share in (0.3, 0.5, 0.8):
        scans = data.index(b"\xff\xda")
        with pytest.raises(UndecodableImage):
            read(data[: scans + int((len(data) - scans) * share)])


def test_22_a_baseline_jpeg_that_is_a_few_bytes_short(random: Random) -> None:
    data = encoded(noise(random, least=64, most=100), "JPEG", quality=90)
    with pytest.raises(UndecodableImage, match="truncated"):
        read(data[:-10])
    whole = read(data)
    for missing in range(4, 40, 3):  # what is cut off may lie beside the image in its last block
        try:
            found = read(data[:-missing])
        except UndecodableImage as err:
            assert "truncated" in str(err)  # noqa: PT017 - the other answer is right too, if all pixels are
        else:
            np.testing.assert_array_equal(found, whole)


def test_22_a_motion_photo(random: Random) -> None:
    data = encoded(smooth(random, 30, 40), "JPEG")
    movie = b"\0\0\0\x18ftypmp42" + random.bytes(5 << 20)
    np.testing.assert_array_equal(read(data + movie), read(data))


PRECISE: dict[str, dict[str, object]] = {
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 100, "subsampling": 0},
    "AVIF": {"quality": 100},
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_23_colours_are_converted_from_the_profile(random: Random, kind: str) -> None:
    pixels = smooth(random, 24, 24)
    options = PRECISE.get(kind, {})
    found = read(encoded(pixels, kind, icc_profile=swapped_profile(), **options)).astype(int)
    assert np.abs(found - pixels[:, :, [1, 0, 2]]).mean() < 6
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, random.bytes(300), srgb[:200]):  # sRGB, and what no reader understands, change nothing
        found = read(encoded(pixels, kind, icc_profile=profile, **options)).astype(int)
        assert np.abs(found - pixels).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_23_a_profile_over_4_mib_is_ignored(random: Random, kind: str) -> None:
    pixels = smooth(random, 24, 24)
    profile = swapped_profile().ljust((4 << 20) + int(random.integers(1, 1 << 20)), b"\0")
    found = read(encoded(pixels, kind, icc_profile=profile, **PRECISE.get(kind, {}))).astype(int)
    assert np.abs(found - pixels).mean() < 4


@pytest.mark.parametrize("marker", ["Adobe, no transform", "none", "Adobe, YCCK"])
def test_23_cmyk_is_never_inverted(random: Random, marker: str) -> None:
    tone = int(random.integers(0, 40))
    red = (255 - tone, tone, tone)
    image = Image.new("RGB", (24, 16), red).convert("CMYK")
    if marker == "Adobe, YCCK":
        opposite = Image.new("RGB", (1, 1), (tone, 255 - tone, 255 - tone)).convert("YCbCr")
        y, blue, other = opposite.tobytes()
        image = Image.new("CMYK", (24, 16), (255 - y, 255 - blue, 255 - other, 0))  # is written inverted
    data = encoded(image, "JPEG", quality=100)
    adobe = re.search(rb"\xff\xee\x00\x0eAdobe.{7}", data, re.DOTALL)
    assert adobe is not None
    if marker == "none":
        data = data[: adobe.start()] + data[adobe.end() :]
    elif marker == "Adobe, YCCK":
        data = data[: adobe.end() - 1] + b"\2" + data[adobe.end() :]
    assert np.abs(read(data)[8, 12].astype(int) - red).max() <= 4


def test_23_cmyk_can_be_a_thumbnail_and_tiles(random: Random) -> None:
    data = encoded(Image.fromarray(noise(random, least=30)).convert("CMYK"), "JPEG")
    assert decode_image(open_file(data, Limits()), 64, data).media_type == "image/jpeg"
    assert Image.open(io.BytesIO(thumbnail_of(read(data), 16))).mode == "RGB"
    assert tile_image(read(data), 64, 4).squares[0].shape == (64, 64, 3)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "WebP", "TIFF", "AVIF"])
def test_25_what_cannot_be_seen_on_white_is_refused(random: Random, kind: str) -> None:
    height, width = random.integers(6, 40, 2).tolist()
    drawing = np.zeros((height, width, 4), np.uint8)
    drawing[:, :, :3] = 255
    drawing[int(random.integers(height)), :, 3] = 255  # a white line
    hidden = np.dstack(
        [random.integers(0, 256, (height, width, 3), dtype=np.uint8), np.zeros((height, width), np.uint8)]
    )
    for pixels in (drawing, hidden):
        image = Image.fromarray(pixels)
        if kind == "palette":
            if pixels is hidden:
                continue
            image = image.quantize(4)
        image = image.convert("LA") if kind == "LA" else image
        options = {"lossless": True, "exact": True} if kind == "WebP" else {}
        data = encoded(image, {"WebP": "WEBP", "TIFF": "TIFF", "AVIF": "AVIF"}.get(kind, "PNG"), **options)
        with pytest.raises(Invalid, match="nothing to see on white"):
            read(data)
    drawing[:, :, :3] = 0
    assert read(encoded(drawing, "PNG")).min() == 0


def test_the_first_frame_of_a_gif_may_cover_a_part(random: Random) -> None:
    frame = Image.fromarray(np.full((6, 8), 1, np.uint8), "P")
    frame.putpalette([200, 0, 0, 0, 0, 0])
    data = bytearray(encoded(frame, "GIF"))
    width, height = random.integers(20, 60, 2).tolist()
    left, top = int(random.integers(0, width - 8)), int(random.integers(0, height - 6))
    data[6:10] = struct.pack("<HH", width, height)
    at = data.index(b"\x2c", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    data[at + 1 : at + 5] = struct.pack("<HH", left, top)
    found = read(bytes(data))
    assert found.shape == (height, width, 3)
    assert (found[top : top + 6, left : left + 8] == 0).all()
    assert (found == 255).all(axis=2).sum() == height * width - 48


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_that_of_exif_alone(random: Random, kind: str) -> None:
    pixels = smooth(random, 20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert read(encoded(pixels, kind, exif=exif)).shape == (30, 20, 3)
    assert read(encoded(pixels, kind, **({} if kind in ("PNG", "TIFF") else {"xmp": xmp}))).shape == (20, 30, 3)
    if kind == "PNG":
        data = with_chunks(encoded(pixels, kind), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
        assert read(data).shape == (20, 30, 3)
    if kind == "TIFF":
        assert read(encoded(pixels, kind, tiffinfo={700: xmp})).shape == (20, 30, 3)


def test_34_files_of_two_images(random: Random) -> None:
    one, other = (smooth(random, 40, 50) for _ in range(2))
    data = encoded(Image.fromarray(one), "MPO", save_all=True, append_images=[Image.fromarray(other)], quality=95)
    whole = read(data)
    assert np.abs(whole.astype(int) - one).mean() < 6
    second = data.index(b"\xff\xd8\xff", 2)
    np.testing.assert_array_equal(read(data[:second]), whole)
    np.testing.assert_array_equal(read(data[:second] + bytes(len(data) - second)), whole)
    assert decode_image(open_file(data, Limits()), 64, data).media_type == "image/jpeg"


def test_34_scans_of_a_jpeg_of_two_images_are_counted(random: Random) -> None:
    data = encoded(Image.new("RGB", (16, 16)), "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))])
    scan, end = data.index(b"\xff\xda"), data.index(b"\xff\xd9")
    with pytest.raises(TooMuchWork):
        read(data[:scan] + data[scan:end] * int(random.integers(101, 200)) + data[end:])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_39_extreme_shapes(random: Random, kind: str) -> None:
    long = int(random.integers(1, 16383))
    for width, height in ((1, 1), (1, long), (long, 1), (2, 3), (64, 800)):
        pixels = np.zeros((height, width, 3), np.uint8)
        found = read(encoded(pixels, kind))
        assert found.shape == (height, width, 3)
        assert decode_image(open_file(encoded(pixels, kind), Limits()), 64, b"x").square.shape == (64, 64, 3)
        assert 1 <= len(tile_image(found, 64, 16).squares) <= 17


def test_39_interlaced_and_empty_headers(random: Random) -> None:
    pixels = noise(random)
    data = encoded(pixels, "PNG")
    header = bytearray(data[16:29])
    header[12] = 1
    rows = b"".join(
        b"\0" + pixels[top::down, left::right].reshape(-1, *pixels[top::down, left::right].shape[1:])[row].tobytes()
        for top, left, down, right in (
            (0, 0, 8, 8),
            (0, 4, 8, 8),
            (4, 0, 8, 4),
            (0, 2, 4, 4),
            (2, 0, 4, 2),
            (0, 1, 2, 2),
            (1, 0, 2, 1),
        )
        if pixels[top::down, left::right].size
        for row in range(len(pixels[top::down, left::right]))
    )
    interlaced = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(header)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(read(interlaced), pixels)
    empty = bytearray(data)
    empty[16:20] = bytes(4)
    empty[29:33] = zlib.crc32(empty[12:29]).to_bytes(4)
    with pytest.raises(UndecodableImage):
        read(bytes(empty))


def test_other_kinds_of_png_files(random: Random) -> None:
    pixels = noise(random)
    data = encoded(pixels, "PNG")
    end = data.index(b"IEND") - 4
    body = data[data.index(b"IDAT") + 4 : end - 4]
    parts = np.sort(random.integers(0, len(body), 5)).tolist()
    pieces = [body[one:other] for one, other in zip([0, *parts], [*parts, len(body)], strict=True)]
    split = data[: data.index(b"IDAT") - 4] + b"".join(chunk(b"IDAT", piece) for piece in pieces)
    apart = data[: data.index(b"IDAT") - 4] + chunk(b"tEXt", b"a\0b").join(chunk(b"IDAT", piece) for piece in pieces)
    for changed in (
        data[:end],
        data[:-4],
        data + random.bytes(50),
        split + data[end:],
        apart + data[end:],
        split,
        data[: end - 3],
    ):
        np.testing.assert_array_equal(read(changed), pixels)
    with pytest.raises(UndecodableImage):
        read(data[: int(len(data) * random.uniform(0.3, 0.9))])


@pytest.mark.parametrize("mode", ["F", "I"])
def test_samples_without_an_agreed_look_are_415(random: Random, mode: str) -> None:
    image = Image.fromarray(random.integers(0, 9, (4, 5)).astype(np.float32 if mode == "F" else np.int32))
    with pytest.raises(UnsupportedMedia, match="8 or 16 bits"):
        read(encoded(image, "TIFF"))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits", "group4"])
def test_tiff_of_every_common_compression(random: Random, compression: str | None) -> None:
    pixels = smooth(random, *random.integers(10, 60, 2).tolist())
    image = Image.fromarray(pixels).convert("1") if compression == "group4" else Image.fromarray(pixels)
    pages = {"save_all": True, "append_images": [Image.new(image.mode, (9, 9))]}
    found = read(encoded(image, "TIFF", compression=compression, **pages))
    assert np.abs(found.astype(int) - np.asarray(image.convert("RGB"), int)).mean() < 8


def test_all_bytes_of_an_ordinary_file_may_change_and_nothing_else_is_raised(random: Random) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF", "TIFF"):
        whole = encoded(smooth(random, 16, 20), kind)
        for _ in range(20):
            data = bytearray(whole)
            for place in random.integers(0, len(data), int(random.integers(1, 5))).tolist():
                data[place] ^= int(random.integers(1, 256))
            try:
                assert read(bytes(data[: int(random.integers(1, len(data) + 1))])).dtype == np.uint8
            except ServiceError as err:
                assert err.status in (400, 413, 415, 422)  # noqa: PT017 - a result is as good
