"""The `scenes` protocol: composed scenes, segmented by their names and as many absent ones."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle.build import LoadedBundle
from models.heads.segmentation import SegmentationHead
from models.heads.stitching import ViewProbabilities, blend
from models.heads.training_free import TrainingFreeHead
from models.transforms import ViewBox, cut_view, plan_views, to_unit
from training.data.scenes import Scene, ScenePool, compose_evaluation_scene
from training.evaluation.features import plain_batch
from training.evaluation.metrics import Calibration, calibration, confusion, intersection_over_union
from training.evaluation.retrieval import unit_length

Segment = Callable[[NDArray[np.uint8], Sequence[str]], tuple[NDArray[np.uint8], NDArray[np.float64]]]
"""[H, W, 3] uint8 and names → labels [H, W] uint8 (0 background, i + 1 the i-th name) and confidence [H, W]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneFigures:
    """Figures of a pool's scenes."""

    protocol: str  # its name with the pool's
    scenes: int  # number of scenes
    mean_iou: float  # mean over scenes of a scene's mean over background, present names and predicted absent ones (0)
    class_iou: float  # over all scenes at once, as open-vocabulary benchmarks count: background and every name shown
    figure_ground_iou: float  # mean over scenes of the IoU of anything named and of background, averaged
    calibration_error: float  # of the probability of the label


class SceneTally:
    """Collects answers scene by scene."""

    def __init__(self) -> None:
        self._means: list[float] = []
        self._grounds: list[float] = []
        self._confidences: list[NDArray[np.float64]] = []
        self._hits: list[NDArray[np.bool_]] = []
        self._by_name: defaultdict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(2, np.int64))
        self._shown = {""}  # names that scenes show; the empty one is the background

    def add(self, scene: Scene, labels: NDArray[np.uint8], confidence: NDArray[np.float64]) -> None:
        """Add one scene's answer: labels [H, W] uint8 and confidence [H, W]."""
        matrix = confusion(scene.labels, labels, len(scene.prompts) + 1)
        hits = np.diag(matrix)
        unions = matrix.sum(axis=0) + matrix.sum(axis=1) - hits
        for name, counts in zip(("", *scene.prompts), np.stack([hits, unions], axis=1), strict=True):
            self._by_name[name] += counts
        self._shown.update(scene.present)
        self._means.append(float(np.nanmean(intersection_over_union(matrix))))
        ground = confusion((scene.labels > 0).astype(int), (labels > 0).astype(int), 2)
        self._grounds.append(float(np.nanmean(intersection_over_union(ground))))
        # Neighbouring pixels say the same, so one in 16 is enough.
        self._confidences.append(confidence[::4, ::4].ravel())
        self._hits.append((labels == scene.labels)[::4, ::4].ravel())

    def calibration(self) -> Calibration:
        """Calibration of the labels' probabilities, over one pixel in 16."""
        return calibration(np.concatenate(self._confidences), np.concatenate(self._hits))

    def figures(self, name: str) -> SceneFigures:
        """Figures of all scenes added."""
        # Names that no scene shows do not count, whatever was predicted for them.
        hits, unions = np.stack([self._by_name[shown] for shown in sorted(self._shown)]).T
        return SceneFigures(
            protocol=name,
            scenes=len(self._means),
            mean_iou=float(np.mean(self._means)),
            class_iou=float(np.mean(hits / unions)),
            figure_ground_iou=float(np.mean(self._grounds)),
            calibration_error=self.calibration().error,
        )


def tally(pool: ScenePool, segment: Segment, scenes: int) -> SceneTally:
    """Segment evaluation scenes 0 … `scenes` − 1, each with its present and absent names."""
    found = SceneTally()
    for index in range(scenes):
        scene = compose_evaluation_scene(pool, index)
        found.add(scene, *segment(scene.pixels, scene.prompts))
    return found


def segmenter(loaded: LoadedBundle) -> Segment:
    """A bundle's segmentation, with the views and the stitching of `/segment`."""
    profile = loaded.info.tasks["segmentation"]

    def segment(pixels: NDArray[np.uint8], names: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        height, width = pixels.shape[:2]
        boxes = plan_views(height, width, profile.tile_side, max_tiles=profile.max_tiles)
        views = views_of(pixels, boxes, profile.resolution)
        dense = loaded.encoder.encode_images(plain_batch(views, profile.timestep)).dense.numpy()
        texts = class_embeddings(lambda strings: loaded.encoder.encode_texts(strings).pooled, names, profile.templates)
        return stitched(loaded.segmentation_head, boxes, dense, texts=texts, size=(height, width))

    return segment


def views_of(pixels: NDArray[np.uint8], boxes: Sequence[ViewBox], side: int) -> torch.Tensor:
    """[H, W, 3] uint8 and N boxes → [N, 3, side, side] float32 in [-1, 1]."""
    return torch.from_numpy(np.stack([to_unit(cut_view(pixels, box, side)) for box in boxes]))


def stitched(
    head: SegmentationHead | TrainingFreeHead,
    boxes: Sequence[ViewBox],
    dense: NDArray[np.float32],
    *,
    texts: NDArray[np.float32],
    size: tuple[int, int],
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Labels [H, W] uint8 and confidence [H, W] of an image of `size` (H, W).

    Args:
        head: of the bundle.
        boxes: V views of the image.
        dense: [V, D, h, w] their maps.
        texts: [N, D] embeddings of the names.
    """
    probabilities = [
        ViewProbabilities(box=box, values=head.probabilities(values, texts))
        for box, values in zip(boxes, dense, strict=True)
    ]
    blended = blend(probabilities, 0, *size)
    return blended.argmax(axis=0).astype(np.uint8), blended.max(axis=0).astype(np.float64)


def class_embeddings(
    embed: Callable[[Sequence[str]], torch.Tensor], names: Sequence[str], templates: Sequence[str]
) -> NDArray[np.float32]:
    """[N, D] float32, unit length: the mean over the prompt templates, as served."""
    templates = templates or ("{}",)
    strings = [template.replace("{}", name) for name in names for template in templates]
    means = embed(strings).numpy().reshape(len(names), len(templates), -1).mean(axis=1)
    return unit_length(means)
