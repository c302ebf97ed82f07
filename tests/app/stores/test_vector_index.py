"""The index against a brute-force scan."""

import threading

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from app.stores.index import base as index_base
from app.stores.index.base import DeviceIndex, IndexOptions, Kind, Storage, build_base
from app.stores.index.delta import MERGE_AT, TIE, Entry, VectorIndex, mark_of
from app.stores.sql.checksums import checksum_of

D = 16


def entries(generator: np.random.Generator, start: int, count: int) -> list[Entry]:
    vectors = generator.standard_normal((count, D)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        Entry(item_id=start + n, vector=v, mark=mark_of(checksum_of(f"x{start + n:05}", v)))
        for n, v in enumerate(vectors)
    ]


def brute_force(live: dict[int, Entry], query: NDArray[np.float32], k: int) -> set[int]:
    ranked = sorted(live.values(), key=lambda e: -float(e.vector @ query))
    return {entry.item_id for entry in ranked[:k]}


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("k", [1, 10, 1000], ids=lambda k: f"k={k}")
def test_search_through_adds_removals_and_merges(k: int, kind: Kind) -> None:
    generator = np.random.default_rng(1)
    index, live, row = VectorIndex(D, IndexOptions(kind=kind)), dict[int, Entry](), 1
    for step in range(30):
        new = entries(generator, row, MERGE_AT // 8)
        row += len(new)
        gone = (
            [live[int(i)] for i in generator.choice(list(live), size=min(len(live), 20), replace=False)] if live else []
        )
        index.apply(new, gone)
        live.update({entry.item_id: entry for entry in new})
        for entry in gone:
            del live[entry.item_id]
        if index.wants_merge:
            index.merge()
        query = entries(generator, 0, 1)[0].vector
        allowed = None if step % 2 else np.array(sorted(live)[:: step + 1], np.int64)
        wanted = live if allowed is None else {int(i): live[int(i)] for i in allowed}
        ids, scores = index.search(query, k, allowed)
        assert len(set(ids.tolist())) == len(ids) >= min(k, len(wanted))
        assert set(ids.tolist()) <= wanted.keys()
        np.testing.assert_allclose(scores, [live[int(i)].vector @ query for i in ids], atol=1e-5)
        assert len(index) == len(live)
        best = brute_force(wanted, query, k)
        recall = len(best & set(ids.tolist())) / len(best)
        assert recall == 1 if kind == "flat" or allowed is not None else recall >= 0.7
    assert index.snapshot.base.kind == kind
    assert (index.snapshot.base.recall is None) == (kind == "flat")


def test_what_failed_part_way_may_be_applied_again() -> None:
    index = VectorIndex(D)
    first, later = entries(np.random.default_rng(1), 1, 20), entries(np.random.default_rng(2), 21, 5)
    index.apply(first, [])
    index.merge()
    index.apply(later[:3], [first[2]])
    digest = index.state(0).digest
    index.apply([*first[4:], *later[:3]], [first[2]])
    assert (len(index), index.state(0).digest) == (22, digest)
    index.apply(later, [])
    assert len(index) == 24
    assert index.snapshot.live_vectors()[1].tolist() == [1, 2, *range(4, 26)]


def test_ties_across_the_kth_place_all_come() -> None:
    vector = np.eye(D, dtype=np.float32)[0]
    index = VectorIndex(D)
    index.load(np.tile(vector, (50, 1)), np.arange(50), 0)
    index.apply([Entry(item_id=60, vector=vector, mark=1)], [])
    assert sorted(index.search(vector, 3)[0].tolist()) == [*range(50), 60]


@pytest.mark.parametrize("storage", ["fp16", "sq8"])
def test_lossy_storage_gives_candidates_to_spare(storage: Storage) -> None:
    index = VectorIndex(D, IndexOptions(kind="hnsw", storage=storage))
    index.apply(entries(np.random.default_rng(4), 1, 500), [])
    index.merge()
    assert len(index.search(np.eye(D, dtype=np.float32)[0], 10)[0]) == 40


def test_the_reported_recall_is_reached_by_queries_far_from_every_vector() -> None:
    generator = np.random.default_rng(5)
    new = entries(generator, 1, 3000)
    index = VectorIndex(D, IndexOptions(kind="hnsw"))
    index.apply(new, [])
    index.merge()
    reported = index.snapshot.base.recall
    assert reported is not None
    live = {entry.item_id: entry for entry in new}
    queries = [entry.vector for entry in entries(generator, 9000, 50)]
    found = [len(brute_force(live, query, 10) & set(index.search(query, 10)[0].tolist())) / 10 for query in queries]
    assert np.mean(found) >= 0.98


def clustered(generator: np.random.Generator, count: int, length: int, clusters: int) -> NDArray[np.float32]:
    centres, own = (generator.standard_normal((rows, length)) for rows in (clusters, count))
    centres, own = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (centres, own))
    rows = centres[generator.integers(clusters, size=count)] + 0.8 * own
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def test_a_graph_over_two_features_is_tuned_for_queries_by_each_of_them() -> None:
    """It joins vectors by the sum of both: tuned for such queries alone, it found 92 % of a sketch's neighbours."""
    generator = np.random.default_rng(8)
    vectors = np.concatenate([clustered(generator, 8000, 64, 150), clustered(generator, 8000, 128, 200)], axis=1)
    kinds = np.zeros((2, 192), np.float32)
    kinds[0, :64] = kinds[1, 64:] = 1
    bases = [
        build_base(vectors, np.arange(8000), IndexOptions(kind="hnsw", query_weights=weights))
        for weights in (None, kinds)
    ]
    assert bases[1].width > bases[0].width
    noise = generator.standard_normal((50, 192)).astype(np.float32)
    for kind in kinds:
        queries = vectors[:50] * kind + 2 * (noise * kind) / np.linalg.norm(noise * kind, axis=1, keepdims=True)
        found = [
            len(np.intersect1d(np.argsort(-(vectors @ query))[:10], bases[1].search(query, 10, None, TIE)[0])) / 10
            for query in queries
        ]
        assert np.mean(found) >= 0.97
    grown = bases[1].extended(vectors[:100], np.arange(8000, 8100), kinds)
    assert grown.width > bases[0].width


