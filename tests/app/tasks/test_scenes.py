"""Fifty drawn scenes of five classes: COCO documents and polygons have the areas of the label map."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco
from pycocotools.coco import COCO
from scipy import ndimage

from app.tasks.masks import outlines, regions

CLASSES = 5


def scene(seed: int) -> NDArray[np.uint8]:
    """A label map of shapes over each other, some with holes, some in pieces, some touching at corners."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(40, 400, 2).tolist()
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        x, y = generator.integers(0, (width, height)).tolist()
        w, h = generator.integers(1, 120, 2).tolist()
        label = int(generator.integers(0, CLASSES + 1))
        (draw.ellipse, draw.rectangle)[label % 2]((x, y, x + w, y + h), fill=label)
        draw.ellipse((x + w // 3, y + h // 3, x + 2 * w // 3, y + 2 * h // 3), fill=(label + 1) % (CLASSES + 1))
    labels = np.array(image)
    noise = generator.random(labels.shape) < 0.01
    labels[noise] = generator.integers(0, CLASSES + 1, int(noise.sum()))
    return labels


# pycocotools 2.0.11 decodes through NumPy's old copy protocol.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("seed", range(50))
def test_areas_and_polygons_are_those_of_the_label_map(seed: int) -> None:
    labels = scene(seed)
    height, width = labels.shape
    document = COCO()
    document.dataset = {
        "images": [{"id": 1, "width": width, "height": height, "file_name": ""}],
        "categories": [{"id": index, "name": str(index)} for index in range(1, CLASSES + 1)],
        "annotations": [
            {"id": index, "image_id": 1, "category_id": index, "iscrowd": 0, "area": one.area, "bbox": one.bbox}
            | {"segmentation": {"size": [height, width], "counts": one.rle_counts}}
            for index, one in enumerate(regions(labels, CLASSES), start=1)
            if one is not None
        ],
    }
    document.createIndex()
    annotations = document.loadAnns(document.getAnnIds(imgIds=[1]))
    assert {one["id"] for one in annotations} == set(np.unique(labels).tolist()) - {0}
    for annotation in annotations:
        mask = labels == annotation["id"]
        assert annotation["area"] == int(mask.sum())
        assert (np.asarray(document.annToMask(annotation), bool) == mask).all()
        x, y, w, h = annotation["bbox"]
        rings = outlines(mask[y : y + h, x : x + w], x, y)
        filled = coco.decode(coco.merge(coco.frPyObjects(rings, height, width)))
        assert (np.asarray(filled, bool) == (mask | ndimage.binary_fill_holes(mask, np.ones((3, 3))))).all()
