"""Few-shot classifiers by hand, and against the same thing done slowly."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.heads.fewshot import (
    Method,
    cache_probabilities,
    leave_one_out,
    prototype_probabilities,
    prototypes,
    ridge_probabilities,
    wilson,
)

Matrix = NDArray[np.float32]


def episode(seed: int, shots: list[int], dimension: int = 12) -> tuple[list[Matrix], Matrix]:
    """Ways round their own centres, and queries of all of them."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((len(shots), dimension))

    def near(way: int, count: int) -> Matrix:
        rows = centres[way] + 0.8 * generator.standard_normal((count, dimension))
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)

    return [near(way, count) for way, count in enumerate(shots)], np.concatenate(
        [near(w, 3) for w in range(len(shots))]
    )


def predicted_without(method: Method, support: list[Matrix], way: int, shot: int) -> int:
    rest = [np.delete(rows, shot, axis=0) if at == way else rows for at, rows in enumerate(support)]
    query = support[way][shot][None]
    if method == "cache":
        return int(cache_probabilities(rest, query)[0].argmax())
    means = np.stack([rows.mean(axis=0) for rows in rest])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return int((query @ means.T)[0].argmax())


@pytest.mark.parametrize("method", ["prototype", "cache"])
@pytest.mark.parametrize("shots", [[3, 1, 4], [2, 2], [5, 1]], ids=str)
def test_leave_one_out_equals_leaving_out_one_by_one(method: Method, shots: list[int]) -> None:
    support, _ = episode(1, shots)
    labels = [f"w{way}" for way in range(len(shots))]
    expected: dict[str, dict[str, int]] = {}
    for way, count in enumerate(shots):
        for shot in range(count) if count > 1 else ():
            row = expected.setdefault(labels[way], {})
            predicted = labels[predicted_without(method, support, way, shot)]
            row[predicted] = row.get(predicted, 0) + 1
    report = leave_one_out(method, labels, support)
    assert report is not None
    assert report.confusion == expected


def test_ridge_leaves_one_out_in_closed_form() -> None:
    from models.heads.fewshot import _ridge_left_out, _ridge_weights, _stacked, _targets

    support, _ = episode(2, [3, 4, 2])
    rows, ways = _stacked(support)
    targets = _targets(ways, 3)
    left_out = _ridge_left_out(rows, targets, 0.1)
    for at in range(len(rows)):
        weights = _ridge_weights(np.delete(rows, at, axis=0), np.delete(targets, at, axis=0), 0.1)
        np.testing.assert_allclose(left_out[at], rows[at] @ weights, atol=1e-4)


def test_both_forms_of_ridge_agree() -> None:
    from models.heads.fewshot import _ridge_weights, _stacked, _targets

    rows, ways = _stacked(episode(3, [20, 20])[0])
    few = _ridge_weights(rows[:10], _targets(ways[:10], 2), 0.1)
    gram = rows[:10].T @ rows[:10] + 0.1 * np.eye(12)
    np.testing.assert_allclose(few, np.linalg.solve(gram, rows[:10].T @ _targets(ways[:10], 2)), atol=1e-4)


@pytest.mark.parametrize("shots", [[1, 1], [5, 5, 5], [1, 9, 2, 3]], ids=str)
def test_probabilities_sum_to_one_and_mostly_know_their_way(shots: list[int]) -> None:
    support, queries = episode(4, shots)
    true = np.repeat(np.arange(len(shots)), 3)
    for classify in (ridge_probabilities, cache_probabilities):
        probabilities = classify(support, queries)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
        assert (probabilities.argmax(axis=1) == true).mean() >= 0.6


def test_wilson_of_known_counts() -> None:
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert wilson(0, 5)[0] == 0
    assert wilson(5, 5)[1] == 1


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def test_prototypes_are_normalised_means() -> None:
    ways = [np.array([[1, 0], [0, 1]], np.float32), np.array([[0, -1]], np.float32)]
    assert prototypes(ways).tolist() == [pytest.approx([0.5**0.5, 0.5**0.5]), pytest.approx([0, -1])]


def test_probabilities_by_hand() -> None:
    ways = [np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)]
    found = prototype_probabilities(ways, np.array([[1, 0], [0.6, 0.8]], np.float32), logit_scale=2.0)
    expected = [1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(0.4))]
    assert found[:, 0].tolist() == pytest.approx(expected, rel=1e-5)
    assert found.sum(axis=1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(("n_way", "k_shot"), [(2, 1), (20, 5), (512, 1)])
def test_support_is_its_own_way(n_way: int, k_shot: int) -> None:
    rng = np.random.default_rng(0)
    centres = _unit(rng.normal(size=(n_way, 64)))
    ways = [_unit(centre + 0.05 * rng.normal(size=(k_shot, 64))) for centre in centres]
    found = prototype_probabilities(ways, np.concatenate(ways))
    assert found.shape == (n_way * k_shot, n_way)
    assert (found.argmax(axis=1) == np.repeat(np.arange(n_way), k_shot)).all()


def test_opposite_support_gives_a_finite_answer() -> None:
    ways = [np.array([[1, 0], [-1, 0]], np.float32), np.array([[0, 1]], np.float32)]
    assert np.isfinite(prototype_probabilities(ways, np.array([[1, 0]], np.float32))).all()


def test_the_order_of_ways_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    ways = [_unit(rng.normal(size=(3, 16))) for _ in range(5)]
    queries = _unit(rng.normal(size=(7, 16)))
    found, reversed_ways = prototype_probabilities(ways, queries), prototype_probabilities(ways[::-1], queries)
    assert np.allclose(found, reversed_ways[:, ::-1], atol=1e-6)
