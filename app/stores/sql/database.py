"""The SQL database: one writer, short readers, all run off the event loop in a bounded pool."""

import asyncio
import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

import sqlalchemy as sa

from app.errors import Damaged, DeadlineExceeded, DiskFull, EngineUnavailable, QueueFull
from app.runtime.telemetry import get_logger
from app.stores.sql.engines import (
    READ_LIMIT_S,
    UnusableDatabase,
    limit_statements,
    migrate,
    postgres_engine,
    require_present_schema,
    sqlite_engine,
)
from app.stores.sql.tables import counters

SQLITE_FILE = "vermouth.sqlite3"
FAILPOINTS = (
    "blobs.before",
    "blob.temporary",
    "blob.renamed",
    "rows.before",
    "rows.written",
    "rows.committed",
    "index.applied",
    "blobs.collected",
    "snapshot.files",
    "snapshot.renamed",
)
MAX_PENDING = 512
MAX_LATER = 1024
DAMAGED_WORDS = ("malformed", "not a database", "Could not decode")  # in SQLite's messages
DISK_FULL_STATE = "53100"  # PostgreSQL's SQLSTATE
READ_ONLY_STATE = "25006"
CANCELLED_STATE = "57014"
STEPS_PER_CHECK = 10_000  # SQLite steps between two looks at the clock: about a millisecond

P = ParamSpec("P")
T = TypeVar("T")


failpoint_listeners: list[Callable[[str], None]] = []  # tests end the process in them; empty otherwise


class DataFolderLocked(RuntimeError):
    """Another process serves this data folder."""


