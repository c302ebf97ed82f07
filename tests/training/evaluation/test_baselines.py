"""Baselines give unit vectors that tell pictures apart, and are what they say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.bundle.build import load_expert
from models.bundle.pack import lite0_part
from models.errors import BundleError
from models.transforms import canonical_strokes
from training.evaluation.baselines import expert_embedding, hog_embedding
from training.prior.corpus import to_tensor


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """A square, the same square moved and scaled, and a cross: [3, 128, 128, 3]."""
    square = [[[0, 10, 10, 0, 0], [0, 0, 10, 10, 0]]]
    larger = [[[50, 90, 90, 50, 50], [30, 30, 70, 70, 30]]]
    cross = [[[0, 10], [5, 5]], [[5, 5], [0, 10]]]
    return np.stack([canonical_strokes(strokes) for strokes in (square, larger, cross)])


def test_hog_sees_the_shape(pixels: NDArray[np.uint8]) -> None:
    vectors = hog_embedding(pixels)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > similarity[0, 2]


def test_hog_of_blank_paper_is_finite() -> None:
    assert np.isfinite(hog_embedding(np.full((1, 128, 128, 3), 255, np.uint8))).all()


def test_expert_baseline_is_the_mean_of_its_last_map(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    expert = load_expert(lite0_part(), tmp_path).eval()
    embed = expert_embedding(expert)
    vectors = embed(pixels)
    with torch.inference_mode():
        mean = expert(to_tensor(pixels))[-1].mean(dim=(2, 3)).numpy()
    assert vectors == pytest.approx(mean / np.linalg.norm(mean, axis=1, keepdims=True), abs=1e-5)
    assert embed(pixels[:1])[0] == pytest.approx(vectors[0], abs=1e-4)


def test_a_bundle_without_an_expert_says_so(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(BundleError, match="no expert"):
        expert_embedding(None)(pixels)
