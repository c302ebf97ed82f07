"""A cached search equals one that queries the database."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest

from app.errors import NotFound
from app.stores.blobs import Blobs
from app.stores.records.galleries import FEW_HITS, FEW_NUMBERS, CachedRows, Hit, ItemRow
from app.stores.sql.database import Database
from tests.app.stores.stores import D, Stores, new_item, open_stores, unit

ROWS = {1: ItemRow("a", {}), 2: ItemRow("b", {})}


@pytest.fixture
def stores(database: Database, blobs: Blobs) -> Stores:
    return open_stores(database, blobs)


def test_rows_are_cached_as_of_one_number() -> None:
    cached = CachedRows(max_rows=3)
    assert cached.get([], 0) is None, "nothing was read yet"
    cached.put(ROWS, 5)
    assert cached.get([2, 1], 5) == ROWS
    assert cached.get([1, 3], 5) is None
    assert cached.get([1], 6) is None
    assert cached.get([1], None) is None
    cached.put({3: ItemRow("c", {})}, 4)
    assert cached.get([1], 5) is not None, "what was read before tells nothing of now"
    assert cached.get([3], 4) is None
    cached.put({3: ItemRow("c", {}), 4: ItemRow("d", {})}, 5)
    assert cached.get([1], 5) is None, "too many"
    assert cached.get([3, 4], 5) is not None
    cached.put(ROWS, None)
    assert cached.get([1], 5) is None


def test_a_search_is_cached_until_something_is_written(stores: Stores, database: Database) -> None:
    def asked(k: int = 3, min_score: float | None = None) -> list[Hit]:
        return list(stores.galleries.search("default", unit(1), k=k, min_score=min_score)[1])

    def cached(k: int = 3, min_score: float | None = None) -> list[Hit] | None:
        found = stores.galleries.search_cached("default", unit(1), k=k, min_score=min_score)
        return None if found is None else list(found[1])

    stores.items.upsert("default", [new_item("b", unit(1)), new_item("a", unit(1)), new_item("c", unit(1, 1))])
    assert cached() is None
    first = asked()
    if database.is_shared:
        assert cached() is None, "others may have written"
        return
    assert cached() == first
    assert [one.external_id for one in first] == ["a", "b", "c"]
    assert cached(k=1) == first[:1]
    assert cached(min_score=0.9) == first[:2]
    stores.items.upsert("default", [new_item("d", unit(1))])
    assert cached() is None
    assert [one.external_id for one in asked(k=4)] == ["a", "b", "d", "c"]
    stores.items.remove("default", "a")
    # Its image goes in the background, which is a write as well.
    database.settle()
    assert cached() is None
    assert cached() is None, "to look is not to read"
    assert [one.external_id for one in asked()] == ["b", "d", "c"]
    assert cached() == asked()


def test_what_takes_long_is_not_cached(stores: Stores) -> None:
    stores.items.upsert("default", [new_item("a", unit(1))])
    stores.galleries.search("default", unit(1), k=9, min_score=None)
    assert stores.galleries.search_cached("default", unit(1), k=FEW_HITS + 1, min_score=None) is None
    many = FEW_NUMBERS // D + 1
    vectors = np.random.default_rng(0).normal(size=(many, D)).astype(np.float32)
    stores.indexes._index("default").load(vectors, np.arange(many, dtype=np.int64), 0)
    assert stores.galleries.search_cached("default", unit(1), k=9, min_score=None) is None


def test_a_gallery_that_does_not_exist_is_not_cached(stores: Stores, database: Database) -> None:
    # Where others write, nothing is cached, and a query reports that it is gone.
    expected = contextlib.nullcontext() if database.is_shared else pytest.raises(NotFound)
    with expected:
        assert stores.galleries.search_cached("gone", unit(1), k=9, min_score=None) is None


def test_an_empty_gallery_is_cached_once_it_was_searched(stores: Stores, database: Database) -> None:
    assert stores.galleries.search_cached("default", unit(1), k=9, min_score=None) is None
    asked = stores.galleries.search("default", unit(1), k=9, min_score=None)
    cached = stores.galleries.search_cached("default", unit(1), k=9, min_score=None)
    assert cached == (None if database.is_shared else asked)


def test_what_waits_for_a_gpu_is_not_small(stores: Stores) -> None:
    index = stores.indexes._index("default")
    assert stores.indexes.is_small("default", 0)
    on_a_gpu = replace(index.snapshot.base, on_device=object())  # type: ignore[arg-type]  # never searched
    index.snapshot = replace(index.snapshot, base=on_a_gpu)
    assert not stores.indexes.is_small("default", 1 << 20)