class Database:
    """Connections, transactions and the pool that runs them.

    Attributes:
        is_shared: other processes may write to it too (PostgreSQL).
    """

    def __init__(self, engine: sa.Engine, pool: ThreadPoolExecutor, lock_file: IO[str] | None) -> None:
        self.engine = engine
        self.is_shared = engine.dialect.name == "postgresql"
        self._write_lock = threading.RLock()
        self._readers = engine.execution_options(isolation_level="REPEATABLE READ") if self.is_shared else engine
        self._pool = pool
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._background = ThreadPoolExecutor(1, thread_name_prefix="store-later")
        self._waiting: set[Future[object]] = set()  # of the background thread
        self._lock_file = lock_file
        self._pending = 0  # calls in `run` and `run_write`; only the event loop touches it

    @contextlib.contextmanager
    def read(self, *, limit_s: float | None = READ_LIMIT_S) -> Iterator[sa.Connection]:
        """Open one consistent snapshot to read from.

        Args:
            limit_s: longest that a statement may take (on SQLite: the block); None for maintenance.

        Raises:
            DeadlineExceeded: a query took longer.
        """
        with sql_errors(), self._readers.connect() as connection, self._limited(connection, limit_s):
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Open one write transaction; it is committed and on disk when the block ends.

        Writers of all processes take turns: SQLite by its own lock, PostgreSQL by the counter row of `seq`. What a
        transaction reads first is therefore still true when it commits.

        Raises:
            DiskFull: no space for the transaction.
        """
        with self._write_lock, sql_errors(), self.engine.connect() as connection:
            writer = connection.execution_options(vermouth_writes=True)  # BEGIN IMMEDIATE on SQLite
            with writer.begin():
                if self.is_shared:
                    limit_statements(writer, None)
                    writer.execute(sa.select(counters.c.value).where(counters.c.name == "seq").with_for_update())
                yield writer

    @contextlib.contextmanager
    def _limited(self, connection: sa.Connection, limit_s: float | None) -> Iterator[None]:
        if self.is_shared and limit_s != READ_LIMIT_S:  # the default is set when the connection is opened
            limit_statements(connection, limit_s)
        if self.is_shared or limit_s is None:
            yield
            return
        until_s = time.monotonic() + limit_s
        driver: Any = connection.connection.driver_connection
        # SQLite has no statement timeout: a handler that returns true interrupts the query.
        driver.set_progress_handler(lambda: time.monotonic() > until_s, STEPS_PER_CHECK)
        try:
            yield
        finally:
            driver.set_progress_handler(None, 0)  # the connection goes back to the pool

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking reads in the pool.

        Raises:
            QueueFull: too many calls wait for the store already.
        """
        return await self._run(self._pool, lambda: function(*args, **kwargs))

    async def run_write(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking writes in their own thread, so that reads never queue behind them. Raises as `run`."""
        return await self._run(self._writer, lambda: function(*args, **kwargs))

    def reads(self, function: Callable[P, T]) -> Callable[P, Awaitable[T]]:
        """Return the function with the same arguments, to be awaited; it runs as in `run`."""
        return partial(self.run, function)

    def writes(self, function: Callable[P, T]) -> Callable[P, Awaitable[T]]:
        """Return the function with the same arguments, to be awaited; it runs as in `run_write`."""
        return partial(self.run_write, function)

    async def _run(self, pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        if self._pending >= MAX_PENDING:
            raise QueueFull("The store has too many requests waiting.", retry_after_s=1.0)
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, call)
        finally:
            self._pending -= 1

    def later(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run in the background what a vacuum can make up for; failures and an overflow are logged."""
        if len(self._waiting) >= MAX_LATER:
            get_logger().warning("store_left_to_vacuum")
            return
        future: Future[object] = self._background.submit(function, *args, **kwargs)
        self._waiting.add(future)
        future.add_done_callback(self._done_later)

    def settle(self) -> None:
        """Wait for all that runs in the background."""
        self._background.submit(int).result()  # one thread: earlier work is done when this is

    def _done_later(self, future: Future[object]) -> None:
        self._waiting.discard(future)
        error = None if future.cancelled() else future.exception()
        if error is not None:
            get_logger().warning("store_left_to_vacuum", exc_info=error)

    def compact(self) -> None:
        """Return the space of deleted rows to the disk."""
        if not self.is_shared:
            with sql_errors(), self.engine.connect() as connection:
                connection.exec_driver_sql("COMMIT")  # VACUUM begins its own transaction
                connection.exec_driver_sql("VACUUM")

    def close(self) -> None:
        """Finish running calls, close all connections and unlock the data folder."""
        self._writer.shutdown(wait=True)  # first: writes schedule background work
        self._background.shutdown(wait=True, cancel_futures=True)
        self._pool.shutdown(wait=True)
        self.engine.dispose()
        if self._lock_file is not None:
            self._lock_file.close()


def open_database(*, data_dir: Path, url: str | None = None, threads: int = 4) -> Database:
    """Lock the data folder, open the database in it (or at `url`) and migrate it.

    Args:
        data_dir: the state's folder, created if absent.
        url: a PostgreSQL URL; None for SQLite in `data_dir`.
        threads: size of the pool that runs SQL.

    Raises:
        DataFolderLocked: another process holds the folder.
        UnusableDatabase: the URL is no PostgreSQL URL, or no server answers there.
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


def attach_database(*, data_dir: Path, url: str | None = None, is_exclusive: bool = False) -> Database:
    """Open a database as it is, without migrating it.

    Args:
        is_exclusive: lock the data folder; otherwise another process may be serving the database.

    Raises:
        UnusableDatabase: there is none, or it was written by another release.
        DataFolderLocked: another process holds the folder.
    """
    path = data_dir / SQLITE_FILE
    if url is None and not path.exists():
        raise UnusableDatabase(f"There is no database in {data_dir}.")
    if url is None and path.stat().st_size == 0:
        raise UnusableDatabase(f"The database file {path} is empty: restore a backup or remove the file.")
    lock_path = data_dir / "lock"
    lock_file = None
    if is_exclusive and lock_path.exists():  # not created: without it nobody serves the folder
        lock_file = _locked(lock_path.open())
    engine = sqlite_engine(path, as_it_is=True) if url is None else postgres_engine(url, 1)
    try:
        require_present_schema(engine)
    except BaseException:
        engine.dispose()
        if lock_file is not None:
            lock_file.close()
        raise
    return Database(engine, ThreadPoolExecutor(1, thread_name_prefix="store"), lock_file)


def _locked(lock_file: IO[str]) -> IO[str]:
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        lock_file.close()
        folder = Path(lock_file.name).parent
        advice = "stop that, or set VERMOUTH_DATA_DIR to another folder"
        raise DataFolderLocked(f"The data folder {folder} is in use by another process: {advice}.") from err
    return lock_file


def _lock_folder(data_dir: Path) -> IO[str]:
    lock_file = _locked((data_dir / "lock").open("a+"))
    lock_file.truncate(0)
    lock_file.write(f"{os.getpid()}\n")  # for operators; the lock itself ends with the process
    lock_file.flush()
    return lock_file


def failpoint(point: str) -> None:
    """Call the listeners at one of `FAILPOINTS`, the named moments of a write."""
    for listener in failpoint_listeners:
        listener(point)


@contextlib.contextmanager
def sql_errors() -> Iterator[None]:
    """Turn a driver's errors about disks, damage and connections into the service's."""
    try:
        yield
    except sa.exc.DBAPIError as err:
        state = getattr(err.orig, "sqlstate", None)
        if "disk is full" in str(err.orig) or state == DISK_FULL_STATE:
            raise DiskFull("No space left to store this.") from err
        if any(words in str(err.orig) for words in DAMAGED_WORDS):
            raise Damaged("The database is damaged.") from err
        if state == CANCELLED_STATE or str(err.orig) == "interrupted":
            raise DeadlineExceeded("The query took longer than the store allows.") from err
        is_away = isinstance(err, sa.exc.OperationalError | sa.exc.InterfaceError) or err.connection_invalidated
        if is_away or state == READ_ONLY_STATE:  # read-only: a standby after a failover
            raise EngineUnavailable("The store cannot be reached.", retry_after_s=1.0) from err
        raise
    except UnicodeDecodeError as err:  # in a message of SQLite's that repeats damaged text
        raise Damaged("The database is damaged.") from err
    except sa.exc.TimeoutError as err:
        raise EngineUnavailable("The store is busy.", retry_after_s=1.0) from err
    except OSError as err:
        if err.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull("No space left to store this.") from err
        raise
