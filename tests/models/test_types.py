"""Vectors of several features: stored without weights, compared by weighted cosines."""

import numpy as np
import pytest

from models.types import BundleInfo, TaskProfile, VectorLayout, Vectors

D, V = 4, 6


def bundle(features: dict[str, float], *, resolution: int = 32, is_training_free: bool = False) -> BundleInfo:
    profile = TaskProfile(resolution=resolution, timestep=10, templates=(), features=features)
    return BundleInfo(
        name="fake",
        fingerprint="f",
        dimension=D,
        visual_dimension=V,
        device="cpu",
        dtype="fp32",
        captioner="none",
        tasks={
            "retrieval": profile,
            "fewshot": profile,
            "segmentation": TaskProfile(resolution=64, timestep=10, templates=()),
        },
        manifest={},
        is_training_free=is_training_free,
    )


def layout(features: dict[str, float]) -> VectorLayout:
    return bundle(features).layout("retrieval")


def unit_rows(count: int, length: int, seed: int) -> Vectors:
    rows = np.random.default_rng(seed).standard_normal((count, length)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def joined(found: VectorLayout, seed: int, count: int = 3) -> tuple[Vectors, Vectors, Vectors]:
    semantic, visual = unit_rows(count, D, seed), unit_rows(count, V, seed + 1)
    return semantic, visual, found.joined(semantic=semantic, visual=visual)


@pytest.mark.parametrize(
    "weights",
    [{"semantic": 1.0}, {"visual": 1.0}, {"semantic": 0.25, "visual": 0.75}, {"semantic": 0.0, "visual": 1.0}],
    ids=["semantic", "visual", "both", "visual beside semantic"],
)
def test_similarities_are_weighted_sums_of_cosines(weights: dict[str, float]) -> None:
    found = layout(weights)
    (first_s, first_v, first), (other_s, other_v, other) = joined(found, 0), joined(found, 7)
    expected = weights.get("semantic", 0) * first_s @ other_s.T + weights.get("visual", 0) * first_v @ other_v.T
    np.testing.assert_allclose(found.weighted(first) @ other.T, expected, atol=1e-6)
    np.testing.assert_allclose(found.unit(first) @ found.unit(other).T, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.unit(first), axis=1), 1, atol=1e-6)


def test_a_query_by_one_feature_ignores_the_others() -> None:
    found = layout({"semantic": 0.5, "visual": 0.5})
    semantic, _, stored = joined(found, 0)
    np.testing.assert_allclose(found.spread("semantic", semantic[:1]) @ stored.T, semantic[:1] @ semantic.T, atol=1e-6)
    assert found.query_weights is not None
    assert found.query_weights.tolist() == [[1.0] * D + [0.0] * V, [0.5] * (D + V)]


def test_one_feature_alone_is_left_bit_for_bit_as_it_is() -> None:
    found = layout({"semantic": 1.0})
    semantic, _, stored = joined(found, 0)
    assert all(one is semantic for one in (stored, found.weighted(semantic), found.spread("semantic", semantic)))
    assert found.unit(semantic) is semantic
    assert found.query_weights is None


@pytest.mark.parametrize(
    ("is_training_free", "resolution", "expected"),
    [(False, 64, True), (False, 32, False), (True, 64, False), (True, 32, False)],
    ids=["heads, one view", "heads, two views", "training-free, one view", "training-free, two views"],
)
def test_dense_is_computed_for_masks_and_where_it_costs_nothing(
    is_training_free: bool, resolution: int, expected: bool
) -> None:
    found = bundle({"semantic": 1.0}, resolution=resolution, is_training_free=is_training_free)
    assert [found.needs_dense(task) for task in found.tasks] == [expected, expected, True]
