"""Few-shot classifiers that need no training: prototypes, ridge regression in closed form, a cache of the support.

Letters: N ways, K shots, M = all support together, D features, B queries. Support is N ways of [K, D] and queries are
[B, D], float32 with unit rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Method = Literal["prototype", "ridge", "cache"]
METHODS: Sequence[Method] = get_args(Method)
Matrix = NDArray[np.float32]

LOGIT_SCALE = 20.0
RIDGE_LAMBDAS = (0.01, 0.1, 1.0)
RIDGE_DEFAULT = 0.1
CACHE_SHARPNESS = 5.5  # beta of Tip-Adapter's affinity: the paper's value for ImageNet
CACHE_WEIGHT = 1.0
ROWS_AT_ONCE = 1024
Z95 = 1.959964  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveOneOut:
    """How well an episode classifies its own support, each example without itself.

    Attributes:
        accuracy: over the examples of ways with two or more.
        ci95: Wilson's interval.
        confusion: for each true label, how often each label was predicted.
    """

    accuracy: float
    ci95: tuple[float, float]
    confusion: dict[str, dict[str, int]]


def prototype_probabilities(support: Sequence[Matrix], queries: Matrix, *, logit_scale: float = LOGIT_SCALE) -> Matrix:
    """Softmax over scaled cosines with the prototypes: [B, N] float32, rows summing to one.

    As in Snell et al. 2017, with cosines in place of the Euclidean distance.
    """
    return _softmax(np.asarray(logit_scale * queries @ prototypes(support).T, np.float32))


def prototypes(support: Sequence[Matrix]) -> Matrix:
    """The normalised mean of each way's support: [N, D] float32."""
    return _unit_rows(np.stack([way.mean(axis=0) for way in support]))


def ridge_probabilities(support: Sequence[Matrix], queries: Matrix) -> Matrix:
    """Ridge regression to one-hot labels in closed form (Bertinetto et al. 2019, R2-D2, eq. 4), then softmax.

    The regulariser is the one with the best leave-one-out accuracy, which the closed form gives for free.

    Returns:
        [B, N] float32, rows summing to one.
    """
    rows, ways = _stacked(support)
    strength = _best_strength(rows, ways, len(support))
    weights = _ridge_weights(rows, _targets(ways, len(support)), strength)
    return _softmax(np.asarray(LOGIT_SCALE * (queries @ weights), np.float32))


def cache_probabilities(support: Sequence[Matrix], queries: Matrix) -> Matrix:
    """Prototypes plus a cache of the support (Zhang et al. 2022, Tip-Adapter, eq. 4–6), as [B, N] float32.

    The affinity exp(-β(1 - cos)) is averaged over a way's shots, so that ways of different sizes are comparable.
    Prototypes replace Tip-Adapter's text classifier.
    """
    rows, ways = _stacked(support)
    counts = np.bincount(ways, minlength=len(support)).astype(np.float32)
    means = _unit_rows(_sums(rows, ways, len(support)))
    answers: list[Matrix] = []
    for start in range(0, len(queries), ROWS_AT_ONCE):  # bounds the [B, M] affinities in memory
        part = queries[start : start + ROWS_AT_ONCE]
        cached = _by_way(_affinity(part @ rows.T), ways, len(support)) / counts
        logits = LOGIT_SCALE * (part @ means.T + CACHE_WEIGHT * cached)
        answers.append(_softmax(np.asarray(logits, np.float32)))
    return np.concatenate(answers)


CLASSIFIERS: Mapping[Method, Callable[[Sequence[Matrix], Matrix], Matrix]] = {
    "prototype": prototype_probabilities,
    "ridge": ridge_probabilities,
    "cache": cache_probabilities,
}


def leave_one_out(method: Method, labels: Sequence[str], support: Sequence[Matrix]) -> LeaveOneOut | None:
    """Classify each example by the others; None where no way has two examples."""
    rows, ways = _stacked(support)
    counts = np.bincount(ways, minlength=len(support))
    tested = np.flatnonzero(counts[ways] >= 2)
    if not len(tested):
        return None
    predicted = _LEFT_OUT_SCORES[method](rows, ways, len(support)).argmax(axis=1)[tested]
    true = ways[tested]
    confusion: dict[str, dict[str, int]] = {}
    for way, guess in zip(true.tolist(), predicted.tolist(), strict=True):
        row = confusion.setdefault(labels[way], {})
        row[labels[guess]] = row.get(labels[guess], 0) + 1
    right = int((true == predicted).sum())
    return LeaveOneOut(accuracy=right / len(tested), ci95=wilson(right, len(tested)), confusion=confusion)


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (1927)."""
    share, z2 = right / count, Z95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 * sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))  # but for rounding, share is inside


def _prototype_scores(rows: Matrix, ways: NDArray[np.int64], count: int) -> Matrix:
    """[M, N]: cosines with the prototypes, each row's own way without it."""
    sums = _sums(rows, ways, count)
    scores = rows @ _unit_rows(sums).T
    own = _unit_rows(sums[ways] - rows)  # a sum needs no division: only its direction counts
    scores[np.arange(len(rows)), ways] = (own * rows).sum(axis=1)
    return np.asarray(scores, np.float32)


