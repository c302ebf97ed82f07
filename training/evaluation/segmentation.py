"""The `scenes` protocol: composed scenes, their names and as many absent ones."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.scenes import Scene, ScenePool, compose_evaluation_scene
from training.evaluation.metrics import Calibration, calibration, confusion, intersection_over_union

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


class SceneTally:
    """Figures that grow scene by scene."""

    def __init__(self) -> None:
        self._means: list[float] = []
        self._grounds: list[float] = []
        self._confidences: list[NDArray[np.float64]] = []
        self._hits: list[NDArray[np.bool_]] = []
        self._by_name = _NameCounts()

    def add(self, scene: Scene, labels: NDArray[np.uint8], confidence: NDArray[np.float64]) -> None:
        """Counts one scene's answer, labels and confidence [H, W]."""
        matrix = confusion(scene.labels, labels, len(scene.prompts) + 1)
        self._by_name.add(scene, matrix)
        self._means.append(float(np.nanmean(intersection_over_union(matrix))))
        ground = confusion((scene.labels > 0).astype(int), (labels > 0).astype(int), 2)
        self._grounds.append(float(np.nanmean(intersection_over_union(ground))))
        self._confidences.append(confidence[::4, ::4].ravel())
        self._hits.append((labels == scene.labels)[::4, ::4].ravel())

    def calibration(self) -> Calibration:
        """Of the probability of the label given, over one pixel of 16."""
        return calibration(np.concatenate(self._confidences), np.concatenate(self._hits))

    def figures(self, name: str) -> SceneFigures:
        """Of everything added."""
        return SceneFigures(
            protocol=name,
            scenes=len(self._means),
            mean_iou=float(np.mean(self._means)),
            class_iou=self._by_name.mean(),
            figure_ground_iou=float(np.mean(self._grounds)),
            calibration_error=self.calibration().error,
        )


def measure(pool: ScenePool, segment: Segment, *, name: str, scenes: int) -> SceneFigures:
    """Segments evaluation scenes 0 … `scenes` − 1, each with its present and absent names."""
    return tally(pool, segment, scenes).figures(name)


def tally(pool: ScenePool, segment: Segment, scenes: int) -> SceneTally:
    """`measure`, with what its figures are made of."""
    found = SceneTally()
    for index in range(scenes):
        scene = compose_evaluation_scene(pool, index)
        found.add(scene, *segment(scene.pixels, scene.prompts))
    return found
