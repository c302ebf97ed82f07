"""Galleries and items against a real database, a real folder and real FAISS."""

import dataclasses
import errno
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.api.deps import ANY_VERSION
from app.errors import (
    Conflict,
    Damaged,
    DeadlineExceeded,
    DiskFull,
    EngineUnavailable,
    FingerprintMismatch,
    Invalid,
    NotFound,
    PreconditionFailed,
    ServiceError,
)
from app.stores.blobs import Blobs
from app.stores.filters import parse_filter
from app.stores.index.base import IndexOptions
from app.stores.index.delta import VectorIndex
from app.stores.index.snapshots import IndexSnapshots
from app.stores.maintenance.check import Maintenance
from app.stores.sql.database import Database
from tests.app.stores.stores import D, Stores, new_item, open_stores, unit


@pytest.fixture
def stores(database: Database, blobs: Blobs) -> Stores:
    return open_stores(database, blobs)


def test_a_gallery_that_is_not_there_is_required_in_vain(stores: Stores) -> None:
    for require in (stores.galleries.require, stores.indexes.require):
        require("default")
        with pytest.raises(NotFound):
            require("gone")


def test_default_exists_and_cannot_be_deleted(stores: Stores) -> None:
    assert [gallery.name for gallery in stores.galleries.all()] == ["default"]
    with pytest.raises(Conflict):
        stores.galleries.delete("default", confirmed=True)


def test_written_items_are_found_best_first_with_ties_by_id(stores: Stores) -> None:
    written = [new_item("b", unit(1)), new_item("a", unit(1)), new_item("c", unit(1, 1))]
    done = stores.items.upsert("default", written)
    assert (done.seq, done.replaced) == (4, [False, False, False])
    assert [(item.id, item.seq) for item in done.items] == [("b", 2), ("a", 3), ("c", 4)]
    searched_at, found, _ = stores.galleries.search("default", unit(1), k=10, min_score=None)
    assert searched_at == done.seq
    assert [f.external_id for f in found] == ["a", "b", "c"]
    assert found[2].score == pytest.approx(2**-0.5)
    assert found[0].metadata == {"name": "a"}


def test_min_score_and_k_bound_the_results(stores: Stores) -> None:
    stores.items.upsert("default", [new_item("a", unit(1)), new_item("b", unit(0, 1))])
    near = stores.galleries.search("default", unit(1), k=10, min_score=0.5)[1]
    assert [f.external_id for f in near] == ["a"]
    assert len(stores.found(unit(1), k=1)) == 1


def test_a_filtered_search_returns_what_matches(stores: Stores) -> None:
    written = [
        new_item(f"i{n}", unit(1, n), metadata={"n": n, "kind": "even" if n % 2 == 0 else "odd"}) for n in range(20)
    ]
    stores.items.upsert("default", written)
    where = parse_filter({"kind": "odd", "n": {"gte": 15}})
    found = stores.galleries.search("default", unit(1), k=10, min_score=None, where=where)[1]
    assert [one.external_id for one in found] == ["i15", "i17", "i19"]
    assert [item.id for item in stores.items.page("default", after="i15", limit=10, where=where)[0]] == ["i17", "i19"]


def test_replacing_an_item_changes_its_vector_and_collects_its_old_image(
    stores: Stores, blobs: Blobs, database: Database
) -> None:
    stores.items.upsert("default", [new_item("a", unit(1), b"old")])
    assert stores.items.upsert("default", [new_item("a", unit(0, 1), b"new")]).replaced == [True]
    assert stores.galleries.get("default").count == 1
    assert stores.items.image("default", "a")[1] == b"new"
    database.settle()
    assert len([*blobs.names()]) == 1
    found = stores.galleries.search("default", unit(1), k=5, min_score=None)[1]
    assert [one.score for one in found] == [pytest.approx(0)]


def test_a_write_that_is_not_waited_for_is_seen_after_catching_up(stores: Stores) -> None:
    seq = stores.items.upsert("default", [new_item("a", unit(1))], wait=False).seq
    assert stores.found(unit(1)) == []
    assert stores.indexes.catch_up() == seq
    assert stores.found(unit(1)) == ["a"]
    stores.items.remove("default", "a", wait=False)
    assert stores.found(unit(1)) == []


