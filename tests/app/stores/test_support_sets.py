"""Episodes against real SQLite."""

import time

import numpy as np
import pytest

from app.errors import NotFound
from app.stores.blobs import Blobs
from app.stores.database import Database
from app.stores.support_sets import Episode, NewSupport, NewWay, SupportSets


def create(store: SupportSets, ttl_s: float | None = None) -> Episode:
    vectors = np.eye(4, dtype=np.float32)
    ways = [
        NewWay(label="apple", support=[NewSupport(data=b"a", media_type="image/png", vector=vectors[0])]),
        NewWay(
            label="Birne é",
            support=[
                NewSupport(data=b"b", media_type="image/png", vector=vectors[1]),
                NewSupport(data=b"a", media_type="image/png", vector=vectors[2]),
            ],
        ),
    ]
    return store.create(ways, name="fruit", method="prototype", fingerprint="f", ttl_s=ttl_s)[1]


def test_an_episode_is_read_back_whole_and_in_order(database: Database, blobs: Blobs) -> None:
    store = SupportSets(database, blobs)
    episode = create(store)
    read = store.get(episode.id)
    assert [(way.label, len(way.support)) for way in read.ways] == [("apple", 1), ("Birne é", 2)]
    assert read.ways[1].support[1].vector.tolist() == [0, 0, 1, 0]
    assert store.picture(episode.id, read.ways[1].support[0].id)[1] == b"b"
    assert read.version == 1


def test_deleting_the_last_episode_leaves_no_picture(database: Database, blobs: Blobs) -> None:
    store = SupportSets(database, blobs)
    one, two = create(store), create(store)
    store.delete(one.id)
    assert blobs.count() == 2
    store.delete(two.id)
    assert blobs.count() == 0
    with pytest.raises(NotFound):
        store.get(one.id)


def test_an_expired_episode_is_gone(database: Database, blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SupportSets(database, blobs)
    episode = create(store, ttl_s=60)
    assert store.get(episode.id).expires_at is not None
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(NotFound):
        store.get(episode.id)
    assert store.all(after=None, limit=10) == []


def test_pages_follow_each_other(database: Database, blobs: Blobs) -> None:
    store = SupportSets(database, blobs)
    ids = sorted(create(store).id for _ in range(3))
    first = store.all(after=None, limit=2)
    second = store.all(after=first[-1].id, limit=2)
    assert [episode.id for episode in [*first, *second]] == ids
