"""The database: migration, locking, order of changes."""

import asyncio
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.stores import change_log
from app.stores.database import Database, DataFolderLocked, open_database


def test_sqlite_runs_in_wal_with_full_sync(database: Database) -> None:
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "0001"


@pytest.mark.usefixtures("database")
def test_a_second_opener_of_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFolderLocked, match="in use"):
        open_database(data_dir=tmp_path / "data")


def test_a_closed_folder_opens_again_with_its_content(tmp_path: Path) -> None:
    first = open_database(data_dir=tmp_path)
    with first.write() as connection:
        change_log.append(connection, "test", "a")
    first.close()
    second = open_database(data_dir=tmp_path)
    with second.read() as connection:
        assert [change.subject for change in change_log.after(connection, 0)] == ["a"]
    second.close()


def test_seq_follows_commit_order_and_a_rollback_leaves_no_gap(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        _write_and_fail(database)
    threads = [threading.Thread(target=_write_some, args=(database, str(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    seen = 0
    while any(thread.is_alive() for thread in threads):
        with database.read() as connection:
            seqs = [change.seq for change in change_log.after(connection, seen)]
        assert seqs == list(range(seen + 1, seen + 1 + len(seqs)))
        seen += len(seqs)
    with database.read() as connection:
        assert change_log.head(connection) == 40
        assert len(change_log.after(connection, 0)) == 40


def test_the_pool_runs_blocking_work_off_the_loop(database: Database) -> None:
    async def names() -> tuple[str, str]:
        return threading.current_thread().name, await database.run(lambda: threading.current_thread().name)

    loop_thread, store_thread = asyncio.run(names())
    assert store_thread.startswith("store")
    assert loop_thread != store_thread


def test_an_unreachable_database_says_so(database: Database) -> None:
    assert database.is_reachable()
    database.engine = sa.create_engine("sqlite:////nonexistent/folder/x.sqlite3")
    assert not database.is_reachable()


def _write_some(database: Database, subject: str) -> None:
    for _ in range(10):
        with database.write() as connection:
            change_log.append(connection, "test", subject)


def _write_and_fail(database: Database) -> None:
    with database.write() as connection:
        change_log.append(connection, "test", "lost")
        raise ZeroDivisionError
