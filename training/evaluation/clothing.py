"""photos-segment: clothing masks over all 58 names, and whether a photograph's largest area has its name."""

from collections.abc import Sequence

import numpy as np

from training.data.clothing import ClothingMasks
from training.data.photographs import thing
from training.evaluation.metrics import confusion, intersection_over_union
from training.evaluation.photographs import Gallery
from training.evaluation.segmentation import Segment

_NAMES = 10  # that a photograph of the gallery is asked for


def clothing_iou(masks: ClothingMasks, segment: Segment) -> dict[str, float]:
    """Mean IoU over the names that occur, one confusion matrix over all photographs, with all names as prompts."""
    total = np.zeros((len(masks.names) + 1,) * 2, np.int64)
    for number in masks.numbers:
        labels, _ = segment(masks.pixels(number), masks.names)
        total += confusion(masks.labels(number), labels, len(total))
    ground = np.array([[total[0, 0], total[0, 1:].sum()], [total[1:, 0].sum(), total[1:, 1:].sum()]])
    shown = np.flatnonzero(total.sum(axis=1)[1:]) + 1
    return {
        "miou": float(intersection_over_union(total)[shown].mean()),
        "figure_ground": float(intersection_over_union(ground).mean()),
    }


def largest_area(gallery: Gallery, segment: Segment, count: int, *, seed: int = 0) -> float:
    """Share of `count` photographs, spread over the gallery, whose largest area has their name among ten."""
    names = sorted({image.name for image in gallery.images})
    rng, hits = np.random.default_rng(seed), []
    for row in np.linspace(0, len(gallery.images) - 1, count).astype(int):
        image = gallery.images[row]
        others = [name for name in names if thing(name) != thing(image.name)]
        asked: Sequence[str] = [image.name, *rng.choice(others, _NAMES - 1, replace=False).tolist()]
        order = rng.permutation(_NAMES)  # an argmax prefers the first of equals
        labels, _ = segment(gallery.files.archive.pixels(image.file), [asked[place] for place in order])
        areas = np.bincount(labels.ravel(), minlength=_NAMES + 1)[1:]
        hits.append(bool(areas.any()) and order[int(areas.argmax())] == 0)
    return float(np.mean(hits))
