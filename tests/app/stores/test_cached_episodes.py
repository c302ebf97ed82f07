"""Which episodes stay cached."""

import pytest

from app.domain import Limits
from app.errors import NotFound
from app.runtime.lru import ByteLru
from app.stores.blobs import Blobs
from app.stores.records.episodes import Episodes, NewSupport, NewWay
from app.stores.sql import metadata
from app.stores.sql.database import Database
from tests.app.stores.stores import FINGERPRINT, unit


def test_asking_for_episodes_that_are_not_there_drops_none_that_is(database: Database, blobs: Blobs) -> None:
    with database.write() as connection:
        metadata.write(connection, metadata.FINGERPRINT, FINGERPRINT)
    store = Episodes(database, blobs, fingerprint=FINGERPRINT)
    store._cache = ByteLru(4096)
    ways = [NewWay(label="a", support=[NewSupport(data=b"a", media_type="image/png", vector=unit(1))])]
    _, created = store.create(ways, name=None, method="prototype", ttl_s=None)
    episode = store.get(created.id)
    for number in range(100):
        with pytest.raises(NotFound):
            store.get(f"ep_none{number}")
    assert store.get(created.id) is episode
    _, changed = store.add(created.id, ways, if_match=None, limits=Limits(), token="t")
    assert store.get(created.id) is not episode
    assert store.get(created.id).version == changed.version == 2