def test_an_image_shared_by_two_items_outlives_one(stores: Stores, blobs: Blobs, database: Database) -> None:
    stores.items.upsert("default", [new_item("a", unit(1), b"same"), new_item("b", unit(1), b"same")])
    stores.items.remove("default", "a")
    assert stores.items.image("default", "b")[1] == b"same"
    stores.items.remove("default", "b")
    database.settle()
    assert len([*blobs.names()]) == 0
    with pytest.raises(NotFound):
        stores.items.remove("default", "b")


def test_many_are_deleted_at_once_by_id_or_by_filter(stores: Stores, blobs: Blobs, database: Database) -> None:
    stores.items.upsert("default", [new_item(f"i{n}", unit(1), metadata={"n": n}) for n in range(8)])
    removed = stores.items.remove_many("default", ids=["i0", "i1", "gone", "i1"])
    assert (removed.count, removed.missing) == (2, ["gone"])
    removed = stores.items.remove_many("default", where=parse_filter({"n": {"lt": 5}}))
    assert (removed.count, removed.seq) == (3, stores.galleries.head_seq())
    assert stores.found(unit(1)) == ["i5", "i6", "i7"]
    database.settle()
    assert len([*blobs.names()]) == 3


def test_metadata_changes_under_if_match_alone(stores: Stores) -> None:
    seq = stores.items.upsert("default", [new_item("a", unit(1))]).seq
    with pytest.raises(PreconditionFailed):
        stores.items.change("default", "a", lambda old: {**old, "n": 1}, if_match=[seq + 1])
    changed, item = stores.items.change("default", "a", lambda old: {**old, "n": 1}, if_match=[seq])
    assert (item.seq, item.metadata) == (changed, {"name": "a", "n": 1})
    with pytest.raises(PreconditionFailed):
        stores.items.remove("default", "a", if_match=[seq])
    stores.items.remove("default", "a", if_match=[changed])


def test_a_change_that_fails_writes_nothing(stores: Stores) -> None:
    def refuse(_: object) -> dict[str, object]:
        raise Invalid("too large")

    stores.items.upsert("default", [new_item("a", unit(1))])
    head = stores.galleries.head_seq()
    with pytest.raises(Invalid):
        stores.items.change("default", "a", refuse)
    assert stores.galleries.head_seq() == head


def test_deleting_a_gallery_with_items_needs_confirmation(stores: Stores, blobs: Blobs, database: Database) -> None:
    assert stores.galleries.put("pets", "Cats.")[1]
    stores.items.upsert("pets", [new_item("a", unit(1))])
    with pytest.raises(Conflict):
        stores.galleries.delete("pets", confirmed=False)
    stores.galleries.delete("pets", confirmed=True)
    database.settle()
    assert len([*blobs.names()]) == 0
    with pytest.raises(NotFound):
        stores.found(unit(1), "pets")
    stores.galleries.put("pets", "Dogs.")
    assert stores.found(unit(1), "pets") == []


def test_a_restart_has_an_equal_digest_and_so_has_the_truth(stores: Stores, database: Database, blobs: Blobs) -> None:
    stores.items.upsert("default", [new_item(f"i{n}", unit(1, n)) for n in range(20)])
    stores.items.upsert("default", [new_item("i4", unit(0, 1))])
    stores.items.remove("default", "i3")
    again = open_stores(database, blobs)
    before, after = stores.galleries.index_state("default"), again.galleries.index_state("default")
    assert before == after
    assert after.vectors == 19
    assert after.applied_seq == again.galleries.head_seq()
    assert stores.indexes.true_digests() == {"default": before.digest}


def test_another_bundles_vectors_are_never_mixed(stores: Stores, database: Database, blobs: Blobs) -> None:
    stores.items.upsert("default", [new_item("a", unit(1))])
    other = open_stores(database, blobs, fingerprint="f2")
    with pytest.raises(FingerprintMismatch):
        other.found(unit(1))
    with pytest.raises(FingerprintMismatch):
        other.items.upsert("default", [new_item("b", unit(1))])
    assert other.items.item("default", "a").id == "a"
    assert stores.found(unit(1)) == ["a"]


