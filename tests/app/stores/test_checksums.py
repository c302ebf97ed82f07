"""Damage at rest: rows carry checksums, nothing damaged is served as sound, and a check names what is damaged."""

import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from app.errors import ServiceError
from app.stores.blobs import Blobs
from app.stores.index.snapshots import IndexSnapshots
from app.stores.maintenance.backup import BackupRefused, write_backup
from app.stores.maintenance.check import Maintenance
from app.stores.maintenance.reembed import Reembedding
from app.stores.maintenance.repair import Repairing, accept_rows
from app.stores.records.class_sets import ClassPrompt, ClassSets
from app.stores.records.episodes import Episodes, NewSupport, NewWay
from app.stores.records.idempotency import Answer, IdempotencyKeys
from app.stores.records.jobs import Jobs
from app.stores.sql.checksums import row_triggers
from app.stores.sql.database import Database, attach_database, open_database, sql_errors
from app.stores.sql.engines import UnusableDatabase
from app.stores.sql.tables import class_set_vectors, item_vectors, pack
from app.stores.sql.tables import items as item_rows
from app.stores.sql.tables import jobs as job_rows
from tests.app.stores.conftest import Report
from tests.app.stores.stores import FINGERPRINT, D, new_item, open_stores, unit

FLIPS = int(os.environ.get("FLIPS", "60"))


@pytest.fixture
def maintenance(database: Database, blobs: Blobs, tmp_path: Path) -> Maintenance:
    return Maintenance(database, blobs, IndexSnapshots(tmp_path / "indexes"))


def damage_row(database: Database, **values: object) -> None:
    """Change the rows of all items as a flipped bit does: no trigger sees it."""
    with database.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER items_resealed")
        connection.execute(sa.update(item_rows).values(**values))
        connection.exec_driver_sql(row_triggers("items", [column.name for column in item_rows.columns])[1])


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder that costs no waiting for a disk, where there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def damage_vector(database: Database, item_id: int) -> None:
    with database.write() as connection:
        row = sa.update(item_vectors).where(item_vectors.c.item_id == item_id)
        connection.execute(row.values(vector=pack(unit(0, 0, 1))))


def test_a_damaged_vector_is_named_and_left_out_of_the_index(
    database: Database, blobs: Blobs, maintenance: Maintenance
) -> None:
    stores = open_stores(database, blobs)
    stores.items.upsert("default", [new_item(f"i{n}", unit(1, n)) for n in range(5)])
    damage_vector(database, 3)
    (fault,) = maintenance.check()
    assert "'i2'" in fault
    assert "'default'" in fault
    assert "vermouth db repair" in fault
    again = open_stores(database, blobs)
    assert sorted(again.found(unit(1))) == ["i0", "i1", "i3", "i4"]


def test_left_out_items_are_counted_until_they_are_replaced_or_deleted(database: Database, blobs: Blobs) -> None:
    stores = open_stores(database, blobs)
    stores.items.upsert("default", [new_item(f"i{n}", unit(1, n)) for n in range(5)])
    stores.galleries.put("next", "")
    stores.items.upsert("next", [new_item("other", unit(1))])
    for item_id in (3, 4, 6):
        damage_vector(database, item_id)
    again = open_stores(database, blobs)
    assert again.indexes.left_out == 3
    again.items.remove("default", "i2")
    assert again.indexes.left_out == 2
    again.items.upsert("default", [new_item("i3", unit(1))])
    assert again.indexes.left_out == 1
    again.galleries.delete("next", confirmed=True)
    assert again.indexes.left_out == 0
    stores.items.upsert("default", [new_item("late", unit(1))])
    with database.write() as connection:  # as a process of an older release writes it
        connection.execute(sa.update(item_vectors).where(item_vectors.c.item_id == 8).values(checksum=None))
    again.indexes.catch_up()
    assert again.indexes.left_out == 1
    assert "late" not in again.found(unit(1))


def fill_folder(folder: Path) -> None:
    """A bit of everything that is stored."""
    database, blobs = open_database(data_dir=folder), Blobs(str(folder / "blobs"))
    stores = open_stores(database, blobs, snapshots=folder / "indexes")
    chance = random.Random(1)
    stores.galleries.put("next", "The second gallery")
    for name in ("default", "next"):
        metadata = [{"name": "a vase", "n": 1.5, "tags": ["red", "blue"], "at": n} for n in range(40)]
        stores.items.upsert(
            name, [new_item(f"i{n}", unit(1, n), chance.randbytes(100), metadata[n]) for n in range(40)]
        )
    stores.items.remove("default", "i7")
    stores.items.upsert("default", [new_item("i3", unit(0, 1))])
    episodes = Episodes(database, blobs, fingerprint=FINGERPRINT)
    support = [NewSupport(data=f"s{n}".encode(), media_type="image/png", vector=unit(1, n)) for n in range(5)]
    episodes.create([NewWay(label="cup", support=support)], name="cups", method="ridge", ttl_s=None, token="t")
    kinds = [ClassPrompt(name="cat", synonyms=["kitten"]), ClassPrompt(name="dog")]
    ClassSets(database, dimension=D, fingerprint=FINGERPRINT).put("kinds", kinds, np.stack([unit(1), unit(0, 1)]))
    keys = IdempotencyKeys(database, hold_s=1)
    keys.claim("key", "request", until_s=time.time() + 1)
    keys.store("key", Answer(status=200, headers={"etag": "1"}, body=b'{"seq": 1}'))
    now = time.time()
    job = {"id": "job_1", "kind": "reembed", "state": "succeeded", "done": 3, "total": 3, "report": {"embedded": 3}}
    with database.write() as connection:
        connection.execute(sa.insert(job_rows), {**job, "created_at": now, "updated_at": now})
    stores.indexes.close()
    database.close()


