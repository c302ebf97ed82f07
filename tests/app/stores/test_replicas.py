"""Several processes' worth of one PostgreSQL: they converge, and agree on what they say."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.errors import NotFound
from app.stores.blobs import Blobs
from tests.app.stores.conftest import OpenReplica, Report
from tests.app.stores.stores import Stores, new_item, open_stores, unit

WRITES = int(os.environ.get("REPLICA_WRITES", "60"))


@pytest.fixture
def replicas(open_replica: OpenReplica, tmp_path: Path) -> Iterator[list[Stores]]:
    blobs = Blobs(str(tmp_path / "shared"))
    opened = [open_stores(open_replica(), blobs) for _ in range(2)]
    yield opened
    for stores in opened:
        stores.indexes.close()


def test_concurrent_writes_and_deletes_converge_to_equal_digests(replicas: list[Stores], report: Report) -> None:
    threads = [threading.Thread(target=write_at_random, args=(stores, at)) for at, stores in enumerate(replicas * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, other = replicas
    assert one.indexes.catch_up() == other.indexes.catch_up() == one.galleries.head_seq()
    for gallery in one.galleries.all():
        assert one.indexes.state(gallery.name) == other.indexes.state(gallery.name)
    digests = {name: one.indexes.state(name).digest for name in one.indexes.counts()}
    assert digests == one.indexes.true_digests() == other.indexes.true_digests()
    for item in one.items.page("default", after=None, limit=1000)[0]:
        assert other.items.image("default", item.id)[1]
    report(f"two replicas, {len(threads)} writers, {WRITES} writes and deletes: equal digests, equal to the truth's")


def test_a_replica_sees_a_write_once_it_is_at_its_seq(replicas: list[Stores]) -> None:
    one, other = replicas
    seq = one.items.upsert("default", [new_item("a", unit(1))]).seq
    assert other.indexes.applied_seq < seq
    assert other.indexes.catch_up() >= seq
    assert other.found(unit(1)) == ["a"]
    one.galleries.put("pets", "")
    seq = one.items.upsert("pets", [new_item("b", unit(1))]).seq
    one.items.remove("default", "a")
    other.indexes.catch_up()
    assert (other.found(unit(1)), other.found(unit(1), "pets")) == ([], ["b"])
    one.galleries.delete("pets", confirmed=True)
    other.indexes.catch_up()
    with pytest.raises(NotFound):
        other.found(unit(1), "pets")


def test_a_follower_arrives_by_itself(replicas: list[Stores]) -> None:
    one, other = replicas
    arrived = threading.Event()
    original = other.indexes.catch_up

    def catch_up() -> int:
        seq = original()
        if seq >= wanted:
            arrived.set()
        return seq

    wanted = one.galleries.head_seq() + 1
    other.indexes.catch_up = catch_up  # type: ignore[method-assign]  # watched, not changed
    other.indexes.follow(0.02)
    one.items.upsert("default", [new_item("a", unit(1))])
    assert arrived.wait(30)
    assert other.found(unit(1)) == ["a"]


def test_equal_images_survive_the_deletes_of_another_replica(replicas: list[Stores]) -> None:
    """One replica collects an image while the other is about to name it."""

    def churn(stores: Stores, name: str) -> Callable[[], None]:
        def run() -> None:
            for _ in range(15):
                stores.items.upsert("default", [new_item(name, unit(1), b"shared image")])
                assert stores.items.image("default", name)[1] == b"shared image"
                stores.items.remove("default", name)
            stores.items.upsert("default", [new_item(name, unit(1), b"shared image")])

        return run

    threads = [threading.Thread(target=churn(stores, f"n{at}")) for at, stores in enumerate(replicas)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at in range(2):
        assert replicas[0].items.image("default", f"n{at}")[1] == b"shared image"


def write_at_random(stores: Stores, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(WRITES // 4):
        item_id, pick = f"i{chance.randrange(12)}", chance.random()
        try:
            if pick < 0.6:
                stores.items.upsert("default", [new_item(item_id, unit(1, chance.random()))])
            elif pick < 0.8:
                stores.items.remove("default", item_id)
            elif pick < 0.9:
                stores.galleries.put(f"g{chance.randrange(3)}", "")
            else:
                stores.galleries.delete(f"g{chance.randrange(3)}", confirmed=True)
        except NotFound:
            continue
