"""The index against a brute-force scan."""

import numpy as np
import pytest
from numpy.typing import NDArray

from app.stores.vector_index import MERGE_AT, Entry, VectorIndex

D = 16


def entries(generator: np.random.Generator, start: int, count: int) -> list[Entry]:
    vectors = generator.standard_normal((count, D)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [Entry(item_id=start + n, external_id=f"x{start + n:05}", vector=v) for n, v in enumerate(vectors)]


def brute_force(live: dict[int, Entry], query: NDArray[np.float32], k: int) -> list[str]:
    ranked = sorted(live.values(), key=lambda e: (-round(float(e.vector @ query), 5), e.external_id))
    return [entry.external_id for entry in ranked[:k]]


@pytest.mark.parametrize("k", [1, 10, 1000], ids=lambda k: f"k={k}")
def test_search_equals_brute_force_through_adds_removals_and_merges(k: int) -> None:
    generator = np.random.default_rng(1)
    index, live, row = VectorIndex(D), dict[int, Entry](), 1
    for seq in range(1, 30):
        new = entries(generator, row, MERGE_AT // 8)
        row += len(new)
        gone = [int(i) for i in generator.choice(list(live), size=min(len(live), 20), replace=False)] if live else []
        index.apply(new, gone, seq)
        live.update({entry.item_id: entry for entry in new})
        for item_id in gone:
            del live[item_id]
        query = entries(generator, 0, 1)[0].vector
        searched_at, hits = index.search(query, k)
        assert searched_at == seq
        assert len(hits) == min(k, len(live))
        assert len(index) == len(live)
        assert [hit.external_id for hit in hits][:5] == brute_force(live, query, min(k, 5))


def test_ties_across_the_kth_place_go_by_external_id() -> None:
    vector = np.eye(D, dtype=np.float32)[0]
    index = VectorIndex(D)
    index.load([Entry(item_id=n, external_id=f"z{99 - n}", vector=vector) for n in range(50)], 1)
    index.apply([Entry(item_id=60, external_id="a", vector=vector)], [], 2)
    assert [hit.external_id for hit in index.search(vector, 3)[1]] == ["a", "z50", "z51"]


def test_an_empty_index_answers_nothing() -> None:
    assert VectorIndex(D).search(np.eye(D, dtype=np.float32)[0], 10) == (0, [])


def test_the_digest_depends_on_content_alone() -> None:
    some = entries(np.random.default_rng(2), 1, 5)
    one, other = VectorIndex(D), VectorIndex(D)
    one.load(some, 9)
    other.apply(list(reversed(some)), [], 9)
    assert one.state() == other.state()
    other.apply([], [some[0].item_id], 10)
    assert one.state().digest != other.state().digest
