"""Opens SQLite and PostgreSQL, and migrates them to the present schema."""

import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.stores.sql.checksums import checksum_of_row

MIN_SQLITE = (3, 51, 3)  # older ones may corrupt a database in WAL mode
MIGRATION_LOCK = 0x7665726D  # "verm"
READ_LIMIT_S = 30.0  # longest a read of a request may take, so that no query occupies a thread of the pool for ever


class UnusableDatabase(RuntimeError):
    """The database cannot be used; the message does not repeat its URL, which holds a password."""


def sqlite_engine(path: Path, *, as_it_is: bool = False) -> sa.Engine:
    """Return an engine over an SQLite file: WAL, every commit on disk, foreign keys checked.

    Args:
        as_it_is: leave a file that is not in WAL mode so, as reading alone must change nothing.

    Raises:
        RuntimeError: the only SQLite installed has the WAL-reset bug.
    """
    engine = sa.create_engine(
        f"sqlite+pysqlite:///{path}",
        module=_sqlite_module(),
        connect_args={"timeout": 30},
        json_serializer=_json,
        hide_parameters=True,  # errors are logged; metadata and vectors are not
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.create_function("checksum_of_row", -1, checksum_of_row, deterministic=True)
        connection.isolation_level = None  # the driver opens no transaction of its own: `begin` says which kind
        pragmas = ("synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000")
        for pragma in pragmas if as_it_is else ("journal_mode=WAL", *pragmas):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("vermouth_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def postgres_engine(url: str, threads: int) -> sa.Engine:
    """Return an engine over a PostgreSQL database.

    Raises:
        UnusableDatabase: the URL is no PostgreSQL URL, or no server answers there.
    """
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as err:
        raise UnusableDatabase("The database URL cannot be parsed.") from err
    if parsed.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise UnusableDatabase("The database URL must begin with postgresql://.")
    try:
        engine = sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=threads + 4,  # writer, background, follower, builder
            pool_pre_ping=True,  # a connection that the server closed is replaced
            json_serializer=_json,
            hide_parameters=True,
            connect_args={
                "connect_timeout": 10,
                # A hanging writer or a cut connection must not block the others for ever.
                "options": "-c lock_timeout=30000 -c idle_in_transaction_session_timeout=60000"
                f" -c statement_timeout={int(READ_LIMIT_S * 1000)}",
            },
        )
        with engine.connect() as connection:
            encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    except ImportError as err:
        raise UnusableDatabase("PostgreSQL needs psycopg: pip install 'vermouth-perception[postgres]'.") from err
    except sa.exc.OperationalError as err:
        advice = "start it, or correct VERMOUTH_DATABASE_URL"
        raise UnusableDatabase(f"No PostgreSQL answers at the database URL: {advice}.") from err
    if encoding != "UTF8":
        raise UnusableDatabase("The PostgreSQL database must be encoded in UTF8.")
    return engine


def probe_engine(url: str | sa.URL) -> sa.Engine:
    """Return an engine over a PostgreSQL database that gives up soon and holds no connections."""
    return sa.create_engine(
        sa.make_url(url).set(drivername="postgresql+psycopg"),
        poolclass=sa.NullPool,
        hide_parameters=True,
        # The system gives up what is not acknowledged: else a thread would wait a quarter of an hour for a lost host.
        connect_args={"connect_timeout": 2, "tcp_user_timeout": 2000, "options": "-c statement_timeout=1000"},
    )


def migrate(engine: sa.Engine, to: str = "head") -> None:
    """Upgrade a database to a schema revision, one process at a time, in one transaction."""
    config = _config()
    with engine.connect() as connection:
        writer = connection.execution_options(vermouth_writes=True)
        with writer.begin():
            if engine.dialect.name == "postgresql":
                limit_statements(writer, None)
                writer.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            config.attributes["connection"] = writer
            command.upgrade(config, to)


def require_present_schema(engine: sa.Engine) -> None:
    """Check that a database has this release's schema.

    Raises:
        UnusableDatabase: it has another one; the message says which.
    """
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory.from_config(_config())
    present = scripts.get_current_head()
    if found is None:
        raise UnusableDatabase("The database holds no schema of this service.")
    if found not in {script.revision for script in scripts.walk_revisions()}:
        raise UnusableDatabase(f"The database has schema {found} of a newer release; this release knows {present}.")
    if found != present:
        raise UnusableDatabase(
            f"The database has schema {found} of an older release, this release has {present}: start the service of"
            " this release once to migrate it."
        )


def limit_statements(connection: sa.Connection, limit_s: float | None) -> None:
    """Limit how long a statement of this PostgreSQL transaction may take; None removes the limit."""
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {int((limit_s or 0) * 1000)}")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)  # not escaped: keys are compared as text


def _sqlite_module() -> Any:
    """Return an SQLite driver without the WAL-reset bug: pysqlite3, or Python's own where new enough."""
    try:
        import pysqlite3 as module
    except ImportError:
        import sqlite3 as module
    if module.sqlite_version_info < MIN_SQLITE:
        wanted = ".".join(map(str, MIN_SQLITE))
        raise RuntimeError(f"SQLite {module.sqlite_version} has a WAL bug; {wanted} or newer is needed.")
    return module


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("version_path_separator", "os")
    return config
