"""Metrics as pure functions of NumPy arrays. Where papers differ, both definitions stand here under their own names."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ranked_relevance(scores: NDArray[np.floating], relevant: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Relevance in order of descending score, ties by position: [Q, G] and [Q, G] → [Q, G] bool."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(relevant, order, axis=1)


def average_precision(ranked: NDArray[np.bool_], at: int | None = None) -> Floats:
    """Average precision a query: the mean of the precision at each relevant rank (no interpolation).

    Args:
        ranked: [Q, G] relevance by rank; every query has a relevant item.
        at: only the first `at` ranks count; the denominator is min(at, positives), as in SketchFusion's mAP@200.

    Returns:
        [Q] in [0, 1].
    """
    cut = ranked if at is None else ranked[:, :at]
    precision = np.cumsum(cut, axis=1) / np.arange(1, cut.shape[1] + 1)
    positives = ranked.sum(axis=1)
    denominator = positives if at is None else np.minimum(at, positives)
    return np.asarray((precision * cut).sum(axis=1) / np.maximum(denominator, 1), dtype=np.float64)


def voc_average_precision(ranked: NDArray[np.bool_]) -> Floats:
    """Average precision under the precision envelope (VOC 2010): [Q, G] → [Q]."""
    precision = np.cumsum(ranked, axis=1) / np.arange(1, ranked.shape[1] + 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return np.asarray((envelope * ranked).sum(axis=1) / np.maximum(ranked.sum(axis=1), 1), dtype=np.float64)


def precision_at(ranked: NDArray[np.bool_], k: int) -> Floats:
    """Share of the first k ranks that is relevant, ranks beyond the gallery counting as misses: [Q, G] → [Q]."""
    return np.asarray(ranked[:, :k].sum(axis=1) / k, dtype=np.float64)


def hit_at(ranked: NDArray[np.bool_], k: int) -> Floats:
    """Whether the first k hold anything relevant (the field's R@k for retrieval): [Q, G] → [Q]."""
    return np.asarray(ranked[:, :k].any(axis=1), dtype=np.float64)


def precision_recall(ranked: NDArray[np.bool_], levels: int = 101) -> Floats:
    """Interpolated precision (the best at that recall or beyond) at evenly spaced recalls, mean over queries.

    Args:
        ranked: [Q, G] relevance by rank; every query has a relevant item.
        levels: recalls from 0 to 1.

    Returns:
        [levels] in [0, 1].
    """
    precision = np.cumsum(ranked, axis=1) / np.arange(1, ranked.shape[1] + 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recalls = np.linspace(0, 1, levels)
    curves = np.empty((len(ranked), levels))
    for curve, hits, best in zip(curves, ranked, envelope, strict=True):
        places = np.flatnonzero(hits)
        needed = np.maximum(1, np.ceil(recalls * len(places) - 1e-9).astype(int))
        curve[:] = best[places[needed - 1]]
    return np.asarray(curves.mean(axis=0), dtype=np.float64)


def group_means(values: Floats, groups: NDArray[np.int64]) -> Floats:
    """The mean inside each group, in ascending order of the groups' numbers."""
    return np.array([values[groups == group].mean() for group in np.unique(groups)])


def macro_mean(values: Floats, groups: NDArray[np.int64]) -> float:
    """The mean over groups (classes, words) of the mean inside each."""
    return float(group_means(values, groups).mean())


def mean_and_ci95(values: Floats) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (normal approximation, as few-shot papers report)."""
    return float(values.mean()), float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def confusion(labels: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """[classes, classes] counts, rows the truth; pixels labelled 255 are ignored."""
    kept = labels != 255
    flat = labels[kept].astype(np.int64) * classes + predicted[kept].astype(np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def intersection_over_union(matrix: NDArray[np.int64]) -> Floats:
    """IoU a class from a confusion matrix: NaN where a class is neither there nor predicted."""
    hit = np.diag(matrix).astype(np.float64)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hit
    return np.asarray(np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Reliability of probabilities in equal-width bins; `error` is the expected calibration error."""

    error: float
    confidence: Floats
    accuracy: Floats
    share: Floats


def calibration(confidence: Floats, correct: NDArray[np.bool_], bins: int = 15) -> Calibration:
    """Expected calibration error (Guo et al. 2017, eq. 3).

    Args:
        confidence: [n] probability of the answer given.
        correct: [n] whether it was right.
        bins: of equal width over [0, 1].
    """
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(number, minlength=bins)
    safe = np.maximum(count, 1)
    mean_confidence = np.bincount(number, confidence, bins) / safe
    accuracy = np.bincount(number, correct, bins) / safe
    share = count / max(1, len(confidence))
    return Calibration(
        error=float((share * np.abs(mean_confidence - accuracy)).sum()),
        confidence=mean_confidence,
        accuracy=accuracy,
        share=share,
    )
