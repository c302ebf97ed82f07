"""The SQL database: one writer, short readers, all off the event loop in a bounded pool."""

import asyncio
import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

import sqlalchemy as sa

from app.errors import Damaged, DeadlineExceeded, DiskFull, EngineUnavailable, QueueFull
from app.runtime.telemetry import get_logger
from app.stores.sql.engines import (
    READ_LIMIT_S,
    UnusableDatabase,
    has_present_schema,
    limit_statements,
    migrate,
    postgres_engine,
    sqlite_engine,
)
from app.stores.sql.tables import counters

SQLITE_FILE = "vermouth.sqlite3"
MAX_PENDING = 512
MAX_LATER = 1024
DISK_FULL_STATE = "53100"
READ_ONLY_STATE = "25006"
CANCELLED_STATE = "57014"
STEPS_A_LOOK = 10_000
"""How many of SQLite's steps, about a millisecond, go by between looks at the clock."""

P = ParamSpec("P")
T = TypeVar("T")


class DataFolderLocked(RuntimeError):
    """Another process serves this data folder."""


class Database:
    """Connections, transactions and the pool that runs them.

    Attributes:
        is_shared: other processes may write to it too (PostgreSQL).
        write_lock: held by every writer of this process from its first file to its last derived value.
    """

    def __init__(self, engine: sa.Engine, pool: ThreadPoolExecutor, lock_file: IO[str] | None) -> None:
        self.engine = engine
        self.is_shared = engine.dialect.name == "postgresql"
        self.write_lock = threading.RLock()
        self._readers = engine.execution_options(isolation_level="REPEATABLE READ") if self.is_shared else None
        self._pool = pool
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._later = ThreadPoolExecutor(1, thread_name_prefix="store-later")
        self._waiting: set[Future[object]] = set()
        self._lock_file = lock_file
        self._pending = 0
        self._written = 0

    @property
    def written(self) -> int | None:
        """How often this process has written; None where others may write too, and it tells nothing.

        Two reads without a write between them, by this number, find the same.
        """
        return None if self.is_shared else self._written

    @contextlib.contextmanager
    def read(self, *, limit_s: float | None = READ_LIMIT_S) -> Iterator[sa.Connection]:
        """One consistent snapshot to read from.

        Args:
            limit_s: longest that a statement may take (on SQLite: the block); None for maintenance.

        Raises:
            DeadlineExceeded: a query took longer.
        """
        readers = self._readers or self.engine
        with sql_errors(), readers.connect() as connection, self._limited(connection, limit_s):
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction of the only writer; committed and on disk when the block ends.

        The writers of all processes take turns: SQLite by its own lock, PostgreSQL by the counter row that
        `seq` is taken from. So what a transaction reads first is still true when it commits.

        Raises:
            DiskFull: no space for the transaction.
        """
        with self.write_lock, sql_errors(), self.engine.connect() as connection:
            writer = connection.execution_options(vermouth_writes=True)
            try:
                with writer.begin():
                    if self.is_shared:
                        limit_statements(writer, None)
                        writer.execute(sa.select(counters.c.value).where(counters.c.name == "seq").with_for_update())
                    yield writer
            finally:
                # After the commit, and before anyone is told of it: who reads the old state has the old number.
                self._written += 1

    @contextlib.contextmanager
    def _limited(self, connection: sa.Connection, limit_s: float | None) -> Iterator[None]:
        if self.is_shared:
            if limit_s != READ_LIMIT_S:
                limit_statements(connection, limit_s)
            yield
            return
        if limit_s is None:
            yield
            return
        until_s, driver = time.monotonic() + limit_s, connection.connection.driver_connection
        if driver is None:
            raise EngineUnavailable("The store cannot be reached.", retry_after_s=1.0)
        driver.set_progress_handler(lambda: time.monotonic() > until_s, STEPS_A_LOOK)
        try:
            yield
        finally:
            driver.set_progress_handler(None, 0)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking reads in the pool.

        Raises:
            QueueFull: too many calls wait for the store already.
        """
        return await self._run(self._pool, lambda: function(*args, **kwargs))

    async def run_write(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking writes in their own thread, so that reads never queue behind them. Raises as `run`."""
        return await self._run(self._writer, lambda: function(*args, **kwargs))

    def later(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run in the background what nobody waits for and a vacuum can make up for; failures are logged."""
        if len(self._waiting) >= MAX_LATER:
            get_logger().warning("store_left_to_vacuum")
            return
        future: Future[object] = self._later.submit(function, *args, **kwargs)
        self._waiting.add(future)
        future.add_done_callback(self._done_later)

    def settle(self) -> None:
        """Wait for all that runs in the background."""
        # One thread: what was handed in before is done, and told, when this is.
        self._later.submit(int).result()

    def _done_later(self, future: Future[object]) -> None:
        self._waiting.discard(future)
        error = None if future.cancelled() else future.exception()
        if error is not None:
            get_logger().warning("store_left_to_vacuum", exc_info=error)

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        if self._pending >= MAX_PENDING:
            raise QueueFull("The store has too many requests waiting.", retry_after_s=1.0)
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        finally:
            self._pending -= 1

    def compact(self) -> None:
        """Give the room of deleted rows back to the disk."""
        if not self.is_shared:
            with sql_errors(), self.engine.connect() as connection:
                # It begins a transaction by itself; the connection's own is empty.
                connection.exec_driver_sql("COMMIT")
                connection.exec_driver_sql("VACUUM")

    def close(self) -> None:
        """Finish what runs, close the connections and let go of the data folder."""
        self._writer.shutdown(wait=True)
        self._later.shutdown(wait=True, cancel_futures=True)
        self._pool.shutdown(wait=True)
        self.engine.dispose()
        if self._lock_file is not None:
            self._lock_file.close()


def open_database(*, data_dir: Path, url: str | None = None, threads: int = 4) -> Database:
    """Lock the data folder, open the database in it (or at `url`) and migrate it.

    Args:
        data_dir: the state's folder, made when absent.
        url: a PostgreSQL URL; None for SQLite in `data_dir`.
        threads: size of the pool that runs SQL.

    Raises:
        DataFolderLocked: another process holds the folder.
        UnusableDatabase: the URL is no PostgreSQL URL, or nothing answers there.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    lock_file = _lock_folder(data_dir)
    try:
        engine = sqlite_engine(data_dir / SQLITE_FILE) if url is None else postgres_engine(url, threads)
        migrate(engine)
    except BaseException:
        lock_file.close()
        raise
    return Database(engine, ThreadPoolExecutor(threads, thread_name_prefix="store"), lock_file)


def attach_database(*, data_dir: Path, url: str | None = None) -> Database:
    """A database that another process may be serving: neither locked nor migrated.

    Raises:
        UnusableDatabase: there is none, or it is of another release.
    """
    path = data_dir / SQLITE_FILE
    if url is None and not path.exists():
        raise UnusableDatabase(f"There is no database in {data_dir}.")
    engine = sqlite_engine(path) if url is None else postgres_engine(url, 1)
    if not has_present_schema(engine):
        engine.dispose()
        raise UnusableDatabase("The database is of another release: start this one once, it will migrate it.")
    return Database(engine, ThreadPoolExecutor(1, thread_name_prefix="store"), None)


def _lock_folder(data_dir: Path) -> IO[str]:
    lock_file = (data_dir / "lock").open("a+")
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        lock_file.close()
        raise DataFolderLocked(f"The data folder {data_dir} is in use by another process.") from err
    lock_file.truncate(0)
    lock_file.write(f"{os.getpid()}\n")
    lock_file.flush()
    return lock_file


@contextlib.contextmanager
def sql_errors() -> Iterator[None]:
    """Turn what a database says of disks and connections into the service's errors."""
    try:
        yield
    except sa.exc.DBAPIError as err:
        state = getattr(err.orig, "sqlstate", None)
        if "disk is full" in str(err.orig) or state == DISK_FULL_STATE:
            raise DiskFull("No space left to store this.") from err
        if "malformed" in str(err.orig) or "not a database" in str(err.orig):
            raise Damaged("The database is damaged.") from err
        if state == CANCELLED_STATE or str(err.orig) == "interrupted":
            raise DeadlineExceeded("The query took longer than the store allows.") from err
        is_away = isinstance(err, sa.exc.OperationalError | sa.exc.InterfaceError) or err.connection_invalidated
        if is_away or state == READ_ONLY_STATE:
            raise EngineUnavailable("The store cannot be reached.", retry_after_s=1.0) from err
        raise
    except sa.exc.TimeoutError as err:
        raise EngineUnavailable("The store is busy.", retry_after_s=1.0) from err
    except OSError as err:
        if err.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull("No space left to store this.") from err
        raise