def _ridge_scores(rows: Matrix, ways: NDArray[np.int64], count: int) -> Matrix:
    return _ridge_left_out(rows, _targets(ways, count), _best_strength(rows, ways, count))


def _cache_scores(rows: Matrix, ways: NDArray[np.int64], count: int) -> Matrix:
    scores = _prototype_scores(rows, ways, count)
    shots = np.bincount(ways, minlength=count).astype(np.float32)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        here = np.arange(start, min(start + ROWS_AT_ONCE, len(rows)))
        affinity = _affinity(rows[here] @ rows.T)
        affinity[np.arange(len(here)), here] = 0.0  # without itself
        others = np.tile(shots, (len(here), 1))
        others[np.arange(len(here)), ways[here]] -= 1  # its own way has one example less
        scores[here] += CACHE_WEIGHT * (_by_way(affinity, ways, count) / np.maximum(others, 1))
    return scores


_LEFT_OUT_SCORES = {"prototype": _prototype_scores, "ridge": _ridge_scores, "cache": _cache_scores}


def _ridge_weights(rows: Matrix, targets: Matrix, strength: float) -> Matrix:
    """[D, N]: (XᵀX + λI)⁻¹XᵀY, by whichever of its two forms is smaller."""
    count, dimension = rows.shape
    if count <= dimension:  # the [M, M] system is the smaller one (Woodbury)
        gram = rows @ rows.T + strength * np.eye(count, dtype=np.float32)
        return np.asarray(rows.T @ np.linalg.solve(gram, targets), np.float32)
    gram = rows.T @ rows + strength * np.eye(dimension, dtype=np.float32)
    return np.asarray(np.linalg.solve(gram, rows.T @ targets), np.float32)


def _ridge_left_out(rows: Matrix, targets: Matrix, strength: float) -> Matrix:
    """[M, N]: each row's prediction without it, y - (y - ŷ)/(1 - h) with h its leverage."""
    gram = rows.T @ rows + strength * np.eye(rows.shape[1], dtype=np.float32)
    projected = np.linalg.solve(gram, rows.T)
    leverage = (rows * projected.T).sum(axis=1, keepdims=True)
    residual = targets - rows @ (projected @ targets)
    return np.asarray(targets - residual / np.maximum(1 - leverage, 1e-6), np.float32)


def _best_strength(rows: Matrix, ways: NDArray[np.int64], count: int) -> float:
    tested = np.bincount(ways, minlength=count)[ways] >= 2
    if not tested.any():
        return RIDGE_DEFAULT
    targets = _targets(ways, count)

    def accuracy(strength: float) -> float:
        predicted = _ridge_left_out(rows, targets, strength).argmax(axis=1)
        return float((predicted == ways)[tested].mean())

    # The strongest of equals: least prone to overfit.
    return max(RIDGE_LAMBDAS, key=lambda strength: (accuracy(strength), strength))


def _stacked(support: Sequence[Matrix]) -> tuple[Matrix, NDArray[np.int64]]:
    """All support [M, D] and the way of each row [M]."""
    return np.concatenate(support), np.repeat(np.arange(len(support)), [len(way) for way in support])


def _targets(ways: NDArray[np.int64], count: int) -> Matrix:
    return np.eye(count, dtype=np.float32)[ways]


def _sums(rows: Matrix, ways: NDArray[np.int64], count: int) -> Matrix:
    sums = np.zeros((count, rows.shape[1]), np.float32)
    np.add.at(sums, ways, rows)
    return sums


def _by_way(values: Matrix, ways: NDArray[np.int64], count: int) -> Matrix:
    """[B, M] summed over the rows of each way, [B, N]; ways come in blocks."""
    starts = np.searchsorted(ways, np.arange(count))
    return np.asarray(np.add.reduceat(values, starts, axis=1), np.float32)


def _affinity(cosines: Matrix) -> Matrix:
    return np.asarray(np.exp(-CACHE_SHARPNESS * (1 - cosines)), np.float32)


def _unit_rows(rows: Matrix) -> Matrix:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)


def _softmax(logits: Matrix) -> Matrix:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
