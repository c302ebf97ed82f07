"""Galleries against real SQLite, a real folder and real FAISS."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import Conflict, DiskFull, FingerprintMismatch, NotFound
from app.stores.blobs import Blobs
from app.stores.database import Database
from app.stores.galleries import Galleries
from app.stores.gallery_records import NewItem

D = 8


def unit(*values: float) -> NDArray[np.float32]:
    vector = np.zeros(D, np.float32)
    vector[: len(values)] = values
    return vector / np.linalg.norm(vector)


def new_item(item_id: str, vector: NDArray[np.float32], data: bytes = b"") -> NewItem:
    return NewItem(
        id=item_id,
        data=data or item_id.encode(),
        media_type="image/png",
        width=3,
        height=2,
        metadata={"name": item_id},
        caption=None,
        vector=vector,
    )


@pytest.fixture
def store(database: Database, blobs: Blobs) -> Galleries:
    store = Galleries(database, blobs, dimension=D, fingerprint="f1")
    store.load()
    return store


def test_default_exists_and_cannot_be_deleted(store: Galleries) -> None:
    assert [gallery.name for gallery in store.all()] == ["default"]
    with pytest.raises(Conflict):
        store.delete("default", confirmed=True)


def test_written_items_are_found_best_first_with_ties_by_id(store: Galleries) -> None:
    written = [new_item("b", unit(1)), new_item("a", unit(1)), new_item("c", unit(1, 1))]
    seq, replaced = store.upsert("default", written)
    assert (seq, replaced) == (4, [False, False, False])
    searched_at, found = store.search("default", unit(1), k=10, min_score=None)
    assert searched_at == seq
    assert [f.hit.external_id for f in found] == ["a", "b", "c"]
    assert found[2].hit.score == pytest.approx(2**-0.5)
    assert found[0].metadata == {"name": "a"}


def test_min_score_and_k_bound_the_results(store: Galleries) -> None:
    store.upsert("default", [new_item("a", unit(1)), new_item("b", unit(0, 1))])
    assert [f.hit.external_id for f in store.search("default", unit(1), k=10, min_score=0.5)[1]] == ["a"]
    assert len(store.search("default", unit(1), k=1, min_score=None)[1]) == 1


def test_replacing_an_item_changes_its_vector_and_collects_its_old_picture(store: Galleries, blobs: Blobs) -> None:
    store.upsert("default", [new_item("a", unit(1), b"old")])
    _, replaced = store.upsert("default", [new_item("a", unit(0, 1), b"new")])
    assert replaced == [True]
    assert store.get("default").count == 1
    assert store.picture("default", "a")[1] == b"new"
    assert blobs.count() == 1
    assert store.search("default", unit(1), k=5, min_score=None)[1][0].hit.score == pytest.approx(0)


def test_a_picture_shared_by_two_items_outlives_one(store: Galleries, blobs: Blobs) -> None:
    store.upsert("default", [new_item("a", unit(1), b"same"), new_item("b", unit(1), b"same")])
    store.remove("default", "a")
    assert store.picture("default", "b")[1] == b"same"
    store.remove("default", "b")
    assert blobs.count() == 0
    with pytest.raises(NotFound):
        store.remove("default", "b")


def test_deleting_a_gallery_with_items_needs_confirmation(store: Galleries, blobs: Blobs) -> None:
    assert store.put("pets", "Cats.")[1]
    store.upsert("pets", [new_item("a", unit(1))])
    with pytest.raises(Conflict):
        store.delete("pets", confirmed=False)
    store.delete("pets", confirmed=True)
    assert blobs.count() == 0
    with pytest.raises(NotFound):
        store.search("pets", unit(1), k=1, min_score=None)


def test_items_survive_a_restart_with_equal_digest(store: Galleries, database: Database, blobs: Blobs) -> None:
    store.upsert("default", [new_item(f"i{n}", unit(1, n)) for n in range(20)])
    store.remove("default", "i3")
    again = Galleries(database, blobs, dimension=D, fingerprint="f1")
    again.load()
    before, after = store.index_state("default"), again.index_state("default")
    assert before == after
    assert after.vectors == 19
    assert after.applied_seq == again.head_seq()


def test_writes_elsewhere_leave_no_index_behind(store: Galleries) -> None:
    store.put("pets", "")
    state = store.index_state("default")
    assert state.applied_seq == store.head_seq()


def test_another_bundles_vectors_are_refused(store: Galleries, database: Database, blobs: Blobs) -> None:
    store.upsert("default", [new_item("a", unit(1))])
    with pytest.raises(FingerprintMismatch):
        Galleries(database, blobs, dimension=D, fingerprint="f2").load()


def test_pages_follow_each_other(store: Galleries) -> None:
    store.upsert("default", [new_item(f"i{n}", unit(1)) for n in range(5)])
    first = store.items("default", after=None, limit=3)
    second = store.items("default", after=first[-1].id, limit=3)
    assert [item.id for item in [*first, *second]] == [f"i{n}" for n in range(5)]


def test_a_full_disk_leaves_nothing_behind(
    store: Galleries, blobs: Blobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = Blobs.put

    def put(self: Blobs, data: bytes) -> str:
        if data == b"second":
            raise DiskFull("No space left to store the image.")
        return original(self, data)

    monkeypatch.setattr(Blobs, "put", put)
    with pytest.raises(DiskFull):
        store.upsert("default", [new_item("a", unit(1), b"first"), new_item("b", unit(1), b"second")])
    assert store.get("default").count == 0
    assert blobs.count() == 0
    assert not [path for path in (tmp_path / "data" / "blobs").rglob("*") if path.is_file()]
