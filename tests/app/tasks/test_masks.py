"""Label maps to regions, against pycocotools and Pillow."""

import base64
import io
import json

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from scipy import ndimage

from app.errors import TooMuchWork
from app.imaging.raster import tile_image
from app.tasks.masks import bit_png, outlines, overlay_png, palette_png, regions, without_islands


@pytest.mark.parametrize("seed", range(5))
def test_regions_equal_those_of_pycocotools(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, (17, 23)).astype(np.uint8)
    labels = np.repeat(labels, 3, axis=0)
    labels[labels == 3] = 255
    for index, region in enumerate(regions(labels, 5), start=1):
        mask = labels == index
        if not mask.any():
            assert region is None
            continue
        assert region is not None
        expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert region.rle_counts == expected["counts"].decode()
        assert region.area == int(coco.area(expected)) == int(mask.sum())
        assert list(region.bbox) == [int(v) for v in coco.toBbox(expected)]


def test_regions_lie_where_they_are_whatever_surrounds_them() -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[5:9, 7:12], labels[8:18, 20:25] = 2, 1
    expected = [coco.encode(np.asfortranarray((labels == index).astype(np.uint8))) for index in (1, 2)]
    found = regions(labels, 3)
    assert [region.rle_counts if region else None for region in found] == [
        *(one["counts"].decode() for one in expected),
        None,
    ]
    assert [region.bbox if region else None for region in found] == [(20, 8, 5, 10), (7, 5, 5, 4), None]
    assert regions(np.zeros((20, 30), np.uint8), 2) == [None, None]


def test_255_classes_keep_their_regions() -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = regions(labels, 255)
    assert [region.area if region else 0 for region in found] == [1] * 255


def test_palette_png_carries_labels_and_names() -> None:
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    image = Image.open(io.BytesIO(palette_png(labels, ["cat", "Größe"])))
    image.load()
    assert image.mode == "P"
    assert np.asarray(image).tolist() == labels.tolist()
    assert json.loads(image.info["classes"]) == {"1": "cat", "2": "Größe"}


def test_bit_png_is_one_bit_deep() -> None:
    mask = np.array([[True, False, True]])
    image = Image.open(io.BytesIO(base64.b64decode(bit_png(mask))))
    assert image.mode == "1"
    assert np.asarray(image).tolist() == mask.tolist()


def grid(text: str) -> NDArray[np.bool_]:
    return np.array([[letter == "#" for letter in line] for line in text.split()])


def rasterised(rings: list[list[int]], height: int, width: int) -> NDArray[np.bool_]:
    """What pycocotools makes of polygons."""
    if not rings:
        return np.zeros((height, width), np.bool_)
    return np.asarray(coco.decode(coco.merge(coco.frPyObjects(rings, height, width))), np.bool_)


@pytest.mark.parametrize(
    ("text", "rings"),
    [
        pytest.param("#", [[0, 0, 1, 0, 1, 1, 0, 1]], id="a pixel"),
        pytest.param("##", [[0, 0, 2, 0, 2, 1, 0, 1]], id="a line of two"),
        pytest.param("### #.# ###", [[0, 0, 3, 0, 3, 3, 0, 3]], id="a ring, whose hole is filled"),
        pytest.param(
            "#. .#", [[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]], id="islands that touch at a corner"
        ),
        pytest.param(".# #.", [[1, 0, 2, 0, 2, 1, 1, 1], [0, 1, 1, 1, 1, 2, 0, 2]], id="the same, mirrored"),
        pytest.param("... ...", [], id="nothing"),
    ],
)
def test_small_outlines_are_rings_of_four_corners(text: str, rings: list[list[int]]) -> None:
    mask = grid(text)
    assert outlines(mask) == rings
    assert outlines(mask, left=5, top=7) == [
        [value + (7 if at % 2 else 5) for at, value in enumerate(ring)] for ring in rings
    ]


@pytest.mark.parametrize("seed", range(30))
# pycocotools 2.0.11 decodes through NumPy's old copy protocol.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_rasterise_to_the_islands_with_their_holes_filled(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = generator.random((23, 31)) < (0.2, 0.5, 0.8)[seed % 3]
    if seed % 2:
        mask = np.repeat(np.repeat(mask[:9, :11], 3, axis=0), 2, axis=1)
    _, count = ndimage.label(mask)
    rings = outlines(mask)
    assert len(rings) == count
    # A hole is what eight neighbours do not connect with the outside.
    holes = ndimage.binary_fill_holes(mask, np.ones((3, 3))) & ~mask
    assert (rasterised(rings, *mask.shape) == mask | holes).all()


@pytest.mark.parametrize("seed", range(20))
def test_small_islands_are_dropped_as_by_labelling_pixels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.choice(np.array([0, 1, 2, 3, 255], np.uint8), (19, 26), p=[0.4, 0.2, 0.2, 0.1, 0.1])
    expected = labels.copy()
    for index in (1, 2, 3):
        islands, count = ndimage.label(labels == index)
        for number in range(1, count + 1):
            if (islands == number).sum() < 4:
                expected[islands == number] = 0
    assert (without_islands(labels, 4, 0) == expected).all()
    assert (without_islands(labels, 1, 0) == labels).all()
    assert set(np.unique(without_islands(labels, 10**6, 255)).tolist()) <= {0, 255}


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_the_smallest_label_maps_have_islands_too(shape: tuple[int, int]) -> None:
    labels = np.ones(shape, np.uint8)
    assert (without_islands(labels, labels.size, 0) == 1).all()
    assert (without_islands(labels, labels.size + 1, 0) == 0).all()


@pytest.mark.parametrize(("height", "width"), [(40, 60), (300, 500), (900, 30), (1, 1), (3, 5000)])
def test_an_overlay_shows_the_image_under_its_masks_and_names_them(height: int, width: int) -> None:
    pixels = np.full((height, width, 3), (0, 0, 200), np.uint8)
    labels = np.zeros((height, width), np.uint8)
    labels[: height // 2] = 1
    image = Image.open(io.BytesIO(overlay_png(labels, ["sky", "見出し"], tile_image(pixels, 128, 16))))
    scale = min(1.0, 2048 / max(height, width))
    assert image.width == max(200, round(width * scale))
    assert image.height == max(1, round(height * scale)) + (22 if height > 1 else 0)
    if height >= 40:  # thinner ones are blended with the white around them
        shown = np.asarray(image)
        assert shown[round(height * scale * 3 / 4), 0].tolist() == pytest.approx([0, 0, 200], abs=3)
        assert shown[2, 0].tolist() == pytest.approx([64, 0, 100], abs=3)


def test_the_corners_of_one_response_are_bounded_together() -> None:
    mask = np.ones((4, 4), bool)
    assert len(outlines(mask, max_corners=4)[0]) == 8
    with pytest.raises(TooMuchWork, match="larger min_area"):
        outlines(mask, max_corners=3)