def visible(folder: Path) -> object:
    """Everything that queries return, and whether a write is possible."""
    database, blobs = open_database(data_dir=folder), Blobs(str(folder / "blobs"))
    try:
        stores = open_stores(database, blobs, snapshots=folder / "indexes")
        found: list[object] = [stores.galleries.all()]
        for name in ("default", "next"):
            items = stores.items.page(name, after=None, limit=1000)[0]
            found += [items, [stores.items.image(name, item.id)[1] for item in items]]
            for query in (unit(1), unit(0, 1), unit(1, 20)):
                hits = stores.galleries.search(name, query, k=1000, min_score=None)[1]
                found.append([(hit.external_id, hit.score, hit.metadata) for hit in hits])
            found.append(
                [(one.id, one.metadata, one.vector.tolist()) for part in stores.exports.export(name)[1] for one in part]
            )
        episodes = Episodes(database, blobs, fingerprint=FINGERPRINT)
        for one in episodes.all(after=None, limit=100):
            episode = episodes.get(one.id)
            examples = [support for way in episode.ways for support in way.support]
            found += [one, [(s.id, s.sha256, s.media_type, s.vector.tolist()) for s in examples]]
            for image in [episodes.image(one.id, s.id) for s in examples]:
                found.append([image.sha256, image.media_type, image.blob.read()])
                image.blob.close()
        sets = ClassSets(database, dimension=D, fingerprint=FINGERPRINT)
        for kinds in sets.all():
            found += [kinds, sets.embedded(kinds.name)[1].tolist()]
        found.append(IdempotencyKeys(database, hold_s=1).claim("key", "request", until_s=time.time() + 1))
        found.append(Jobs(database).get("job_1"))
        found.append(stores.items.upsert("default", [new_item("more", unit(1))]).seq)
        return found
    finally:
        database.close()


def checked(folder: Path) -> object:
    try:
        with sql_errors():
            database = attach_database(data_dir=folder, is_exclusive=True)
    except (ServiceError, UnusableDatabase, sa.exc.SQLAlchemyError) as err:
        return [str(err)]
    try:
        blobs, snapshots = Blobs(str(folder / "blobs")), IndexSnapshots(folder / "indexes")
        return Maintenance(database, blobs, snapshots).check(deep=True)
    finally:
        database.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_flipped_bit_that_a_query_could_see_is_found(in_memory: Path, report: Report) -> None:
    """Single bits of the database, of images and of saved indexes, each in a copy of one data folder."""
    sound, copy = in_memory / "sound", in_memory / "copy"
    fill_folder(sound)
    assert checked(sound) == []
    shutil.copytree(sound, copy)
    before = visible(copy)
    files = sorted(path.relative_to(sound) for path in sound.rglob("*") if path.is_file() and path.name != "lock")
    sizes = [(sound / path).stat().st_size for path in files]
    chance, found, unseen = random.Random(19), 0, 0
    for number in range(FLIPS):
        shutil.rmtree(copy)
        shutil.copytree(sound, copy)
        (path,) = chance.choices(files, sizes)
        at, bit = chance.randrange(sizes[files.index(path)]), chance.randrange(8)
        data = bytearray((copy / path).read_bytes())
        data[at] ^= 1 << bit
        (copy / path).write_bytes(data)
        flipped = contents(copy)
        faults = checked(copy)
        assert contents(copy) == flipped, "a check changes nothing"
        try:
            after: object = visible(copy)
        except Exception as err:  # noqa: BLE001  # whatever a reader meets
            after = err
        found += faults != []
        unseen += faults == []
        assert faults or after == before, f"flip {number}: bit {bit} of byte {at} of {path}: {after}"
    report(f"of {FLIPS} flipped bits of a data folder a check found {found}; the other {unseen} changed no answer")


