"""Episodes against a real database."""

import time

import numpy as np
import pytest
import sqlalchemy as sa

from app.domain import Limits
from app.errors import Conflict, FingerprintMismatch, Invalid, NotFound, PreconditionFailed
from app.stores.blobs import Blobs
from app.stores.records.episode_rows import Episode
from app.stores.records.episodes import Episodes, NewSupport, NewWay
from app.stores.sql import metadata
from app.stores.sql.database import Database

VECTORS = np.eye(4, dtype=np.float32)
LIMITS = Limits(max_ways=3, max_support_per_way=3)


def example(data: bytes, at: int) -> NewSupport:
    return NewSupport(data=data, media_type="image/png", vector=VECTORS[at])


WAYS = [
    NewWay(label="apple", support=[example(b"a", 0)]),
    NewWay(label="Birne é", support=[example(b"b", 1), example(b"a", 2)]),
]


@pytest.fixture
def store(database: Database, blobs: Blobs) -> Episodes:
    with database.write() as connection:
        metadata.write(connection, metadata.FINGERPRINT, "f")
    return Episodes(database, blobs, fingerprint="f")


def create(store: Episodes, ttl_s: float | None = None, token: str | None = None) -> Episode:
    return store.create(WAYS, name="fruit", method="prototype", ttl_s=ttl_s, token=token)[1]


def content(episode: Episode) -> tuple[str, int, list[tuple[str, list[str]]]]:
    return episode.id, episode.version, [(way.label, [one.id for one in way.support]) for way in episode.ways]


def shots(episode: Episode) -> list[tuple[str, int]]:
    return [(way.label, len(way.support)) for way in episode.ways]


def test_an_episode_is_read_back_whole_and_in_order(store: Episodes) -> None:
    episode = create(store)
    read = store.get(episode.id)
    assert shots(read) == [("apple", 1), ("Birne é", 2)]
    assert read.ways[1].support[1].vector.tolist() == [0, 0, 1, 0]
    image = store.image(episode.id, read.ways[1].support[0].id)
    assert (image.blob.read(), image.media_type) == (b"b", "image/png")
    for wrong in (
        (episode.id, "s_0"),
        ("ep_0", read.ways[0].support[0].id),
        (create(store).id, read.ways[0].support[0].id),
    ):
        with pytest.raises(NotFound):
            store.image(*wrong)
    store.delete(wrong[0])
    assert (read.version, read.fingerprint) == (1, "f")
    (listed,) = store.all(after=None, limit=10)
    assert (listed.id, listed.name, listed.version) == (read.id, "fruit", 1)
    assert [(way.label, way.shots) for way in listed.ways] == shots(read)


