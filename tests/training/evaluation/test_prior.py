"""The prior's gate: what is asked, and what a perfect, a blind and a copying prior would get."""

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data.dataset import DataSet, ImageRecord
from training.evaluation.prior import CLASSES, SAMPLES, STYLES, Question, measure, question

COUNT = 120


@pytest.fixture(scope="module")
def data() -> DataSet:
    """120 classes of one grey each in four styles (a shade apart), in the flat style, and a class with one style."""
    records, pixels = [], []
    for number in range(COUNT):
        for shade, source in enumerate([*STYLES, "fluent-flat"]):
            split = "evaluation" if source == "fluent-flat" else "seen"
            name = f"thing {number}"
            records.append((source, f"{number:04X}", name, split))
            pixels.append(np.full((8, 8, 3), (number, shade, 0), np.uint8))
    records.append(("noto", "FFFF", "lonely", "seen"))
    pixels.append(np.zeros((8, 8, 3), np.uint8))
    images = tuple(
        ImageRecord(row=row, source=source, kind="picture", hexcode=code, name=name, split=split)
        for row, (source, code, name, split) in enumerate(records)
    )
    stacked = np.stack(pixels)
    return DataSet(pixels=stacked, alpha=stacked[..., 0], images=images, drawings=())


def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """One direction a class, turned a little by style."""
    vectors = np.zeros((len(pixels), COUNT + 8), np.float32)
    rows = np.arange(len(pixels))
    vectors[rows, pixels[:, 0, 0, 0]] = 1
    vectors[rows, COUNT + pixels[:, 0, 0, 1]] = 0.3
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def drawn(asked: Question, data: DataSet, shade: int) -> NDArray[np.uint8]:
    """Samples of a prior that knows all classes, in one style."""
    numbers = [data.pixels[asked.known[4 * label].row][0, 0, 0] for label in asked.wanted]
    return np.stack([np.full((8, 8, 3), (number, shade, 0), np.uint8) for number in numbers])


def test_a_hundred_classes_in_four_styles_are_asked_for(data: DataSet) -> None:
    asked = question(data)
    assert len(set(asked.names)) == CLASSES
    assert "lonely" not in asked.names
    assert len(asked.captions) == SAMPLES
    assert len(set(asked.captions)) == SAMPLES
    assert asked.names[asked.wanted[5]] in asked.captions[5]
    assert len(asked.known) == len(asked.labels) == 4 * CLASSES
    assert question(data).names == asked.names != question(data, seed=1).names


def test_a_prior_that_knows_is_recognised_and_does_not_count_as_copying(data: DataSet) -> None:
    asked = question(data)
    figures = measure(data, asked, drawn(asked, data, shade=6), embed)
    assert figures.recognised == figures.recognised_5 == figures.ceiling == 1
    assert figures.copies == 0
    assert figures.nearest == pytest.approx(1 / 1.09, abs=1e-3)


def test_a_blind_prior_is_at_chance(data: DataSet) -> None:
    asked = question(data)
    same = np.repeat(drawn(asked, data, shade=6)[:1], SAMPLES, axis=0)
    assert measure(data, asked, same, embed).recognised == pytest.approx((asked.wanted == 0).mean())


def test_copies_of_training_images_are_recognized(data: DataSet) -> None:
    asked = question(data)
    assert measure(data, asked, drawn(asked, data, shade=0), embed).copies == 1
