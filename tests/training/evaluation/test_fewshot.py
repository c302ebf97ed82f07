"""Episodes by hand, and the pools of the few-shot protocols."""

import numpy as np
import pytest

from training.data.dataset import DataSet
from training.evaluation import fewshot
from training.evaluation.fewshot import QUERIES, ShotPool, drawings, measure, vendors
from training.evaluation.retrieval import rendered_images


def _pool(classes: int, each: int) -> ShotPool:
    rows = np.arange(classes * each).reshape(classes, each)
    return ShotPool(name="toy", pixels=np.zeros((classes * each, 1, 1, 3), np.uint8), rows=list(rows))


def test_features_that_tell_classes_apart_answer_everything() -> None:
    features = np.repeat(np.eye(6, dtype=np.float32), 5, axis=0)
    found = measure(_pool(6, 5), features, n_way=4, k_shot=2, episodes=20)
    assert (found.accuracy, found.ci95) == (1.0, 0.0)
    assert (found.protocol, found.n_way, found.k_shot) == ("toy", 4, 2)


def test_equal_features_score_chance() -> None:
    found = measure(_pool(6, 5), np.ones((30, 3), np.float32), n_way=5, k_shot=1, episodes=10)
    assert found.accuracy == pytest.approx(1 / 5)


def test_an_episode_is_the_same_for_every_model_and_differs_by_seed() -> None:
    features = np.random.default_rng(0).normal(size=(80, 8)).astype(np.float32)
    pool = _pool(10, 8)
    first, again = (measure(pool, features, n_way=5, k_shot=3, episodes=15) for _ in range(2))
    assert first == again
    assert measure(pool, features, n_way=5, k_shot=3, episodes=15, seed=1) != first


def test_support_and_queries_never_share_an_image() -> None:
    """With one-hot features of images, a query could only match itself: no match is better than any other."""
    features = np.eye(20, dtype=np.float32)
    found = measure(_pool(5, 4), features, n_way=5, k_shot=1, episodes=10)
    assert found.accuracy == pytest.approx(1 / 5)


def test_confusions_are_shares_of_the_episodes_that_hold_both() -> None:
    """Classes 0 and 1 look the same, so that ties go to whichever comes first; class 2 is never mistaken."""
    looks = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    found = fewshot.confusions(_pool(3, 4), np.repeat(looks, 4, axis=0), n_way=2, k_shot=1, episodes=60)
    assert found[2].tolist() == [0, 0, 1]
    assert found[0, 1] + found[1, 0] == pytest.approx(1)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools without the tracing of their images, which these tests do not read."""
    monkeypatch.setattr(fewshot, "canonical_strokes", lambda _, _side: np.zeros((2, 2, 3), np.uint8))


@pytest.mark.usefixtures("plain")
def test_vendors_pool_has_one_image_of_each_of_four_vendors(data: DataSet) -> None:
    pool = vendors(data, rendered_images)
    found = data.rows(lambda r: r.kind == "picture" and r.split == "unseen" and r.source in fewshot.VENDORS)
    assert len(pool.pixels) == len(found)
    for rows in pool.rows:
        records = [found[row] for row in rows]
        assert len({r.hexcode for r in records}) == 1
        assert sorted(r.source for r in records) == sorted(fewshot.VENDORS)
    assert len(pool.rows) == 889 - 2 * 322 >= 100


@pytest.mark.usefixtures("plain")
def test_drawings_pool_has_all_77_unseen_words(data: DataSet) -> None:
    pool = drawings(data)
    found = [d for d in data.drawings if d.split == "unseen"]
    words = [{found[row].word for row in rows} for rows in pool.rows]
    assert all(len(names) == 1 for names in words)
    assert len({name for names in words for name in names}) == 77
    assert min(len(rows) for rows in pool.rows) >= 5 + QUERIES
    assert sum(len(rows) for rows in pool.rows) == len(found)
