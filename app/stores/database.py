"""The SQL database: one writer, short readers, all off the event loop in a bounded pool."""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.errors import Damaged, DeadlineExceeded, DiskFull, EngineUnavailable, QueueFull
from app.stores.tables import counters
from app.telemetry import get_logger

MIN_SQLITE = (3, 51, 3)
SQLITE_FILE = "vermouth.sqlite3"
MAX_PENDING = 512
MAX_LATER = 1024
MIGRATION_LOCK = 0x7665726D
DISK_FULL_STATE = "53100"
READ_ONLY_STATE = "25006"
CANCELLED_STATE = "57014"
READ_LIMIT_S = 30.0
"""Longest a read of a request may take, so that no query holds a thread of the pool for ever."""
STEPS_A_LOOK = 10_000
"""How many of SQLite's steps, about a millisecond, go by between looks at the clock."""

P = ParamSpec("P")
T = TypeVar("T")


class DataFolderLocked(RuntimeError):
    """Another process serves this data folder."""


class UnusableDatabase(RuntimeError):
    """The database's URL cannot be used; the message does not repeat it, for it holds a password."""


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
            with writer.begin():
                if self.is_shared:
                    limit_statements(writer, None)
                    writer.execute(sa.select(counters.c.value).where(counters.c.name == "seq").with_for_update())
                yield writer

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
        engine = sqlite_engine(data_dir / SQLITE_FILE) if url is None else _postgres_engine(url, threads)
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
    engine = sqlite_engine(path) if url is None else _postgres_engine(url, 1)
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found != _script().get_current_head():
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


def sqlite_engine(path: Path) -> sa.Engine:
    """An engine over an SQLite file: WAL, every commit on disk, foreign keys checked.

    Raises:
        RuntimeError: the only SQLite at hand has the WAL-reset bug.
    """
    module = _sqlite_module()
    engine = sa.create_engine(
        f"sqlite+pysqlite:///{path}",
        module=module,
        connect_args={"timeout": 30},
        json_serializer=_json,
        # Metadata and vectors do not belong in the log beside an error.
        hide_parameters=True,
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # The driver opens no transaction of its own: `begin` below says which kind.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("vermouth_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgres_engine(url: str, threads: int) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as err:
        raise UnusableDatabase("The database URL cannot be read.") from err
    if parsed.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise UnusableDatabase("The database URL must begin with postgresql://.")
    try:
        engine = sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=threads + 4,
            pool_pre_ping=True,
            json_serializer=_json,
            hide_parameters=True,
            connect_args={
                "connect_timeout": 10,
                # A writer that hangs or a connection that was cut must not hold the others up for ever.
                "options": "-c lock_timeout=30000 -c idle_in_transaction_session_timeout=60000"
                f" -c statement_timeout={int(READ_LIMIT_S * 1000)}",
            },
        )
        with engine.connect() as connection:
            encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    except ImportError as err:
        raise UnusableDatabase("PostgreSQL needs the extra `postgres` (psycopg).") from err
    except sa.exc.OperationalError as err:
        raise UnusableDatabase("No PostgreSQL answers at the database URL.") from err
    if encoding != "UTF8":
        raise UnusableDatabase("The PostgreSQL database must be encoded in UTF8.")
    return engine


def _json(value: object) -> str:
    # As it is, not escaped: keys are compared as text.
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _sqlite_module() -> Any:
    """The SQLite driver without the WAL-reset bug: pysqlite3's, or Python's own where new enough."""
    try:
        import pysqlite3 as module
    except ImportError:
        import sqlite3 as module
    if module.sqlite_version_info < MIN_SQLITE:
        wanted = ".".join(map(str, MIN_SQLITE))
        raise RuntimeError(f"SQLite {module.sqlite_version} has a WAL bug; {wanted} or newer is needed.")
    return module


def migrate(engine: sa.Engine, to: str = "head") -> None:
    """Bring a database to the present schema, one process at a time; all of it or nothing."""
    config = _config()
    with engine.connect() as connection:
        writer = connection.execution_options(vermouth_writes=True)
        with writer.begin():
            if engine.dialect.name == "postgresql":
                limit_statements(writer, None)
                writer.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            config.attributes["connection"] = writer
            command.upgrade(config, to)


def limit_statements(connection: sa.Connection, limit_s: float | None) -> None:
    """On PostgreSQL: the longest a statement of this transaction may take; None for any time."""
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {int((limit_s or 0) * 1000)}")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("version_path_separator", "os")
    return config


def _script() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


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
