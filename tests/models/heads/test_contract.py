"""Every head kind answers a class given by its name, by a sketch, or by both."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.bundle.build import LoadedBundle
from models.heads.fewshot import prototype_probabilities
from models.transforms import canonical_strokes, to_unit
from models.types import ImageBatch

Vectors = NDArray[np.float32]
Answer = Callable[[LoadedBundle, Vectors, ImageBatch], Vectors]

NAMES = ["house", "zigzag", "circle"]
TURN = np.linspace(0, 2 * np.pi, 40)
SKETCHES = [
    [[[20, 20, 200, 200, 20], [110, 230, 230, 110, 110]], [[10, 110, 210], [110, 20, 110]]],
    [[[0, 30, 60, 90, 120, 150], [0, 60, 0, 60, 0, 60]]],
    [[list(50 + 40 * np.cos(TURN)), list(50 + 40 * np.sin(TURN))]],
]


def _batch(sketches: list[list[list[list[float]]]]) -> ImageBatch:
    pixels = torch.stack([torch.from_numpy(to_unit(canonical_strokes(strokes))) for strokes in sketches])
    count = len(sketches)
    return ImageBatch(pixels=pixels, timesteps=torch.full((count,), 50), captions=[None] * count)


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def _by_text(bundle: LoadedBundle) -> Vectors:
    return bundle.encoder.encode_texts(NAMES).pooled.numpy()


def _by_sketch(bundle: LoadedBundle) -> Vectors:
    return bundle.encoder.encode_images(_batch(SKETCHES)).pooled.numpy()


def _by_both(bundle: LoadedBundle) -> Vectors:
    return _unit(_by_text(bundle) + _by_sketch(bundle))


def _uhead(bundle: LoadedBundle, classes: Vectors, images: ImageBatch) -> Vectors:
    cosines = 20 * bundle.encoder.encode_images(images).pooled.numpy() @ classes.T
    exponentials = np.exp(cosines - cosines.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), dtype=np.float32)


def _prototype(bundle: LoadedBundle, classes: Vectors, images: ImageBatch) -> Vectors:
    queries = bundle.encoder.encode_images(images).pooled.numpy()
    return prototype_probabilities([row[None] for row in classes], queries)


def _segmentation(bundle: LoadedBundle, classes: Vectors, images: ImageBatch) -> Vectors:
    dense = bundle.encoder.encode_images(images).dense.numpy()
    maps = np.stack([bundle.segmentation_head.probabilities(one, classes)[1:] for one in dense])
    means = maps.mean(axis=(2, 3)) + 1e-12
    return np.asarray(means / means.sum(axis=1, keepdims=True), dtype=np.float32)


@pytest.mark.parametrize("answer", [_uhead, _prototype, _segmentation], ids=["u-head", "prototype", "segmentation"])
@pytest.mark.parametrize("classes", [_by_text, _by_sketch, _by_both], ids=["text", "sketch", "both"])
def test_every_head_answers_every_kind_of_class(
    tiny: LoadedBundle, classes: Callable[[LoadedBundle], Vectors], answer: Answer
) -> None:
    vectors = classes(tiny)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    images = _batch(SKETCHES[:2])
    probabilities = answer(tiny, vectors, images)
    assert probabilities.shape == (2, 3)
    assert np.isfinite(probabilities).all()
    assert probabilities.sum(axis=1) == pytest.approx([1, 1], abs=1e-5)
    swapped = answer(tiny, vectors[[2, 0, 1]], images)
    assert swapped == pytest.approx(probabilities[:, [2, 0, 1]], abs=1e-5)


@pytest.mark.parametrize("answer", [_uhead, _prototype], ids=["u-head", "prototype"])
def test_a_sketch_finds_itself(tiny: LoadedBundle, answer: Answer) -> None:
    probabilities = answer(tiny, _by_sketch(tiny), _batch(SKETCHES))
    assert probabilities.argmax(axis=1).tolist() == [0, 1, 2]
