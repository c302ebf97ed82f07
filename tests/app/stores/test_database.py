"""The database: migration, locking, order of changes."""

import asyncio
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from app.errors import DeadlineExceeded, DiskFull, EngineUnavailable
from app.stores.blobs import Blobs
from app.stores.index.snapshots import IndexSnapshots
from app.stores.maintenance.check import Maintenance
from app.stores.records.episodes import Episodes
from app.stores.sql import change_log
from app.stores.sql import engines as sql_engines
from app.stores.sql.checksums import ROW_CHECKSUM
from app.stores.sql.database import SQLITE_FILE, Database, DataFolderLocked, open_database
from app.stores.sql.engines import READ_LIMIT_S, UnusableDatabase, migrate, sqlite_engine
from app.stores.sql.tables import schema
from tests.app.stores.conftest import OpenReplica, Report
from tests.app.stores.stores import open_stores, unit

WRITERS = 10
FIRST_SCHEMA_ROWS = (
    "INSERT INTO galleries (id, name, description, created_at) VALUES (1, 'default', '', 0)",
    "INSERT INTO items (gallery_id, external_id, sha256, media_type, width, height, metadata, vector, fingerprint,"
    " created_at, seq) VALUES (1, 'a', :sha, 'image/png', 1, 1, '{\"n\": 1}', :vector, 'f1', 0, 7)",
    "INSERT INTO episodes (id, name, version, method, fingerprint, labels, created_at)"
    " VALUES ('ep_1', NULL, 1, 'prototype', 'f1', '[\"x\"]', 0)",
    "INSERT INTO supports (id, episode_id, way, position, sha256, media_type, vector)"
    " VALUES ('s_1', 'ep_1', 0, 0, :sha, 'image/png', :vector)",
    "UPDATE counters SET value = 7",
)
CHANGES = int(os.environ.get("ORDER_CHANGES", "300"))


def test_sqlite_runs_in_wal_with_full_sync(tmp_path: Path) -> None:
    database = open_database(data_dir=tmp_path)
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    database.close()


def test_an_sqlite_with_the_wal_bug_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_engines, "MIN_SQLITE", (99, 0, 0))
    with pytest.raises(RuntimeError, match="WAL bug"):
        open_database(data_dir=tmp_path)


def test_migrations_lead_to_the_schema_of_the_code(database: Database) -> None:
    with database.engine.connect() as connection:
        # Written by triggers, on SQLite alone.
        opts = {"include_name": lambda name, *_: name != ROW_CHECKSUM}
        assert compare_metadata(MigrationContext.configure(connection, opts=opts), schema) == []


def test_a_database_of_the_first_schema_keeps_its_items_and_episodes(
    tmp_path: Path, database_url: str | None, blobs: Blobs
) -> None:
    database = migrated(tmp_path, database_url, blobs.put(b"image"), unit(1, 2).tobytes())
    stores = open_stores(database, blobs)
    assert stores.found(unit(1, 2)) == ["a"]
    assert stores.items.item("default", "a").metadata == {"n": 1}
    episode = Episodes(database, blobs, fingerprint="f1").get("ep_1")
    np.testing.assert_array_equal(episode.ways[0].support[0].vector, unit(1, 2))
    assert stores.galleries.put("next", "")[0] == 8
    database.close()


def test_a_torn_vector_of_an_older_release_is_named_after_the_migration(
    tmp_path: Path, database_url: str | None, blobs: Blobs
) -> None:
    database = migrated(tmp_path, database_url, blobs.put(b"image"), unit(1, 2).tobytes()[:-1])
    stores = open_stores(database, blobs)
    assert stores.found(unit(1, 2)) == []
    assert stores.indexes.left_out == 1
    found = "\n".join(Maintenance(database, blobs, IndexSnapshots(tmp_path / "indexes")).check())
    assert "The vector of item 'a' in gallery 'default' is damaged" in found
    assert "The feature of example 's_1' of episode 'ep_1' is damaged" in found
    database.close()


def migrated(tmp_path: Path, database_url: str | None, image: str, vector: bytes) -> Database:
    """A database of the first schema with an item and an example of that vector, opened by this release."""
    folder = tmp_path / "old"
    folder.mkdir()
    engine = sa.create_engine(database_url.replace("://", "+psycopg://")) if database_url else None
    engine = engine or sqlite_engine(folder / SQLITE_FILE)
    migrate(engine, "0001")
    with engine.connect() as connection, connection.execution_options(vermouth_writes=True).begin():
        for statement in FIRST_SCHEMA_ROWS:
            connection.execute(sa.text(statement), {"sha": image, "vector": vector})
    engine.dispose()
    return open_database(data_dir=folder, url=database_url)