def test_a_gpu_answers_as_the_cpu_does_deletions_included(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS without a GPU stands in for one: what is handed to it, and what is made of its answers."""
    asked: list[int] = []

    class Copy(DeviceIndex):
        def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            asked.append(k)
            return super().search(queries, k)

    monkeypatch.setattr(index_base, "copy_to_device", lambda index: Copy(faiss.clone_index(index), None))
    new = entries(np.random.default_rng(6), 1, 400)
    index, plain = VectorIndex(D), VectorIndex(D)
    plain.apply(new, [])
    index.apply(new, [])
    index.merge()
    for gone in (0, 40):
        dead = new[:gone]
        index.apply([], dead)
        plain.apply([], dead)
        query = new[50].vector
        ids, scores = index.search(query, 10)
        wanted = plain.search(query, 10)
        assert set(ids.tolist()) == set(wanted[0].tolist())
        np.testing.assert_allclose(sorted(scores), sorted(wanted[1]), atol=1e-6)
    assert asked
    assert len(index.search(new[50].vector, 10, np.arange(1, 400, 3))[0]) >= 10


@pytest.mark.parametrize("storage", ["fp16", "sq8"])
def test_what_a_lossy_base_gave_back_is_never_called_exact(storage: Storage) -> None:
    """A gallery that shrank is searched exactly, over vectors that are only near: all of them are scored again."""
    generator, options = np.random.default_rng(1), IndexOptions(flat_rows=1000, storage=storage)
    index, all_of_them = VectorIndex(D, options), entries(generator, 1, 4000)
    index.apply(all_of_them, [])
    index.merge()
    assert (index.snapshot.base.kind, index.snapshot.base.storage) == ("hnsw", storage)
    index.apply([], all_of_them[500:])
    index.merge()
    assert (index.snapshot.base.kind, index.snapshot.base.storage) == ("flat", storage)
    assert len(index.search(all_of_them[0].vector, 10)[0]) >= 40
    index.apply(entries(generator, 5000, 10), [])
    index.merge()
    assert (index.snapshot.base.kind, index.snapshot.base.storage) == ("flat", storage)


def test_an_empty_index_answers_nothing() -> None:
    index = VectorIndex(D)
    assert len(index.search(np.eye(D, dtype=np.float32)[0], 10)[0]) == 0
    assert not index.wants_merge


def test_the_digest_depends_on_content_alone() -> None:
    some = entries(np.random.default_rng(2), 1, 5)
    one, other = VectorIndex(D), VectorIndex(D)
    one.load(np.stack([e.vector for e in some]), np.arange(1, 6), sum(e.mark for e in some))
    other.apply(some, [])
    assert one.state(9) == other.state(9)
    other.apply([], [some[0]])
    assert one.state(10).digest != other.state(10).digest
    other.apply([Entry(item_id=99, vector=some[0].vector, mark=some[0].mark)], [])
    assert one.state(11).digest == other.state(11).digest


def test_what_happens_during_a_merge_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    index, first = VectorIndex(D), entries(generator, 1, 200)
    index.apply(first, [])
    building, go_on = threading.Event(), threading.Event()
    original = VectorIndex._next_base

    def slow(self: VectorIndex, before: object) -> object:
        building.set()
        assert go_on.wait(30)
        return original(self, before)  # type: ignore[arg-type]  # the snapshot it was given

    monkeypatch.setattr(VectorIndex, "_next_base", slow)
    merging = threading.Thread(target=index.merge)
    merging.start()
    assert building.wait(30)
    later = entries(generator, 500, 50)
    index.apply(later, [first[0]])
    index.apply([], [later[1], first[150]])
    go_on.set()
    merging.join()
    expected = {e.item_id for e in [*first, *later]} - {first[0].item_id, later[1].item_id, first[150].item_id}
    assert set(index.search(first[5].vector, 1000)[0].tolist()) == expected
    assert len(index) == len(expected)
    assert len(index.snapshot.base.ids) == 200
