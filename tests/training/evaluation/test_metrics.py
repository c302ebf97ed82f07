"""Metrics on hand-computed cases, and against scikit-learn and torchmetrics on random ones."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_jaccard_index
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_hit_rate, retrieval_precision

from training.evaluation.metrics import (
    average_precision,
    calibration,
    confusion,
    hit_at,
    intersection_over_union,
    interval,
    macro_mean,
    mean_and_ci95,
    precision_at,
    precision_recall,
    ranked_relevance,
    voc_average_precision,
)

RANKED = np.array([[True, False, True, False, False], [False, False, True, True, True]])


def test_relevance_follows_descending_scores_and_ties_keep_the_gallery_order() -> None:
    scores = np.array([[0.5, 0.9, 0.5, 0.1]])
    relevant = np.array([[True, False, False, True]])
    assert ranked_relevance(scores, relevant).tolist() == [[False, True, False, True]]


def test_average_precision_by_hand() -> None:
    expected = [(1 + 2 / 3) / 2, (1 / 3 + 2 / 4 + 3 / 5) / 3]
    assert average_precision(RANKED) == pytest.approx(expected)


def test_interpolated_precision_by_hand() -> None:
    """First query: 1 up to half of what there is, then 2/3; second: 3/5 throughout, for the last rank is the best."""
    assert precision_recall(RANKED[:1], levels=5) == pytest.approx([1, 1, 1, 2 / 3, 2 / 3])
    assert precision_recall(RANKED, levels=3) == pytest.approx([0.8, 0.8, (2 / 3 + 3 / 5) / 2])


def test_average_precision_at_k_divides_by_what_k_ranks_could_hold() -> None:
    assert average_precision(RANKED, at=3) == pytest.approx([(1 + 2 / 3) / 2, (1 / 3) / 3])
    assert average_precision(RANKED, at=1) == pytest.approx([1.0, 0.0])


def test_voc_average_precision_takes_the_best_precision_still_to_come() -> None:
    assert voc_average_precision(RANKED) == pytest.approx([(1 + 2 / 3) / 2, 3 / 5])


def test_precision_and_hit_by_hand() -> None:
    assert precision_at(RANKED, 1).tolist() == [1.0, 0.0]
    assert precision_at(RANKED, 4).tolist() == [0.5, 0.5]
    assert precision_at(RANKED, 10).tolist() == [0.2, 0.3]
    assert hit_at(RANKED, 2).tolist() == [1.0, 0.0]


def test_ranking_agrees_with_sklearn_and_torchmetrics() -> None:
    generator = np.random.default_rng(1)
    scores = generator.random((40, 60))  # above 0, because torchmetrics takes other scores for "not found"
    relevant = generator.random((40, 60)) < 0.1
    relevant[:, 0] = True
    ranked = ranked_relevance(scores, relevant)
    by_query = zip(relevant, scores, strict=True)
    assert average_precision(ranked) == pytest.approx([average_precision_score(r, s) for r, s in by_query])
    pairs = [(torch.from_numpy(s), torch.from_numpy(r)) for r, s in zip(relevant, scores, strict=True)]
    assert average_precision(ranked) == pytest.approx([retrieval_average_precision(s, r).item() for s, r in pairs])
    for k in (1, 10, 100):
        assert precision_at(ranked, k) == pytest.approx([retrieval_precision(s, r, top_k=k).item() for s, r in pairs])
    assert hit_at(ranked, 10) == pytest.approx([retrieval_hit_rate(s, r, top_k=10).item() for s, r in pairs])


def test_macro_mean_gives_small_groups_an_equal_say() -> None:
    assert macro_mean(np.array([1.0, 1.0, 1.0, 0.0]), np.array([4, 4, 4, 7])) == 0.5


def test_mean_and_interval_by_hand() -> None:
    mean, ci95 = mean_and_ci95(np.array([0.0, 1.0, 0.0, 1.0]))
    assert mean == 0.5
    assert ci95 == pytest.approx(1.96 * np.sqrt(1 / 3) / 2)


def test_confusion_agrees_with_sklearn_and_ignores_255() -> None:
    generator = np.random.default_rng(2)
    labels, predicted = generator.integers(0, 5, (2, 30, 20))
    expected = confusion_matrix(labels.ravel(), predicted.ravel(), labels=range(5))
    found = confusion(labels, predicted, 5)
    assert np.array_equal(found, expected)
    assert np.trace(found) / found.sum() == pytest.approx(accuracy_score(labels.ravel(), predicted.ravel()))
    labels[0] = 255
    assert np.array_equal(confusion(labels, predicted, 5), confusion(labels[1:], predicted[1:], 5))


def test_intersection_over_union_by_hand_is_nan_for_a_class_nobody_named() -> None:
    matrix = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    assert intersection_over_union(matrix) == pytest.approx([3 / 6, 4 / 7, np.nan], nan_ok=True)


def test_intersection_over_union_agrees_with_torchmetrics() -> None:
    labels, predicted = np.random.default_rng(3).integers(0, 4, (2, 500))
    expected = multiclass_jaccard_index(
        torch.from_numpy(predicted), torch.from_numpy(labels), num_classes=4, average="none"
    )
    assert intersection_over_union(confusion(labels, predicted, 4)) == pytest.approx(expected.numpy(), rel=1e-6)


def test_calibration_by_hand() -> None:
    found = calibration(np.array([0.95, 0.95, 0.55, 1.0]), np.array([True, False, True, True]), bins=10)
    assert found.share.tolist() == [0] * 5 + [0.25] + [0] * 3 + [0.75]
    assert found.accuracy[9] == pytest.approx(2 / 3)
    assert found.error == pytest.approx(0.25 * 0.45 + 0.75 * (2.9 / 3 - 2 / 3))


def test_calibration_agrees_with_torchmetrics() -> None:
    generator = np.random.default_rng(4)
    probabilities = generator.dirichlet(np.ones(4), 1000)
    labels = generator.integers(0, 4, 1000)
    expected = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=4, n_bins=15, norm="l1"
    )
    found = calibration(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    assert found.error == pytest.approx(expected.item(), abs=1e-6)


def test_three_seeds_by_hand() -> None:
    """Mean .5, deviation .1: 4.303 × .1 / √3."""
    mean, half = interval([0.4, 0.5, 0.6])
    assert mean == pytest.approx(0.5)
    assert half == pytest.approx(0.24843, abs=1e-4)


def test_one_value_has_no_interval() -> None:
    with pytest.raises(ValueError, match="2 to 10 seeds"):
        interval([0.5])
