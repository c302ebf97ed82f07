"""Metrics as pure functions of NumPy arrays. Where papers differ, each definition has its own name."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Student's t at 97.5 % by the number of values; few seeds deserve wide intervals.
_T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def ranked_relevance(scores: NDArray[np.floating], relevant: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Relevance in order of descending score, ties by position: [Q, G] and [Q, G] → [Q, G] bool."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(relevant, order, axis=1)


def average_precision(ranked: NDArray[np.bool_], at: int | None = None) -> Floats:
    """Average precision a query, the mean of the precision at each relevant rank, not interpolated: [Q, G] → [Q].

    Args:
        ranked: relevance by rank; every query has a relevant item.
        at: only the first `at` ranks count; the denominator is min(at, positives), as in SketchFusion's mAP@200.
    """
    cut = ranked if at is None else ranked[:, :at]
    precision = np.cumsum(cut, axis=1) / np.arange(1, cut.shape[1] + 1)
    positives = ranked.sum(axis=1)
    denominator = positives if at is None else np.minimum(at, positives)
    return np.asarray((precision * cut).sum(axis=1) / np.maximum(denominator, 1), dtype=np.float64)


def voc_average_precision(ranked: NDArray[np.bool_]) -> Floats:
    """Average precision under the precision envelope (VOC 2010): [Q, G] → [Q]."""
    return np.asarray((_envelope(ranked) * ranked).sum(axis=1) / np.maximum(ranked.sum(axis=1), 1), dtype=np.float64)


def precision_at(ranked: NDArray[np.bool_], k: int) -> Floats:
    """Share of the first k ranks that is relevant, ranks beyond the gallery counting as misses: [Q, G] → [Q]."""
    return np.asarray(ranked[:, :k].sum(axis=1) / k, dtype=np.float64)


def hit_at(ranked: NDArray[np.bool_], k: int) -> Floats:
    """1 where the first k ranks hold anything relevant (R@k of sketch retrieval), else 0: [Q, G] → [Q]."""
    return np.asarray(ranked[:, :k].any(axis=1), dtype=np.float64)


def precision_recall(ranked: NDArray[np.bool_], levels: int = 101) -> Floats:
    """Interpolated precision (the best at that recall or beyond), mean over queries: [Q, G] → [levels].

    Args:
        ranked: relevance by rank; every query has a relevant item.
        levels: number of evenly spaced recalls from 0 to 1.
    """
    recalls = np.linspace(0, 1, levels)
    curves = np.empty((len(ranked), levels))
    for curve, hits, best in zip(curves, ranked, _envelope(ranked), strict=True):
        ranks = np.flatnonzero(hits)
        # 1e-9: a product such as 0.07 · 100 must not need an eighth hit.
        needed = np.maximum(1, np.ceil(recalls * len(ranks) - 1e-9).astype(int))
        curve[:] = best[ranks[needed - 1]]
    return np.asarray(curves.mean(axis=0), dtype=np.float64)


def _envelope(ranked: NDArray[np.bool_]) -> Floats:
    """[Q, G]: the best precision at each rank or beyond."""
    precision = np.cumsum(ranked, axis=1) / np.arange(1, ranked.shape[1] + 1)
    return np.asarray(np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1])


def group_means(values: Floats, groups: NDArray[np.int64]) -> Floats:
    """The mean inside each group, in ascending order of the groups' numbers."""
    return np.array([values[groups == group].mean() for group in np.unique(groups)])


def macro_mean(values: Floats, groups: NDArray[np.int64]) -> float:
    """The mean over groups (classes, words) of the mean inside each."""
    return float(group_means(values, groups).mean())


def mean_and_ci95(values: Floats) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (normal approximation, as few-shot papers report)."""
    return float(values.mean()), float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of the 95 % interval of the mean by Student's t.

    Raises:
        ValueError: fewer than two values, or more than ten.
    """
    count = len(values)
    if count not in _T_95:
        raise ValueError(f"an interval takes 2 to 10 seeds, not {count}")
    return float(np.mean(values)), float(_T_95[count] * np.std(values, ddof=1) / np.sqrt(count))


def confusion(labels: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """[classes, classes] counts, rows the truth; pixels labelled 255 are ignored."""
    counted = labels != 255
    flat = labels[counted].astype(np.int64) * classes + predicted[counted].astype(np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def intersection_over_union(matrix: NDArray[np.int64]) -> Floats:
    """IoU a class from a confusion matrix: NaN for a class neither present nor predicted."""
    hit = np.diag(matrix).astype(np.float64)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hit
    return np.asarray(np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Reliability of probabilities in equal-width bins."""

    error: float  # expected calibration error
    confidence: Floats  # [bins] mean probability
    accuracy: Floats  # [bins] share of right answers
    share: Floats  # [bins] of all answers


def calibration(confidence: Floats, correct: NDArray[np.bool_], bins: int = 15) -> Calibration:
    """Expected calibration error (Guo et al. 2017, eq. 3).

    Args:
        confidence: [n] probability of the answer.
        correct: [n] True where the answer was right.
        bins: of equal width over [0, 1].
    """
    number = np.minimum((confidence * bins).astype(int), bins - 1)  # probability 1 belongs to the last bin
    count = np.bincount(number, minlength=bins)
    safe = np.maximum(count, 1)  # an empty bin weighs nothing
    mean_confidence = np.bincount(number, confidence, bins) / safe
    accuracy = np.bincount(number, correct, bins) / safe
    share = count / max(1, len(confidence))
    return Calibration(
        error=float((share * np.abs(mean_confidence - accuracy)).sum()),
        confidence=mean_confidence,
        accuracy=accuracy,
        share=share,
    )