def test_a_second_opener_of_the_folder_is_refused(tmp_path: Path) -> None:
    first = open_database(data_dir=tmp_path)
    with pytest.raises(DataFolderLocked, match="in use"):
        open_database(data_dir=tmp_path)
    first.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://root@127.0.0.1/x", "begin with postgresql"),
        ("sqlite:///x.db", "begin with postgresql"),
        ("nonsense", "cannot be parsed"),
        ("postgresql://nobody:secret@127.0.0.1:1/x", "No PostgreSQL answers"),
    ],
)
def test_an_unusable_url_is_reported_without_its_password(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(UnusableDatabase, match=words) as caught:
        open_database(data_dir=tmp_path, url=url)
    assert "secret" not in str(caught.value)
    open_database(data_dir=tmp_path).close()


def test_a_closed_folder_opens_again_with_its_content(tmp_path: Path, database_url: str | None) -> None:
    first = open_database(data_dir=tmp_path, url=database_url)
    with first.write() as connection:
        change_log.append(connection, "test", "a")
    first.close()
    second = open_database(data_dir=tmp_path, url=database_url)
    with second.read() as connection:
        assert [change.subject for change in change_log.after(connection, 0)] == ["a"]
    second.close()


def test_ten_writers_leave_no_gap_a_reader_could_skip(open_another: OpenReplica, report: Report) -> None:
    """Three processes' worth of one database: one writer holds its transactions open over looks at the log."""
    quick, slow, reader = open_another(), open_another(), open_another()
    with pytest.raises(ZeroDivisionError):
        _write_and_fail(quick)
    looked, holds = threading.Event(), max(3, CHANGES // 100)
    count = (CHANGES - holds) // (WRITERS - 1)
    threads = [
        threading.Thread(target=_write_some, args=((quick, slow)[n % 2], str(n), count)) for n in range(WRITERS - 1)
    ]
    threads.append(threading.Thread(target=_hold_open, args=(slow, holds, looked)))
    for thread in threads:
        thread.start()
    seen = looks = 0
    while any(thread.is_alive() for thread in threads):
        seen += _follow(reader, seen)
        looks += 1
        looked.set()
    while new := _follow(reader, seen):
        seen += new
    assert seen == holds + count * (WRITERS - 1)
    kind = "postgresql" if reader.is_shared else "sqlite"
    report(
        f"{kind}: {seen} changes of {WRITERS} writers, {holds} transactions held open over a look at the log:"
        f" {looks} looks skipped none"
    )


def test_a_reader_skips_nothing_while_a_writer_holds_its_transaction_open(open_replica: OpenReplica) -> None:
    """Two processes' worth of PostgreSQL: a sequence's value would be taken before the commit and be skipped."""
    slow, quick, reader = open_replica(), open_replica(), open_replica()
    is_open, may_commit = threading.Event(), threading.Event()

    def hold() -> None:
        with slow.write() as connection:
            change_log.append(connection, "test", "slow")
            is_open.set()
            assert may_commit.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert is_open.wait(30)
    others = [threading.Thread(target=_write_some, args=(quick, "quick", 3))]
    others[0].start()
    assert _follow(reader, 0) == 0
    may_commit.set()
    for thread in (holder, *others):
        thread.join()
    with reader.read() as connection:
        found = change_log.after(connection, 0)
    assert [(change.seq, change.subject) for change in found] == [(1, "slow"), (2, "quick"), (3, "quick"), (4, "quick")]


def test_the_pool_runs_blocking_work_off_the_loop(database: Database) -> None:
    async def names() -> tuple[str, str]:
        return threading.current_thread().name, await database.run(lambda: threading.current_thread().name)

    loop_thread, store_thread = asyncio.run(names())
    assert store_thread.startswith("store")
    assert loop_thread != store_thread


ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


def test_a_read_that_takes_too_long_is_ended_and_reported(database: Database) -> None:
    with pytest.raises(DeadlineExceeded, match="longer than the store allows"), database.read(limit_s=0.2) as reader:
        reader.exec_driver_sql(ENDLESS)
    # The connection is as good as before, and what comes after has its own time.
    limited = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 200000) SELECT count(*) FROM n"
    for limit_s in (None, READ_LIMIT_S):
        with database.read(limit_s=limit_s) as reader:
            assert reader.exec_driver_sql(limited).scalar_one() == 200_000
    if database.is_shared:
        with database.read() as reader:
            assert reader.exec_driver_sql("SHOW statement_timeout").scalar_one() == "30s"
        with database.write() as writer:
            assert writer.exec_driver_sql("SHOW statement_timeout").scalar_one() == "0"


def test_an_unreachable_database_is_503(database: Database) -> None:
    database.engine.dispose()
    database.engine = sa.create_engine("sqlite:////nonexistent/folder/x.sqlite3")
    with pytest.raises(EngineUnavailable), database.write():
        pass


def test_a_full_database_is_507(tmp_path: Path) -> None:
    database = open_database(data_dir=tmp_path)
    with database.read() as connection:
        pages = int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())

    def fill() -> None:
        with database.write() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}")
            for _ in range(1000):
                change_log.append(connection, "test", "x" * 200)

    with pytest.raises(DiskFull):
        fill()
    with database.read() as connection:
        assert change_log.head(connection) == 0
    database.close()


def _follow(database: Database, seen: int) -> int:
    """How many changes follow `seen`; none may be missing between them."""
    with database.read() as connection:
        seqs = [change.seq for change in change_log.after(connection, seen)]
    assert seqs == list(range(seen + 1, seen + 1 + len(seqs)))
    return len(seqs)


def _hold_open(database: Database, count: int, looked: threading.Event) -> None:
    """Each transaction lasts until the reader has looked once more."""
    for _ in range(count):
        with database.write() as connection:
            change_log.append(connection, "test", "held")
            looked.clear()
            assert looked.wait(30)


def _write_some(database: Database, subject: str, count: int) -> None:
    for _ in range(count):
        with database.write() as connection:
            change_log.append(connection, "test", subject)


def _write_and_fail(database: Database) -> None:
    with database.write() as connection:
        change_log.append(connection, "test", "lost")
        raise ZeroDivisionError
