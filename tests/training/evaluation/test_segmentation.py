"""Scene figures on answers whose score is known."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data.scenes import ObjectClass, ScenePool, compose_evaluation_scene
from training.evaluation.segmentation import tally

Answer = tuple[NDArray[np.uint8], NDArray[np.float64]]


@pytest.fixture(scope="module")
def pool() -> ScenePool:
    """Twelve names, one square each of its own grey."""
    alpha = np.zeros((12, 128, 128), np.uint8)
    alpha[:, 20:108, 20:108] = 255
    pixels = np.repeat(np.arange(12, dtype=np.uint8)[:, None, None, None] * 20, 128 * 128 * 3).reshape(12, 128, 128, 3)
    return ScenePool(
        pixels=np.where(alpha[..., None] > 0, pixels, 255).astype(np.uint8),
        alpha=alpha,
        classes=tuple(ObjectClass(name=f"thing {i}", rows=(i,)) for i in range(12)),
    )


def test_the_truth_scores_one(pool: ScenePool) -> None:
    scenes = iter(compose_evaluation_scene(pool, index) for index in range(4))

    def truth(pixels: NDArray[np.uint8], names: Sequence[str]) -> Answer:
        scene = next(scenes)
        assert np.array_equal(pixels, scene.pixels)
        assert tuple(names) == scene.prompts
        return scene.labels, np.ones(scene.labels.shape)

    found = tally(pool, truth, 4).figures("toy")
    assert (found.protocol, found.scenes) == ("toy", 4)
    assert (found.mean_iou, found.class_iou, found.figure_ground_iou, found.calibration_error) == (1, 1, 1, 0)


def test_only_background_scores_its_share(pool: ScenePool) -> None:
    scenes = [compose_evaluation_scene(pool, index) for index in range(3)]
    shares = [float((scene.labels == 0).mean()) for scene in scenes]

    def nothing(pixels: NDArray[np.uint8], _: Sequence[str]) -> Answer:
        return np.zeros(pixels.shape[:2], np.uint8), np.ones(pixels.shape[:2])

    found = tally(pool, nothing, 3).figures("toy")
    per_scene = [share / (len(scene.present) + 1) for scene, share in zip(scenes, shares, strict=True)]
    names = {name for scene in scenes for name in scene.present}
    assert found.mean_iou == pytest.approx(np.mean(per_scene))
    assert found.class_iou == pytest.approx(np.mean(shares) / (len(names) + 1))
    assert found.figure_ground_iou == pytest.approx(np.mean(shares) / 2)


def test_an_absent_name_that_was_predicted_counts_as_zero(pool: ScenePool) -> None:
    scene = compose_evaluation_scene(pool, 0)
    labels = scene.labels.copy()
    labels[labels == len(scene.present)] = len(scene.prompts)

    def mistaken(pixels: NDArray[np.uint8], _: Sequence[str]) -> Answer:
        return labels, np.ones(pixels.shape[:2])

    count = len(scene.present)
    found = tally(pool, mistaken, 1).figures("toy")
    assert found.mean_iou == pytest.approx(count / (count + 2))
    assert found.class_iou == pytest.approx(count / (count + 1))
    assert found.figure_ground_iou == 1