def test_a_write_to_a_damaged_row_does_not_make_it_look_sound(tmp_path: Path) -> None:
    database, blobs = open_database(data_dir=tmp_path), Blobs(str(tmp_path / "blobs"))
    stores, maintenance = open_stores(database, blobs), Maintenance(database, blobs, IndexSnapshots(tmp_path / "x"))
    stores.items.upsert("default", [new_item("a", unit(1), metadata={"colour": "red"})])
    damage_row(database, caption="not what was written")
    (fault,) = maintenance.check()
    assert "'default / a' of items is damaged: restore a backup, or take it as it is" in fault
    stores.items.change("default", "a", lambda _: {"colour": "blue"})
    assert maintenance.check() == [fault]
    stores.items.upsert("default", [new_item("a", unit(1))])
    assert maintenance.check() == [fault], "the row that was replaced is there until a vacuum"
    maintenance.vacuum(log_retained_s=0)
    assert maintenance.check() == []
    damage_row(database, caption="not what was written")
    assert accept_rows(database) == 1
    assert maintenance.check() == []
    database.close()


def test_a_repair_of_a_damaged_rows_vector_does_not_make_the_row_look_sound(tmp_path: Path) -> None:
    database, blobs = open_database(data_dir=tmp_path), Blobs(str(tmp_path / "blobs"))
    stores, maintenance = open_stores(database, blobs), Maintenance(database, blobs, IndexSnapshots(tmp_path / "x"))
    stores.items.upsert("default", [new_item("a", unit(1))])
    damage_row(database, external_id="c")  # one bit
    row, vector = maintenance.check()
    assert "'default / c' of items is damaged" in row
    assert "vector of item 'c'" in vector
    repairing = Repairing(database, Reembedding(database, fingerprint=FINGERPRINT), fingerprint=FINGERPRINT)
    repairing.begin()
    (lacking,) = repairing.items(10)
    repairing.store_vectors([(lacking, unit(0, 1))])
    stores.indexes.catch_up()
    assert stores.found(unit(0, 1)) == ["c"]
    maintenance.vacuum(log_retained_s=0)  # of the row that was replaced
    assert maintenance.check() == [row]
    assert accept_rows(database) == 1
    assert maintenance.check() == []
    database.close()


def test_writers_do_not_wait_while_a_repair_reads_all_vectors(database: Database, blobs: Blobs) -> None:
    stores, kinds = open_stores(database, blobs), [ClassPrompt(name="cat")]
    sets = ClassSets(database, dimension=D, fingerprint=FINGERPRINT)
    stores.items.upsert("default", [new_item("a", unit(1))])
    sets.put("kinds", kinds, unit(1)[None])
    with database.write() as connection:
        connection.execute(sa.update(class_set_vectors).values(vectors=pack(unit(0, 1))))
    writing = threading.Thread(target=sets.put, args=("kinds", kinds, unit(0, 0, 1)[None]))
    ended: list[bool] = []

    @sa.event.listens_for(database.engine, "after_cursor_execute")
    def write_meanwhile(*arguments: object) -> None:
        statement = str(arguments[2])
        if not ended and statement.startswith("SELECT") and "class_set_vectors.vectors" in statement:
            ended.append(False)
            writing.start()
            writing.join(5)
            ended.append(not writing.is_alive())

    repairing = Repairing(database, Reembedding(database, fingerprint=FINGERPRINT), fingerprint=FINGERPRINT)
    repairing.begin()
    writing.join()
    assert ended == [False, True]
    assert repairing.class_sets() == [], "what was written meanwhile is sound, and stays"
    np.testing.assert_array_equal(sets.embedded("kinds")[1], unit(0, 0, 1)[None])


def test_nul_characters_that_older_releases_accepted_are_named(tmp_path: Path) -> None:
    database, blobs = open_database(data_dir=tmp_path / "data"), Blobs(str(tmp_path / "data" / "blobs"))
    stores, maintenance = open_stores(database, blobs), Maintenance(database, blobs, IndexSnapshots(tmp_path / "x"))
    stores.items.upsert("default", [new_item("a", unit(1), metadata={"quote": "C:\\u0000"}), new_item("b", unit(1))])
    assert maintenance.check() == []
    with database.write() as connection:
        connection.execute(sa.update(item_rows).where(item_rows.c.external_id == "b").values(caption="a\0b"))
    (fault,) = maintenance.check()
    assert "The caption of 'default' / 'b' in items holds a NUL character" in fault
    with pytest.raises(BackupRefused, match="NUL character"):
        write_backup(database, blobs, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
    stores.items.remove("default", "b")
    maintenance.vacuum(log_retained_s=0)
    write_backup(database, blobs, tmp_path / "backup")
    stores.items.upsert("default", [new_item("c", unit(1), metadata={"n": ["x\0"]})])
    assert "metadata of 'default' / 'c'" in maintenance.check()[0]
    database.close()


def test_a_backup_of_damaged_rows_is_refused_when_it_is_made(database: Database, blobs: Blobs, tmp_path: Path) -> None:
    stores = open_stores(database, blobs)
    stores.items.upsert("default", [new_item("a", unit(1))])
    damage_vector(database, 1)
    with pytest.raises(BackupRefused, match="'a' in gallery 'default' is damaged"):
        write_backup(database, blobs, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