def test_an_image_and_a_list_read_no_features(
    store: Episodes, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    episode, read = create(store), list[str]()
    monkeypatch.setattr("app.stores.records.episode_rows.verified", None)

    def note(*args: object) -> None:
        read.append(str(args[2]))

    sa.event.listen(database.engine, "before_cursor_execute", note)
    store.image(episode.id, episode.ways[0].support[0].id)
    (query,) = [one for one in read if "supports" in one]
    assert "vector" not in query
    store.all(after=None, limit=10)
    assert not [one for one in read if "support_vectors" in one]


def test_support_is_added_to_old_and_new_ways(store: Episodes) -> None:
    episode = create(store)
    more = [NewWay(label="apple", support=[example(b"c", 3)]), NewWay(label="kiwi", support=[example(b"d", 0)])]
    _, changed = store.add(episode.id, more, if_match=[1], limits=LIMITS)
    assert changed.version == 2
    assert shots(changed) == [("apple", 2), ("Birne é", 2), ("kiwi", 1)]
    assert changed.ways[0].support[1].vector.tolist() == [0, 0, 0, 1]
    with pytest.raises(PreconditionFailed):
        store.add(episode.id, more, if_match=[1], limits=LIMITS)
    assert content(store.get(episode.id)) == content(changed)


def test_what_would_be_too_much_is_refused_and_leaves_nothing(
    store: Episodes, blobs: Blobs, database: Database
) -> None:
    episode = create(store)
    too_many_shots = [NewWay(label="apple", support=[example(bytes([n]), 0) for n in range(3)])]
    too_many_ways = [NewWay(label=label, support=[example(label.encode(), 0)]) for label in ("x", "y")]
    for ways in (too_many_shots, too_many_ways):
        with pytest.raises(Invalid):
            store.add(episode.id, ways, if_match=None, limits=LIMITS)
    assert content(store.get(episode.id)) == content(episode)
    database.settle()
    assert len([*blobs.names()]) == 2


def test_support_is_taken_away_but_for_a_ways_last(store: Episodes, blobs: Blobs, database: Database) -> None:
    episode = create(store)
    first, second = (one.id for one in episode.ways[1].support)
    with pytest.raises(PreconditionFailed):
        store.remove(episode.id, first, if_match=[7])
    _, changed = store.remove(episode.id, first, if_match=[1])
    assert (changed.version, shots(changed)) == (2, [("apple", 1), ("Birne é", 1)])
    database.settle()
    assert len([*blobs.names()]) == 1
    with pytest.raises(Conflict):
        store.remove(episode.id, second, if_match=[2])
    with pytest.raises(NotFound):
        store.remove(episode.id, first, if_match=[2])


def test_a_repeat_with_the_same_token_makes_nothing_new(store: Episodes) -> None:
    assert content(create(store, token="t")) == content(create(store, token="t"))
    episode = create(store, token="t")
    more = [NewWay(label="apple", support=[example(b"c", 3)])]
    once = store.add(episode.id, more, if_match=[1], limits=LIMITS, token="u")[1]
    again = store.add(episode.id, more, if_match=[1], limits=LIMITS, token="u")[1]
    assert content(again) == content(once)
    assert len(store.all(after=None, limit=10)) == 1


def test_deleting_the_last_episode_leaves_no_image(store: Episodes, blobs: Blobs, database: Database) -> None:
    one, two = create(store), create(store)
    store.delete(one.id)
    database.settle()
    assert len([*blobs.names()]) == 2
    store.delete(two.id)
    database.settle()
    assert len([*blobs.names()]) == 0
    with pytest.raises(NotFound):
        store.get(one.id)


def test_an_expired_episode_is_gone(
    store: Episodes, blobs: Blobs, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    episode = create(store, ttl_s=60)
    assert store.get(episode.id).expires_at is not None
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(NotFound):
        store.get(episode.id)
    assert store.all(after=None, limit=10) == []
    store.delete(create(store).id)
    database.settle()
    assert len([*blobs.names()]) == 0


def test_another_bundle_may_read_but_not_write(store: Episodes, database: Database, blobs: Blobs) -> None:
    episode = create(store)
    other = Episodes(database, blobs, fingerprint="g")
    assert other.get(episode.id).fingerprint == "f"
    with pytest.raises(FingerprintMismatch):
        create(other)


def test_pages_follow_each_other(store: Episodes) -> None:
    ids = sorted(create(store).id for _ in range(3))
    first = store.all(after=None, limit=2)
    second = store.all(after=first[-1].id, limit=2)
    assert [episode.id for episode in [*first, *second]] == ids


def test_a_repeated_add_is_known_though_its_first_example_was_taken_away(store: Episodes) -> None:
    episode = create(store)
    more = [NewWay(label="apple", support=[example(b"c", 3), example(b"d", 3)])]
    _, added = store.add(episode.id, more, if_match=None, limits=LIMITS, token="t")
    _, fewer = store.remove(episode.id, added.ways[0].support[1].id, if_match=None)
    assert content(store.add(episode.id, more, if_match=None, limits=LIMITS, token="t")[1]) == content(fewer)


def test_an_episode_that_another_process_changes_is_read_again(
    store: Episodes, database: Database, blobs: Blobs
) -> None:
    other = Episodes(database, blobs, fingerprint="f")
    episode = create(other)
    assert store.get(episode.id) is store.get(episode.id)
    _, more = other.add(episode.id, [NewWay(label="apple", support=[example(b"d", 3)])], if_match=None, limits=LIMITS)
    assert content(store.get(episode.id)) == content(more)
    _, fewer = other.remove(episode.id, more.ways[0].support[0].id, if_match=None)
    assert content(store.get(episode.id)) == content(fewer)
    other.delete(episode.id)
    with pytest.raises(NotFound):
        store.get(episode.id)


def test_a_cached_episode_expires_too(store: Episodes, monkeypatch: pytest.MonkeyPatch) -> None:
    episode = create(store, ttl_s=60)
    assert store.get(episode.id) is store.get(episode.id)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    with pytest.raises(NotFound):
        store.get(episode.id)


def test_a_cached_episode_shows_when_another_bundle_took_over(store: Episodes, database: Database) -> None:
    episode = create(store)
    assert store.get(episode.id).fingerprint == "f"
    with database.write() as connection:
        metadata.write(connection, metadata.FINGERPRINT, "g")
    assert store.get(episode.id).fingerprint == "g"
