"""The `scenes` protocol: composed scenes, their names and as many absent ones."""

from collections import defaultdict
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
    """What came of the scenes.

    Attributes:
        protocol: name with the pool's.
        scenes: how many.
        mean_iou: mean over scenes of the mean IoU of a scene's background, its present names and any absent
            name that was predicted (which scores 0).
        class_iou: one confusion over all scenes, as open-vocabulary benchmarks count: the mean over the
            background and every name that some scene shows.
        figure_ground_iou: mean over scenes of the IoU of anything named and of background, averaged.
        calibration_error: over pixels (one of 16), of the probability of the label given.
    """

    protocol: str
    scenes: int
    mean_iou: float
    class_iou: float
    figure_ground_iou: float
    calibration_error: float


class _NameCounts:
    """Intersection and union of every name over all scenes; the background is the empty name."""

    def __init__(self) -> None:
        self._hits: defaultdict[str, int] = defaultdict(int)
        self._unions: defaultdict[str, int] = defaultdict(int)
        self._shown: set[str] = {""}

    def add(self, scene: Scene, matrix: NDArray[np.int64]) -> None:
        hits = np.diag(matrix)
        unions = matrix.sum(axis=0) + matrix.sum(axis=1) - hits
        for name, hit, union in zip(("", *scene.prompts), hits, unions, strict=True):
            self._hits[name] += int(hit)
            self._unions[name] += int(union)
        self._shown.update(scene.present)

    def mean(self) -> float:
        return float(np.mean([self._hits[name] / self._unions[name] for name in sorted(self._shown)]))


def measure(pool: ScenePool, segment: Segment, *, name: str, scenes: int) -> SceneFigures:
    """Segments evaluation scenes 0 … `scenes` − 1, each with its present and absent names."""
    means, grounds, confidences, hits = [], [], [], []
    by_name = _NameCounts()
    for index in range(scenes):
        scene = compose_evaluation_scene(pool, index)
        labels, confidence = segment(scene.pixels, scene.prompts)
        matrix = confusion(scene.labels, labels, len(scene.prompts) + 1)
        by_name.add(scene, matrix)
        means.append(float(np.nanmean(intersection_over_union(matrix))))
        ground = confusion((scene.labels > 0).astype(int), (labels > 0).astype(int), 2)
        grounds.append(float(np.nanmean(intersection_over_union(ground))))
        confidences.append(confidence[::4, ::4].ravel())
        hits.append((labels == scene.labels)[::4, ::4].ravel())
    return SceneFigures(
        protocol=name,
        scenes=scenes,
        mean_iou=float(np.mean(means)),
        class_iou=by_name.mean(),
        figure_ground_iou=float(np.mean(grounds)),
        calibration_error=calibration(np.concatenate(confidences), np.concatenate(hits)).error,
    )
