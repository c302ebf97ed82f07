"""The `scenes` protocol: composed scenes, their names and as many absent ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.scenes import Scene, ScenePool, compose_evaluation_scene
from models.evaluation.metrics import calibration, confusion, intersection_over_union

Segment = Callable[[NDArray[np.uint8], Sequence[str]], tuple[NDArray[np.uint8], NDArray[np.float64]]]
"""[H, W, 3] uint8 and names → labels [H, W] uint8 (0 background, i + 1 the i-th name) and confidence [H, W]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneFigures:
    """Means over scenes; `calibration_error` is over pixels, of the probability of the label given."""

    protocol: str
    scenes: int
    mean_iou: float
    figure_ground_iou: float
    calibration_error: float


def measure(pool: ScenePool, segment: Segment, *, name: str, scenes: int) -> SceneFigures:
    """Segments evaluation scenes 0 … `scenes` − 1.

    The mean IoU of a scene is over its background, its present names, and any absent name that was predicted.
    """
    means, grounds, confidences, hits = [], [], [], []
    for index in range(scenes):
        scene = compose_evaluation_scene(pool, index)
        labels, confidence = segment(scene.pixels, scene.prompts)
        means.append(float(np.nanmean(_iou(scene, labels))))
        ground = intersection_over_union(confusion((scene.labels > 0).astype(int), (labels > 0).astype(int), 2))
        grounds.append(float(np.nanmean(ground)))
        confidences.append(confidence[::4, ::4].ravel())
        hits.append((labels == scene.labels)[::4, ::4].ravel())
    return SceneFigures(
        protocol=name,
        scenes=scenes,
        mean_iou=float(np.mean(means)),
        figure_ground_iou=float(np.mean(grounds)),
        calibration_error=calibration(np.concatenate(confidences), np.concatenate(hits)).error,
    )


def _iou(scene: Scene, labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    return intersection_over_union(confusion(scene.labels, labels, len(scene.prompts) + 1))
