"""Label maps to regions, against pycocotools and Pillow."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from app.tasks.masks import bit_png, palette_png, regions


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
