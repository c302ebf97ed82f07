"""Images in, masks out: against Pillow's and COCO's own code."""

import io
import json
from datetime import date
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from vermouth_client.calls import json_of
from vermouth_client.images import Strokes, file_bytes, several, wire, wires
from vermouth_client.masks import decode_rle, overlay
from vermouth_client.models import SegmentResponse


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (3, 5, 3), (3, 5, 4)])
def test_arrays_become_png_without_loss(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    decoded = np.asarray(Image.open(io.BytesIO(file_bytes(array))))
    assert np.array_equal(decoded.reshape(shape), array)
    assert np.array_equal(decoded, np.asarray(Image.open(io.BytesIO(file_bytes(array[:, ::1])))))


@pytest.mark.parametrize("array", [np.zeros((3, 5)), np.zeros((3, 5, 2), np.uint8), np.zeros((0, 5), np.uint8)])
def test_other_arrays_are_refused_with_what_is_wanted(array: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        wire(array)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pil_images_keep_their_colours(mode: str) -> None:
    colours = np.random.default_rng(3).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(colours).convert("RGB" if mode in ("LA", "RGBA") else mode).convert(mode)
    sent = Image.open(io.BytesIO(file_bytes(image)))
    kind = mode if mode in ("1", "L", "LA", "RGBA") else "RGB"
    assert np.array_equal(np.asarray(sent.convert(kind)), np.asarray(image.convert(kind)))


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_images_of_16_bits_keep_their_values(mode: str) -> None:
    values = np.array([[0, 1, 255], [256, 40_000, 65_535]], np.uint16)
    data = values.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    sent = Image.open(io.BytesIO(file_bytes(Image.frombytes(mode, (3, 2), data))))
    assert np.array_equal(np.asarray(sent), values)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_images_without_a_range_of_values_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode {mode} has no range of values: convert it"):
        wire(Image.new(mode, (4, 3)))


def test_pil_images_are_sent_upright() -> None:
    image, exif = Image.fromarray(np.arange(15, dtype=np.uint8).reshape(3, 5)), Image.Exif()
    exif[0x112] = 6  # turned by a quarter
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    sent = Image.open(io.BytesIO(file_bytes(Image.open(file))))
    assert np.array_equal(np.asarray(sent), np.rot90(np.asarray(image), 3))


def test_cmyk_images_are_sent_as_they_are_with_their_profile() -> None:
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (3, 4, 4), dtype=np.uint8), "CMYK")
    image.info["icc_profile"] = b"a profile"
    sent = Image.open(io.BytesIO(file_bytes(image)))
    assert (sent.mode, sent.info["icc_profile"]) == ("CMYK", b"a profile")
    assert np.array_equal(np.asarray(sent), np.asarray(image))


@pytest.mark.parametrize("one", ["cat", b"cat", {"a": 1}, io.BytesIO(), Image.new("L", (3, 3)), np.zeros((3, 5, 3)), 3])
def test_one_value_in_place_of_several_is_a_sentence(one: Any) -> None:
    with pytest.raises(TypeError, match=r"queries takes several values, not one .*: give a list"):
        wires("queries", one)


def test_stacks_and_generators_are_several() -> None:
    assert len(wires("queries", np.zeros((2, 5, 5, 3), np.uint8))) == 2  # type: ignore[arg-type]  # works all the same
    assert several("ids", np.array(["a", "b"])) == ["a", "b"]  # type: ignore[arg-type]
    assert several("ids", (one for one in "ab")) == ["a", "b"]  # type: ignore[arg-type]


def test_strokes_of_numpy_are_json() -> None:
    drawing = Strokes(np.array([[[0, 1], [2, 3]]]), np.float32(4), np.int64(5))  # type: ignore[arg-type]
    assert json.loads(json_of(wire(drawing))) == {"strokes": [[[0, 1], [2, 3]]], "width": 4, "height": 5}
    with pytest.raises(TypeError, match="date has no form in JSON"):
        json_of({"a": date(2026, 1, 1)})


def test_svg_is_known_by_its_first_letter_and_no_image_is_a_sentence() -> None:
    assert wire(b" <svg/>") == {"svg": " <svg/>"}
    assert wire(b"<?xml version='1.0' encoding='latin-1'?><svg>\xe4</svg>") == {"svg": "<svg>\xe4</svg>"}
    with pytest.raises(TypeError, match="int is no image: give a path"):
        wire(3)  # type: ignore[arg-type]  # the mistake
    with pytest.raises(FileNotFoundError):
        wire("no such file.png")


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (90, 61)])
def test_masks_are_those_of_pycocotools(size: tuple[int, int], density: float) -> None:
    mask = np.random.default_rng(2).random(size) < density
    counts = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
    assert np.array_equal(decode_rle(size, counts), mask)


def test_labels_and_overlay_of_a_response() -> None:
    found = SegmentResponse.model_validate(
        {
            "width": 4, "height": 2, "fingerprint": "f", "timings_ms": {},
            "classes": [
                {"index": 1, "name": "a", "area": 4, "fraction": 0.5, "score": 1, "bbox": [0, 0, 2, 2],
                 "mask": {"size": [2, 4], "counts": "044"}},
                {"index": 2, "name": "b", "area": 0, "fraction": 0, "score": 0, "bbox": None, "mask": None},
            ],
        }
    )  # fmt: skip
    assert found.labels.tolist() == [[1, 1, 0, 0]] * 2
    assert found.classes[1].mask.shape == (2, 4)
    assert found.overlay().getpixel((3, 0)) == (255, 255, 255)
    black = overlay(file_bytes(np.zeros((4, 8), np.uint8)), found.labels)
    assert black.getpixel((3, 0)) == (0, 0, 0)
    assert black.getpixel((0, 0)) != (0, 0, 0)
    with pytest.raises(ValueError, match="frozen"):
        found.width = 3  # type: ignore[misc]  # the mistake
