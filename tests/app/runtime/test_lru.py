from app.runtime.lru import ByteLru


def test_the_least_recently_used_value_is_dropped_first() -> None:
    cache: ByteLru[str, int] = ByteLru(80)
    cache.put("a", 1, 40)
    cache.put("b", 2, 40)
    assert cache.get("a") == 1
    cache.put("c", 3, 40)
    assert cache.get("b") is None
    assert cache.get("a") == 1
    assert cache.size_bytes == 80


def test_a_value_over_the_bound_is_not_cached_and_drops_nothing() -> None:
    cache: ByteLru[str, int] = ByteLru(80)
    cache.put("a", 1, 40)
    cache.put("b", 2, 400)
    assert cache.get("b") is None
    assert len(cache) == 1


def test_a_value_that_is_put_again_counts_once() -> None:
    cache: ByteLru[str, int] = ByteLru(80)
    cache.put("a", 1, 40)
    cache.put("a", 2, 20)
    assert cache.size_bytes == 20
