"""Features are computed once, never mistaken for others, and baselines are what they are called."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.bundle.build import load_bundle
from models.bundle.pack import ADAPTERS, lite0_part, save_adapters, write_manifest
from models.bundle.parts import load_expert
from models.errors import BundleError
from models.expert import adapt
from models.transforms import canonical_strokes
from training.data.dataset import DataSet, ImageRecord
from training.evaluation import features as module
from training.evaluation.features import EvaluationCache, expert_embedding, hog_embedding, untrained_of
from training.prior.corpus import to_tensor

MINI = Path(__file__).parents[3] / "weights" / "mini"


@pytest.fixture
def data() -> DataSet:
    pixels = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(128 * 128 * 3).reshape(4, 128, 128, 3)
    records = (
        ImageRecord(row=row, source="noto", kind="picture", hexcode=str(row), name=str(row), split="seen")
        for row in range(4)
    )
    return DataSet(pixels=pixels, alpha=pixels[..., 0], images=tuple(records), drawings=())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First values of the images that were made canonical; doing so adds one hundred."""
    made: list[int] = []

    def canonical(pixels: NDArray[np.uint8], _side: int) -> NDArray[np.uint8]:
        made.append(int(pixels[0, 0, 0]))
        return np.asarray(pixels + np.uint8(100), dtype=np.uint8)

    monkeypatch.setattr(module, "canonical_image", canonical)
    return made


def test_an_image_is_made_canonical_once(data: DataSet, calls: list[int], tmp_path: Path) -> None:
    first = EvaluationCache(tmp_path, "v1").images(data, data.images[:2])
    assert first[:, 0, 0, 0].tolist() == [100, 101]
    again = EvaluationCache(tmp_path, "v1").images(data, [data.images[n] for n in (3, 1)])
    assert again[:, 0, 0, 0].tolist() == [103, 101]
    assert calls == [0, 1, 3]
    EvaluationCache(tmp_path, "v2").images(data, data.images[:1])
    assert calls == [0, 1, 3, 0]


def test_rasters_are_distinguished_by_name(calls: list[int], tmp_path: Path) -> None:
    cache = EvaluationCache(tmp_path, "v1")
    raster = np.full((128, 128, 3), 7, np.uint8)
    for name in ("thin", "thick", "thin"):
        assert cache.canonical(lambda: [raster], name)[0, 0, 0, 0] == 107
    assert calls == [7, 7]


def test_features_are_cached_by_model_and_images(data: DataSet, tmp_path: Path) -> None:
    asked: list[int] = []

    def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        asked.append(len(pixels))
        return pixels[:, 0, 0].astype(np.float32)

    cache = EvaluationCache(tmp_path, "v1")
    for model, count in (("a", 4), ("a", 4), ("b", 4), ("a", 3)):
        found = cache.features(model, embed, data.pixels[:count])
        assert found[:, 0].tolist() == list(range(count))
    assert asked == [4, 4, 3]


@pytest.fixture(scope="module")
def sketches() -> NDArray[np.uint8]:
    """A square, the same square moved and scaled, and a cross: [3, 128, 128, 3]."""
    square = [[[0, 10, 10, 0, 0], [0, 0, 10, 10, 0]]]
    larger = [[[50, 90, 90, 50, 50], [30, 30, 70, 70, 30]]]
    cross = [[[0, 10], [5, 5]], [[5, 5], [0, 10]]]
    return np.stack([canonical_strokes(strokes) for strokes in (square, larger, cross)])


def test_hog_sees_the_shape(sketches: NDArray[np.uint8]) -> None:
    vectors = hog_embedding(sketches)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > similarity[0, 2]


def test_hog_of_a_blank_image_is_finite() -> None:
    assert np.isfinite(hog_embedding(np.full((1, 128, 128, 3), 255, np.uint8))).all()


def test_expert_baseline_is_the_mean_of_its_last_map(sketches: NDArray[np.uint8], tmp_path: Path) -> None:
    expert = load_expert(lite0_part(), tmp_path).eval()
    embed = expert_embedding(expert)
    vectors = embed(sketches)
    with torch.inference_mode():
        mean = expert(to_tensor(sketches))[-1].mean(dim=(2, 3)).numpy()
    assert vectors == pytest.approx(mean / np.linalg.norm(mean, axis=1, keepdims=True), abs=1e-5)
    assert embed(sketches[:1])[0] == pytest.approx(vectors[0], abs=1e-4)


def test_a_bundle_without_an_expert_says_so(sketches: NDArray[np.uint8]) -> None:
    with pytest.raises(BundleError, match="no expert"):
        expert_embedding(None)(sketches)


def test_the_untrained_expert_is_the_one_before_it_learnt(tmp_path: Path) -> None:
    bundle = tmp_path / "adapted"
    shutil.copytree(MINI, bundle)
    expert = load_expert(lite0_part(), bundle).eval()
    with torch.no_grad():
        for weights in adapt(expert).parameters():
            weights.normal_(std=0.1)
    save_adapters(expert, bundle / "heads" / ADAPTERS)
    write_manifest(bundle, name="adapted", licence="", attribution="")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    loaded = load_bundle(bundle, device="cpu")
    baseline = untrained_of(loaded, EvaluationCache(tmp_path / "cache", "test"))[2]
    frozen = expert_embedding(load_expert(lite0_part(), bundle).eval())(pixels)
    assert np.allclose(baseline.embed(pixels), frozen, atol=1e-5)
    assert not np.allclose(expert_embedding(loaded.encoder.extractor.expert)(pixels), frozen, atol=1e-3)