def test_pages_follow_each_other(stores: Stores) -> None:
    stores.items.upsert("default", [new_item(f"i{n}", unit(1)) for n in "a_Z-0."])
    first, has_more = stores.items.page("default", after=None, limit=3)
    assert has_more
    second, _ = stores.items.page("default", after=first[-1].id, limit=3)
    assert [item.id for item in [*first, *second]] == sorted(f"i{n}" for n in "a_Z-0.")


def test_a_page_of_large_metadata_ends_early(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.stores.records.items.PAGE_BYTES", 3000)
    stores.items.upsert("default", [new_item(f"i{n}", unit(1), metadata={"text": "x" * 1000}) for n in range(8)])
    found: list[str] = []
    has_more = True
    while has_more:
        page, has_more = stores.items.page("default", after=found[-1] if found else None, limit=5)
        assert len(page) in (2, 3)
        found += [item.id for item in page]
    assert found == [f"i{n}" for n in range(8)]


def test_an_export_is_of_one_moment(stores: Stores) -> None:
    stores.items.upsert("default", [new_item(f"i{n:03}", unit(1, n)) for n in range(300)])
    seq, parts = stores.exports.export("default")
    first = next(parts)
    stores.items.remove("default", "i299")
    stores.items.upsert("default", [new_item("later", unit(1))])
    exported = [*first, *(one for part in parts for one in part)]
    assert [one.id for one in exported] == [f"i{n:03}" for n in range(300)]
    assert seq < stores.galleries.head_seq()
    assert exported[7].vector.tolist() == unit(1, 7).tolist()


def test_an_export_that_lost_rows_to_a_vacuum_says_so(
    stores: Stores, database: Database, blobs: Blobs, tmp_path: Path
) -> None:
    stores.items.upsert("default", [new_item(f"i{n:03}", unit(1, n)) for n in range(300)])
    _, parts = stores.exports.export("default")
    next(parts)
    stores.items.remove("default", "i299")
    Maintenance(database, blobs, IndexSnapshots(tmp_path / "indexes")).vacuum(log_retained_s=0)
    with pytest.raises(EngineUnavailable):
        next(parts)


def test_if_match_of_any_version_needs_an_item(stores: Stores) -> None:
    with pytest.raises(PreconditionFailed):
        stores.items.upsert("default", [new_item("a", unit(1))], if_match=ANY_VERSION)
    stores.items.upsert("default", [new_item("a", unit(1))])
    assert stores.items.upsert("default", [new_item("a", unit(1))], if_match=ANY_VERSION).replaced == [True]


@pytest.mark.parametrize("damaged", [b"a whole", b"a whole IMAGE"], ids=["cut short", "other bytes"])
def test_a_damaged_image_is_written_again(stores: Stores, tmp_path: Path, damaged: bytes) -> None:
    stores.items.upsert("default", [new_item("a", unit(1), b"a whole image")])
    (path,) = (path for path in (tmp_path / "data" / "blobs").rglob("*") if path.is_file())
    path.write_bytes(damaged)
    with pytest.raises(Damaged):
        stores.items.image("default", "a")
    # Whoever sends it again mends it, under any name.
    stores.items.upsert("default", [new_item("b", unit(1), b"a whole image")])
    assert stores.items.image("default", "a")[1] == b"a whole image"


def test_a_search_beside_unseen_deletes_still_fills_k(
    stores: Stores, database: Database, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process deletes between each look at the index and the look at the rows."""
    stores.items.upsert("default", [new_item(f"i{n:02}", unit(1, n / 50)) for n in range(40)])
    other, doomed = open_stores(database, blobs), [f"i{n:02}" for n in range(12)]
    original = stores.indexes.search

    def search(*args: Any) -> Any:
        found = original(*args)
        for item_id in [doomed.pop(0) for _ in range(3) if doomed]:
            other.items.remove("default", item_id)
        return found

    monkeypatch.setattr(stores.indexes, "search", search)
    assert stores.found(unit(1), k=5) == [f"i{n:02}" for n in range(12, 17)]


def test_what_no_longer_passes_the_filter_is_not_answered(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata changes between the filter and the look at the rows."""
    stores.items.upsert("default", [new_item(f"i{n}", unit(1, n), metadata={"n": 1}) for n in range(4)])
    original, changes = stores.indexes.search, ["i0"]

    def search(*args: Any) -> Any:
        found = original(*args)
        if changes:
            stores.items.change("default", changes.pop(), lambda _: {"n": 2})
        return found

    monkeypatch.setattr(stores.indexes, "search", search)
    found = stores.galleries.search("default", unit(1), k=2, min_score=None, where=parse_filter({"n": 1}))[1]
    assert [(one.external_id, one.metadata) for one in found] == [("i1", {"n": 1}), ("i2", {"n": 1})]


def test_an_image_replaced_while_it_is_read_is_the_new_one(
    stores: Stores, blobs: Blobs, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.items.upsert("default", [new_item("a", unit(1), b"old")])
    original, newer = blobs.get, [b"newer", b"newest"]

    def get(sha256: str) -> bytes:
        if newer:
            stores.items.upsert("default", [new_item("a", unit(1), newer.pop(0))])
            database.settle()
        return original(sha256)

    monkeypatch.setattr(blobs, "get", get)
    item, data = stores.items.image("default", "a")
    assert (data, item) == (b"newest", stores.items.item("default", "a"))


def test_the_follower_tries_again_where_nobody_nudges_twice(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    tries, original, done = [1], stores.indexes.catch_up, threading.Event()

    def catch_up() -> int:
        if tries:
            tries.pop()
            raise EngineUnavailable("The store cannot be reached.")
        done.set()
        return original()

    monkeypatch.setattr(stores.indexes, "catch_up", catch_up)
    stores.indexes.follow(None)
    stores.indexes.nudge()
    assert done.wait(10)
    stores.indexes.close()


def test_a_fault_in_the_follower_is_logged_and_unready_until_it_is_over(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, may_end, failed, done = stores.indexes.catch_up, threading.Event(), threading.Event(), threading.Event()

    def catch_up() -> int:
        if not may_end.is_set():
            if stores.indexes._has_failed:
                failed.set()
            raise ValueError("a fault")
        if not stores.indexes._has_failed:
            done.set()
        stores.indexes.nudge()
        return original()

    monkeypatch.setattr(stores.indexes, "catch_up", catch_up)
    assert not stores.indexes.is_current
    with capture_logs() as logs:
        stores.indexes.follow(None)
        assert stores.indexes.is_current
        stores.indexes.nudge()
        assert failed.wait(10)
    assert [one["event"] for one in logs] == ["log_not_followed"]
    assert not stores.indexes.is_current
    may_end.set()
    assert done.wait(10)
    assert stores.indexes.is_current
    stores.indexes.close()
    assert not stores.indexes.is_current


def test_a_merge_that_fails_is_logged_and_rests(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def merge(self: VectorIndex) -> None:
        calls.append(len(self))
        raise MemoryError

    monkeypatch.setattr(VectorIndex, "merge", merge)
    monkeypatch.setattr(VectorIndex, "wants_merge", True)
    with capture_logs() as logs:
        stores.items.upsert("default", [new_item("a", unit(1))])
        stores.indexes._builder.submit(int).result()
        stores.items.upsert("default", [new_item("b", unit(1))])
        stores.indexes._builder.submit(int).result()
    assert calls == [1]
    assert [one["event"] for one in logs] == ["index_not_merged"]
    monkeypatch.setattr("app.stores.index.follower.MERGE_BACKOFF_S", 0.0)
    stores.indexes._retry_at_s.clear()
    stores.items.remove("default", "b")
    stores.indexes._builder.submit(int).result()
    assert calls == [1, 1]
    assert stores.found(unit(1)) == ["a"]


def test_a_full_disk_leaves_nothing_behind(
    stores: Stores, blobs: Blobs, database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = Blobs.put

    def put(self: Blobs, data: bytes, *, was_just_put: bool = False) -> str:
        if data == b"second":
            raise DiskFull("No space left to store the image.")
        return original(self, data, was_just_put=was_just_put)

    monkeypatch.setattr(Blobs, "put", put)
    with pytest.raises(DiskFull):
        stores.items.upsert("default", [new_item("a", unit(1), b"first"), new_item("b", unit(1), b"second")])
    assert stores.galleries.get("default").count == 0
    database.settle()
    assert len([*blobs.names()]) == 0
    assert not [path for path in (tmp_path / "data" / "blobs").rglob("*") if path.is_file()]


def test_an_image_that_cannot_be_removed_costs_no_write(
    stores: Stores, blobs: Blobs, database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is removed after the answer; what fails is logged, and a vacuum finds it."""
    stores.items.upsert("default", [new_item("a", unit(1)), new_item("b", unit(1))])
    answered = threading.Event()

    def delete(self: Blobs, sha256: str) -> None:
        del self, sha256
        assert answered.wait(30)
        raise OSError(errno.EIO, "the disk is away")

    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(Blobs, "delete", delete)
        removed = stores.items.remove("default", "a")
        answered.set()
        database.settle()
    assert stores.galleries.head_seq() == removed
    assert [one["event"] for one in logs] == ["store_left_to_vacuum"]
    maintenance = Maintenance(database, blobs, IndexSnapshots(tmp_path / "indexes"))
    assert (len([*blobs.names()]), maintenance.vacuum().images, len([*blobs.names()])) == (2, 1, 1)


def test_a_flipped_byte_of_an_image_is_reported(stores: Stores, tmp_path: Path) -> None:
    stores.items.upsert("default", [new_item("a", unit(1), b"image")])
    (path,) = [path for path in (tmp_path / "data" / "blobs").rglob("*") if path.is_file()]
    path.write_bytes(b"pictura")
    with pytest.raises(Damaged):
        stores.items.image("default", "a")
    # Whoever sends it again mends it.
    stores.items.upsert("default", [new_item("b", unit(1), b"image")])
    assert stores.items.image("default", "a")[1] == b"image"


def test_a_merge_during_a_search_does_not_pass_near_scores_for_true_ones(
    database: Database, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = open_stores(database, blobs, options=IndexOptions(kind="hnsw", storage="sq8"))
    stores.items.upsert("default", [new_item(f"i{n}", unit(1, n / 7, n % 3)) for n in range(40)])
    stores.indexes._index("default").merge()
    index, exact = stores.indexes._index("default"), VectorIndex(D).snapshot
    original = VectorIndex.search

    def search(self: VectorIndex, *args: Any, **options: Any) -> Any:
        found = original(self, *args, **options)
        self.snapshot = exact
        return found

    monkeypatch.setattr(VectorIndex, "search", search)
    assert index.snapshot.base.storage == "sq8"
    assert stores.indexes.search("default", unit(1), 5, None)[2]


@pytest.mark.parametrize("storage", ["fp16", "sq8"])
def test_lossy_storage_still_scores_exactly(database: Database, blobs: Blobs, storage: str) -> None:
    options = dataclasses.replace(IndexOptions(kind="hnsw"), storage=storage)  # type: ignore[arg-type]  # one of them
    stores = open_stores(database, blobs, options=options)
    stores.items.upsert("default", [new_item(f"i{n}", unit(1, n / 7, n % 3)) for n in range(40)])
    stores.indexes.close()
    query = unit(1, 2, 1)
    found = stores.galleries.search("default", query, k=5, min_score=None)[1]
    for one in found:
        n = int(one.external_id[1:])
        assert one.score == pytest.approx(float(unit(1, n / 7, n % 3) @ query), abs=1e-6)


@pytest.mark.parametrize("error", [EngineUnavailable("The store is busy."), DeadlineExceeded("The query took long.")])
def test_a_write_that_is_committed_is_done_though_the_index_cannot_follow_now(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, error: ServiceError
) -> None:
    stores.items.upsert("default", [new_item("old", unit(1)), new_item("older", unit(1))])
    original, is_back, done = stores.indexes.catch_up, threading.Event(), threading.Event()

    def catch_up() -> int:
        if not is_back.is_set():
            raise error
        seq = original()
        done.set()
        return seq

    monkeypatch.setattr(stores.indexes, "catch_up", catch_up)
    assert stores.galleries.put("more", None)[1]
    assert stores.galleries.delete("more", confirmed=False)
    assert stores.items.upsert("default", [new_item("new", unit(0, 1))]).replaced == [False]
    assert stores.items.remove_many("default", ids=["older"]).count == 1
    seq = stores.items.remove("default", "old")
    stores.indexes.follow(None)  # was nudged by each
    is_back.set()
    assert done.wait(10)
    assert stores.indexes.applied_seq == seq
    assert stores.found(unit(1)) == ["new"]
    stores.indexes.close()
