import numpy as np

from app.engine.entries import CacheKey, Group, Kind, Output
from app.engine.feature_cache import FeatureCache


def _key(name: str) -> CacheKey:
    return CacheKey(Group(Kind.IMAGES, (3, 8, 8)), name, None, 1, "f")


def _output(values: int) -> Output:
    return Output(pooled=np.zeros(values, np.float32), dense=np.zeros((0, 0, 0), np.float32))


def test_the_least_recently_used_goes_first() -> None:
    cache = FeatureCache(max_bytes=80)
    cache.put(_key("a"), _output(10))
    cache.put(_key("b"), _output(10))
    assert cache.get(_key("a")) is not None
    cache.put(_key("c"), _output(10))
    assert cache.get(_key("b")) is None
    assert cache.get(_key("a")) is not None
    assert cache.size_bytes == 80


def test_one_over_the_bound_is_not_kept_and_drops_nothing() -> None:
    cache = FeatureCache(max_bytes=80)
    cache.put(_key("a"), _output(10))
    cache.put(_key("b"), _output(100))
    assert cache.get(_key("b")) is None
    assert len(cache) == 1


def test_putting_again_counts_once() -> None:
    cache = FeatureCache(max_bytes=80)
    cache.put(_key("a"), _output(10))
    cache.put(_key("a"), _output(5))
    assert cache.size_bytes == 20
