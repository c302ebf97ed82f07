"""Snapshots, checks, vacuums and backups of real stores, and what damage does to them."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.stores.blobs import Blobs
from app.stores.index.base import IndexOptions, Kind
from app.stores.index.delta import MERGE_AT
from app.stores.index.snapshots import IndexSnapshots
from app.stores.maintenance.backup import BackupRefused, restore_backup, write_backup
from app.stores.maintenance.check import Maintenance
from app.stores.records.episodes import Episodes, NewSupport, NewWay
from app.stores.records.jobs import Jobs, JobState
from app.stores.sql import metadata
from app.stores.sql.database import SQLITE_FILE, Database, attach_database, open_database
from app.stores.sql.tables import changes, item_vectors, pack
from app.stores.sql.tables import items as item_rows
from app.stores.sql.tables import jobs as job_rows
from tests.app.postgres import PostgresServer
from tests.app.stores.stores import FINGERPRINT, Stores, new_item, open_stores, unit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "indexes"


@pytest.fixture
def maintenance(database: Database, blobs: Blobs, folder: Path) -> Maintenance:
    return Maintenance(database, blobs, IndexSnapshots(folder))


def fill(stores: Stores, count: int = 30) -> None:
    stores.items.upsert("default", [new_item(f"i{n}", unit(1, n)) for n in range(count)])
    stores.items.upsert("default", [new_item("i3", unit(0, 1))])
    stores.items.remove("default", "i5")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_start_goes_on_from_the_snapshot_and_the_log(
    database: Database, blobs: Blobs, folder: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = IndexOptions(kind=kind)
    first = open_stores(database, blobs, snapshots=folder, options=options)
    fill(first, MERGE_AT + 10)
    first.indexes.settle()
    first.indexes.close()
    second = open_stores(database, blobs, options=options)
    second.items.remove("default", "i7")
    second.items.upsert("default", [new_item("i8", unit(0, 0, 1)), new_item("new", unit(0, 0, 1))])
    monkeypatch.setattr("app.stores.index.follower.read_all", None)
    third = open_stores(database, blobs, snapshots=folder, options=options)
    assert third.indexes.state("default").digest == second.indexes.state("default").digest
    assert third.indexes.state("default").kind == kind
    assert third.found(unit(0, 0, 1), k=2) == ["i8", "new"]


def damage_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def damage_all(path: Path) -> None:
    path.write_bytes(b"")


def lose(path: Path) -> None:
    path.unlink()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped": damage_bit,
    "truncated": damage_end,
    "lost": lose,
    "empty": damage_all,
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["base.faiss", "arrays.npz", "manifest.json"])
def test_a_damaged_snapshot_is_never_served(tmp_path: Path, folder: Path, name: str, how: str) -> None:
    database, blobs = open_database(data_dir=tmp_path / "data"), Blobs(str(tmp_path / "data" / "blobs"))
    first = open_stores(database, blobs, snapshots=folder)
    fill(first)
    before = first.galleries.index_state("default")
    first.indexes.close()
    for path in files(folder):
        if path.name == name:
            DAMAGE[how](path)
    again = open_stores(database, blobs, snapshots=folder)
    assert again.galleries.index_state("default") == before
    assert len(again.found(unit(1))) == 29
    database.close()


def test_a_lost_folder_and_a_read_only_one_cost_nothing_but_time(
    database: Database, blobs: Blobs, folder: Path
) -> None:
    first = open_stores(database, blobs, snapshots=folder)
    fill(first)
    first.indexes.close()
    shutil.rmtree(folder)
    # A file where the folder should be: nothing can be written there, by root neither.
    folder.write_text("")
    again = open_stores(database, blobs, snapshots=folder / "below")
    assert len(again.found(unit(1))) == 29
    again.indexes.close()


def test_a_snapshot_of_another_history_is_not_believed(database: Database, blobs: Blobs, folder: Path) -> None:
    first = open_stores(database, blobs, snapshots=folder)
    fill(first)
    first.indexes.close()
    with database.write() as connection:
        metadata.renew_identity(connection)
        connection.execute(sa.delete(item_rows).where(item_rows.c.external_id == "i1"))
    again = open_stores(database, blobs, snapshots=folder)
    assert "i1" not in again.found(unit(1))


def test_a_snapshot_of_a_kind_that_was_removed_is_rebuilt_from_sql(
    database: Database, blobs: Blobs, folder: Path
) -> None:
    first = open_stores(database, blobs, snapshots=folder)
    fill(first)
    before = first.galleries.index_state("default")
    first.indexes.close()
    (manifest,) = (path for path in files(folder) if path.name == "manifest.json")
    text = json.loads(manifest.read_text())["text"].replace('"kind": "flat"', '"kind": "ivf"')
    assert '"ivf"' in text
    manifest.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "text": text}))
    again = open_stores(database, blobs, snapshots=folder)
    assert again.galleries.index_state("default") == before
    assert not manifest.exists()


def test_what_a_killed_writer_left_unfinished_is_removed(database: Database, blobs: Blobs, folder: Path) -> None:
    stores = open_stores(database, blobs, snapshots=folder)
    fill(stores)
    stores.indexes.close()
    (gallery,) = folder.iterdir()
    unfinished = gallery / ".00000000000000000099.7"
    unfinished.mkdir()
    (unfinished / "base.faiss").write_bytes(b"x")
    again = open_stores(database, blobs, snapshots=folder)
    assert not unfinished.exists()
    assert again.indexes.state("default").digest == stores.indexes.state("default").digest


def test_only_the_last_two_snapshots_are_retained(database: Database, blobs: Blobs, folder: Path) -> None:
    for n in range(4):
        stores = open_stores(database, blobs, snapshots=folder)
        stores.items.upsert("default", [new_item(f"i{n}", unit(1))])
        stores.indexes.close()
    assert len([path for path in files(folder) if path.name == "manifest.json"]) == 2


def test_a_sound_store_is_sound(database: Database, blobs: Blobs, folder: Path, maintenance: Maintenance) -> None:
    assert maintenance.check(deep=True) == []
    stores = open_stores(database, blobs, snapshots=folder)
    fill(stores)
    stores.indexes.close()
    assert maintenance.check(deep=True) == []


def test_a_check_changes_no_saved_index_even_if_it_builds_another(
    database: Database, blobs: Blobs, folder: Path
) -> None:
    fill(open_stores(database, blobs))
    open_stores(database, blobs, snapshots=folder).indexes.close()
    open_stores(database, blobs).items.upsert("default", [new_item("unsaved", unit(1))])
    (folder / "99").mkdir()  # a service removes it: there is no such gallery
    before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
    options = IndexOptions(kind="hnsw")  # of another kind than the saved one
    assert Maintenance(database, blobs, IndexSnapshots(folder), options=options).check() == []
    assert {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")} == before


def test_faults_are_reported(database: Database, blobs: Blobs, maintenance: Maintenance) -> None:
    stores = open_stores(database, blobs)
    fill(stores)
    blobs.delete(stores.items.item("default", "i1").sha256)
    with database.write() as connection:
        connection.execute(sa.delete(item_vectors).where(item_vectors.c.item_id == 2))
        connection.execute(sa.delete(changes).where(changes.c.seq == 3))
    found = "\n".join(maintenance.check())
    assert "named but not stored" in found
    assert "1 items have no vector" in found
    assert "The change log holds" in found


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_vectors_of_an_index_that_are_not_the_stored_ones_are_reported(tmp_path: Path, kind: Kind) -> None:
    database, blobs = open_database(data_dir=tmp_path / "data"), Blobs(str(tmp_path / "data" / "blobs"))
    stores = open_stores(database, blobs, options=IndexOptions(kind=kind))
    fill(stores)
    stores.indexes.settle()
    assert stores.indexes.differing() == []
    with database.write() as connection:
        connection.execute(sa.update(item_vectors).where(item_vectors.c.item_id == 2).values(vector=pack(unit(5, 1))))
    assert stores.indexes.differing() == ["default"]
    database.close()


def test_a_rebuild_makes_what_the_truth_says(
    database: Database, blobs: Blobs, folder: Path, maintenance: Maintenance
) -> None:
    stores = open_stores(database, blobs, snapshots=folder)
    fill(stores)
    digest = stores.galleries.index_state("default").digest
    stores.indexes.close()
    assert maintenance.rebuild() == 29
    assert open_stores(database, blobs, snapshots=folder).galleries.index_state("default").digest == digest


def test_a_vacuum_leaves_only_what_lives_and_replicas_read_again(
    database: Database, blobs: Blobs, maintenance: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, behind = open_stores(database, blobs), open_stores(database, blobs)
    fill(stores)
    blobs.put(b"left by a killed process")
    monkeypatch.setattr("app.stores.maintenance.check.ROWS_AT_ONCE", 5)
    done = maintenance.vacuum(log_retained_s=0)
    assert (done.items, done.changes, done.images) == (2, 33, 1)
    assert maintenance.check() == []
    assert behind.found(unit(1)) == []
    assert behind.indexes.catch_up() == stores.indexes.applied_seq
    assert behind.galleries.index_state("default") == stores.galleries.index_state("default")
    stores.items.upsert("default", [new_item("next", unit(1))])
    behind.indexes.catch_up()
    assert "next" in behind.found(unit(1))


def test_a_vacuum_keeps_the_last_hour_for_exports_and_replicas(
    database: Database, blobs: Blobs, maintenance: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, behind = open_stores(database, blobs), open_stores(database, blobs)
    monkeypatch.setattr("app.stores.records.exports.EXPORTED_AT_ONCE", 10)
    stores.items.upsert("default", [new_item(f"i{n}", unit(1, n)) for n in range(30)])
    with database.write() as connection:
        connection.execute(sa.update(changes).where(changes.c.seq <= 11).values(at=time.time() - 3700))
    _, parts = stores.exports.export("default")
    exported = list(next(parts))
    stores.items.remove_many("default", ids=["i3", "i25"])
    done = maintenance.vacuum()
    assert (done.items, done.changes) == (0, 11)
    assert [one.id for one in [*exported, *(one for part in parts for one in part)]] == [f"i{n}" for n in range(30)]
    assert maintenance.check() == []
    behind.indexes.catch_up()
    assert behind.galleries.index_state("default") == stores.galleries.index_state("default")


@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
def test_a_backup_is_restored_whole(
    database: Database, blobs: Blobs, tmp_path: Path, target: str, postgres: PostgresServer
) -> None:
    stores = open_stores(database, blobs)
    fill(stores)
    sets = Episodes(database, blobs, fingerprint=FINGERPRINT)
    way = NewWay(label="a", support=[NewSupport(data=b"support", media_type="image/png", vector=unit(1))])
    _, episode = sets.create([way, way], name=None, method="ridge", ttl_s=None)
    done = write_backup(database, blobs, tmp_path / "backup")
    assert (done.seq, done.items) == (stores.galleries.head_seq(), 29)
    stores.items.remove("default", "i1")
    url = postgres.new_database() if target == "postgresql" else None
    other, other_blobs = open_database(data_dir=tmp_path / "other", url=url), Blobs(str(tmp_path / "other" / "blobs"))
    # A image that lies there already, damaged, is not taken for sound.
    damage_bit(tmp_path / "other" / "blobs" / other_blobs.put(b"i1")[:2] / other_blobs.put(b"i1"))
    assert restore_backup(tmp_path / "backup", other, other_blobs) == done
    again = open_stores(other, other_blobs)
    assert len(again.found(unit(1))) == 29
    assert again.items.image("default", "i1")[1] == b"i1"
    assert Episodes(other, other_blobs, fingerprint=FINGERPRINT).get(episode.id).method == "ridge"
    assert again.items.upsert("default", [new_item("next", unit(1))]).seq == done.seq + 1
    assert Maintenance(other, other_blobs, IndexSnapshots(tmp_path / "x")).check(deep=True) == []
    with pytest.raises(BackupRefused, match="not empty"):
        restore_backup(tmp_path / "backup", other, other_blobs)
    other.close()
    if url is not None:
        postgres.drop(url)


def test_a_restore_leaves_the_backup_as_it_was_and_a_store_that_was_begun_meanwhile(tmp_path: Path) -> None:
    database, blobs = open_database(data_dir=tmp_path / "data"), Blobs(str(tmp_path / "data" / "blobs"))
    fill(open_stores(database, blobs))
    write_backup(database, blobs, tmp_path / "backup")
    before = {path: path.stat().st_mtime_ns for path in files(tmp_path / "backup")}
    other, other_blobs = open_database(data_dir=tmp_path / "other"), Blobs(str(tmp_path / "other" / "blobs"))

    def begin(done: int, _: int) -> None:
        if done == 3:
            open_stores(other, other_blobs).items.upsert("default", [new_item("acknowledged", unit(1))])

    with pytest.raises(BackupRefused, match="not empty"):
        restore_backup(tmp_path / "backup", other, other_blobs, begin)
    assert open_stores(other, other_blobs).found(unit(1)) == ["acknowledged"]
    assert {path: path.stat().st_mtime_ns for path in files(tmp_path / "backup")} == before
    other.close()
    database.close()


def test_the_rows_of_a_backup_are_one_file_without_a_log(tmp_path: Path) -> None:
    database, blobs = open_database(data_dir=tmp_path / "data"), Blobs(str(tmp_path / "data" / "blobs"))
    fill(open_stores(database, blobs))
    write_backup(database, blobs, tmp_path / "backup")
    database.close()
    assert sorted(path.name for path in (tmp_path / "backup").iterdir()) == ["blobs", "manifest.json", SQLITE_FILE]
    # The versions of the file format: 1 is a rollback journal, 2 a log, which a read-only disk cannot have.
    assert (tmp_path / "backup" / SQLITE_FILE).read_bytes()[18:20] == b"\1\1"


def test_jobs_of_a_killed_process_have_failed_after_the_next_start(database: Database) -> None:
    jobs = Jobs(database)
    killed, old = jobs.begin("reembed", 3), jobs.begin("reembed", 3)
    with database.write() as connection:
        connection.execute(sa.update(job_rows).where(job_rows.c.id == old.id).values(updated_at=time.time() - 7200))
    jobs.end_abandoned()
    # On PostgreSQL another process may be at work on the one that made a step lately.
    expected = JobState.RUNNING if database.is_shared else JobState.FAILED
    assert (jobs.get(killed.id).state, jobs.get(old.id).state) == (expected, JobState.FAILED)
    assert jobs.get(old.id).error == "The process ended."


def test_a_backup_runs_beside_the_service_and_images_wait_for_it(tmp_path: Path) -> None:
    serving, blobs = open_database(data_dir=tmp_path / "data"), Blobs(str(tmp_path / "data" / "blobs"))
    stores = open_stores(serving, blobs)
    fill(stores)
    # What `fill` removed is collected before the backup begins, or it would wait for it too.
    serving.settle()
    beside = attach_database(data_dir=tmp_path / "data")

    def delete_one(done: int, _: int) -> None:
        if done == 1:
            stores.items.remove_many("default", ids=[f"i{n}" for n in range(20, 30)])

    done = write_backup(beside, blobs, tmp_path / "backup", delete_one)
    assert (done.items, done.images) == (29, 29)
    serving.settle()
    assert len([*blobs.names()]) == 29
    Maintenance(serving, blobs, IndexSnapshots(tmp_path / "x")).vacuum()
    assert len([*blobs.names()]) == 19
    beside.close()
    serving.close()


def test_a_backup_that_ends_leaves_a_later_ones_hold(tmp_path: Path) -> None:
    database, blobs = open_database(data_dir=tmp_path / "data"), Blobs(str(tmp_path / "data" / "blobs"))
    stores = open_stores(database, blobs)
    stores.items.upsert("default", [new_item("a", unit(1), b"old")])

    def begin_another(*_: int) -> None:
        with database.write() as connection:
            metadata.write(connection, metadata.IMAGES_HELD_UNTIL, str(time.time() + 60))

    write_backup(database, blobs, tmp_path / "copy", begin_another)
    stores.items.upsert("default", [new_item("a", unit(1), b"new")])
    database.settle()
    assert len([*blobs.names()]) == 2
    database.close()


def test_the_name_of_a_backup_is_on_disk_when_it_is_reported(
    database: Database, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(open_stores(database, blobs))
    synced: list[tuple[Path, bool]] = []
    monkeypatch.setattr(
        "app.stores.maintenance.backup.sync_path", lambda path: synced.append((path, (tmp_path / "backup").exists()))
    )
    write_backup(database, blobs, tmp_path / "backup")
    assert synced == [(tmp_path / ".backup.part", False), (tmp_path, True)]


def test_a_damaged_backup_is_refused(database: Database, blobs: Blobs, tmp_path: Path) -> None:
    fill(open_stores(database, blobs))
    write_backup(database, blobs, tmp_path / "backup")
    with pytest.raises(BackupRefused, match="exists"):
        write_backup(database, blobs, tmp_path / "backup")
    damage_bit(tmp_path / "backup" / "vermouth.sqlite3")
    other = open_database(data_dir=tmp_path / "other")
    with pytest.raises(BackupRefused, match="damaged"):
        restore_backup(tmp_path / "backup", other, Blobs(str(tmp_path / "other" / "blobs")))
    with pytest.raises(BackupRefused, match="no backup"):
        restore_backup(tmp_path, other, Blobs(str(tmp_path / "other" / "blobs")))
    other.close()
