"""The SQL database: one writer, short readers, all off the event loop in a bounded pool."""

import asyncio
import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from app.errors import DiskFull, EngineUnavailable, QueueFull

MIN_SQLITE = (3, 51, 3)
MAX_PENDING = 512
MIGRATION_LOCK = 0x7665726D

P = ParamSpec("P")
T = TypeVar("T")


class DataFolderLocked(RuntimeError):
    """Another process serves this data folder."""


class Database:
    """Connections, transactions and the pool that runs them.

    Attributes:
        write_lock: held by every writer from its first file to its last derived value, so that
            blobs, rows and the index change in the order of `seq`.
    """

    def __init__(self, engine: sa.Engine, pool: ThreadPoolExecutor, lock_file: IO[str] | None) -> None:
        self.engine = engine
        self.write_lock = threading.RLock()
        self._pool = pool
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._lock_file = lock_file
        self._pending = 0

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent snapshot to read from."""
        with _sql_errors(), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction of the only writer; committed and on disk when the block ends.

        Raises:
            DiskFull: no space for the transaction.
        """
        with self.write_lock, _sql_errors(), self.engine.connect() as connection:
            writer = connection.execution_options(vermouth_writes=True)
            with writer.begin():
                yield writer

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking reads in the pool.

        Raises:
            QueueFull: too many calls wait for the store already.
        """
        return await self._run(self._pool, lambda: function(*args, **kwargs))

    async def run_write(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking writes in their own thread, so that reads never queue behind them. Raises as `run`."""
        return await self._run(self._writer, lambda: function(*args, **kwargs))

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        if self._pending >= MAX_PENDING:
            raise QueueFull("The store has too many requests waiting.", retry_after_s=1.0)
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        finally:
            self._pending -= 1

    def is_reachable(self) -> bool:
        """Whether a trivial query is answered (for `/readyz`)."""
        try:
            with self.engine.connect() as connection:
                connection.execute(sa.text("SELECT 1"))
        except sa.exc.SQLAlchemyError:
            return False
        return True

    def close(self) -> None:
        """Finish what runs, close the connections and let go of the data folder."""
        self._writer.shutdown(wait=True)
        self._pool.shutdown(wait=True)
        self.engine.dispose()
        if self._lock_file is not None:
            self._lock_file.close()


def open_database(*, data_dir: Path, url: str | None = None, threads: int = 4) -> Database:
    """Lock the data folder, open the database in it (or at `url`) and migrate it.

    Args:
        data_dir: the state's folder, made when absent.
        url: an SQLAlchemy URL; None for SQLite in `data_dir`.
        threads: size of the pool that runs SQL.

    Raises:
        DataFolderLocked: another process holds the folder.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    lock_file = _lock_folder(data_dir)
    try:
        engine = _sqlite_engine(data_dir / "vermouth.sqlite3") if url is None else sa.create_engine(url)
        _migrate(engine)
    except BaseException:
        lock_file.close()
        raise
    return Database(engine, ThreadPoolExecutor(threads, thread_name_prefix="store"), lock_file)


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


def _sqlite_engine(path: Path) -> sa.Engine:
    module = _sqlite_module()
    engine = sa.create_engine(f"sqlite+pysqlite:///{path}", module=module, connect_args={"timeout": 30})

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


def _migrate(engine: sa.Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("version_path_separator", "os")
    with engine.connect() as connection:
        writer = connection.execution_options(vermouth_writes=True)
        with writer.begin():
            if engine.dialect.name == "postgresql":
                writer.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            config.attributes["connection"] = writer
            command.upgrade(config, "head")


@contextlib.contextmanager
def _sql_errors() -> Iterator[None]:
    try:
        yield
    except sa.exc.OperationalError as err:
        if "full" in str(err.orig):
            raise DiskFull("No space left to store this.") from err
        raise EngineUnavailable("The store cannot be reached.", retry_after_s=1.0) from err
    except OSError as err:
        if err.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull("No space left to store this.") from err
        raise
