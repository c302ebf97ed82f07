"""Everything is computed once, and never mistaken for something else."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data.dataset import DataSet, PictureRecord
from training.evaluation import cache as module
from training.evaluation.cache import EvaluationCache


@pytest.fixture
def data() -> DataSet:
    pixels = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(128 * 128 * 3).reshape(4, 128, 128, 3)
    records = (
        PictureRecord(row=row, source="noto", kind="picture", hexcode=str(row), name=str(row), split="seen")
        for row in range(4)
    )
    return DataSet(pixels=pixels, alpha=pixels[..., 0], pictures=tuple(records), drawings=())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First values of the pictures whose canonical form was made; the form adds one hundred."""
    made: list[int] = []

    def canonical(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        made.append(int(pixels[0, 0, 0]))
        return np.asarray(pixels + np.uint8(100), dtype=np.uint8)

    monkeypatch.setattr(module, "canonical_image", canonical)
    return made


def test_a_picture_is_made_once_whoever_asks(data: DataSet, calls: list[int], tmp_path: Path) -> None:
    first = EvaluationCache(tmp_path, "v1").pictures(data, data.pictures[:2])
    assert first[:, 0, 0, 0].tolist() == [100, 101]
    again = EvaluationCache(tmp_path, "v1").pictures(data, [data.pictures[n] for n in (3, 1)])
    assert again[:, 0, 0, 0].tolist() == [103, 101]
    assert calls == [0, 1, 3]
    EvaluationCache(tmp_path, "v2").pictures(data, data.pictures[:1])
    assert calls == [0, 1, 3, 0]


def test_rasters_are_told_apart_by_name(calls: list[int], tmp_path: Path) -> None:
    cache = EvaluationCache(tmp_path, "v1")
    raster = np.full((128, 128, 3), 7, np.uint8)
    for name in ("thin", "thick", "thin"):
        assert cache.canonical(lambda: [raster], name)[0, 0, 0, 0] == 107
    assert calls == [7, 7]


def test_features_are_kept_by_model_and_pictures(data: DataSet, tmp_path: Path) -> None:
    asked: list[int] = []

    def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        asked.append(len(pixels))
        return pixels[:, 0, 0].astype(np.float32)

    cache = EvaluationCache(tmp_path, "v1")
    for model, count in (("a", 4), ("a", 4), ("b", 4), ("a", 3)):
        found = cache.features(model, embed, data.pixels[:count])
        assert found[:, 0].tolist() == list(range(count))
    assert asked == [4, 4, 3]
