"""The prototype head."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.heads.prototype import PrototypeHead, prototypes


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def test_prototypes_are_normalised_means() -> None:
    ways = [np.array([[1, 0], [0, 1]], np.float32), np.array([[0, -1]], np.float32)]
    assert prototypes(ways).tolist() == [pytest.approx([0.5**0.5, 0.5**0.5]), pytest.approx([0, -1])]


def test_probabilities_by_hand() -> None:
    ways = [np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)]
    found = PrototypeHead(logit_scale=2.0).probabilities(ways, np.array([[1, 0], [0.6, 0.8]], np.float32))
    expected = [1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(0.4))]
    assert found[:, 0].tolist() == pytest.approx(expected, rel=1e-5)
    assert found.sum(axis=1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(("n_way", "k_shot"), [(2, 1), (20, 5), (512, 1)])
def test_support_is_its_own_way(n_way: int, k_shot: int) -> None:
    rng = np.random.default_rng(0)
    centres = _unit(rng.normal(size=(n_way, 64)))
    ways = [_unit(centre + 0.05 * rng.normal(size=(k_shot, 64))) for centre in centres]
    found = PrototypeHead().probabilities(ways, np.concatenate(ways))
    assert found.shape == (n_way * k_shot, n_way)
    assert (found.argmax(axis=1) == np.repeat(np.arange(n_way), k_shot)).all()


def test_opposite_support_gives_a_finite_answer() -> None:
    ways = [np.array([[1, 0], [-1, 0]], np.float32), np.array([[0, 1]], np.float32)]
    assert np.isfinite(PrototypeHead().probabilities(ways, np.array([[1, 0]], np.float32))).all()


def test_the_order_of_ways_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    ways = [_unit(rng.normal(size=(3, 16))) for _ in range(5)]
    queries = _unit(rng.normal(size=(7, 16)))
    head = PrototypeHead()
    assert np.allclose(head.probabilities(ways, queries), head.probabilities(ways[::-1], queries)[:, ::-1], atol=1e-6)
