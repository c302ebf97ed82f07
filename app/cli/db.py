"""`vermouth db`, `vermouth backup`, `vermouth restore`: looking after the state."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from app.cli.read_settings import read_settings
from app.cli.state import require_database
from app.errors import ServiceError
from app.settings import Settings
from app.stores.blobs import Blobs
from app.stores.index.base import IndexOptions
from app.stores.index.snapshots import IndexSnapshots
from app.stores.maintenance.backup import BackupRefused, restore_backup, write_backup
from app.stores.maintenance.check import LOG_KEPT_S, Maintenance
from app.stores.sql.database import Database, DataFolderLocked, attach_database, open_database, sql_errors
from app.stores.sql.engines import UnusableDatabase
from app.tasks.assemble import BLOBS, INDEXES

db_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Look after the state. SQLite: stop the service first."
)
backup_app = typer.Typer(add_completion=False, help="Copy the state into a folder, while the service runs.")
restore_app = typer.Typer(add_completion=False, help="Bring a copy into an empty state.")
_console = Console(stderr=True)


@db_app.command("check")
def check(deep: Annotated[bool, typer.Option(help="Read every picture too.")] = False) -> None:
    """Tell every fault; exit 1 where there is one."""
    with _upkeep() as upkeep:
        found = upkeep.check(deep=deep)
    for line in found:
        typer.echo(line)
    if found:
        raise typer.Exit(1)
    typer.echo("sound")


@db_app.command("rebuild")
def rebuild() -> None:
    """Throw the vector indexes away and make them from SQL."""
    with _upkeep() as upkeep:
        typer.echo(f"{upkeep.rebuild()} vectors indexed")


@db_app.command("vacuum")
def vacuum(
    log_kept: Annotated[
        float, typer.Option(help="Minutes of the log that stay, for exports that run and replicas that are behind.")
    ] = LOG_KEPT_S / 60,
) -> None:
    """Throw away deleted items' rows, the log behind them, expired episodes and pictures nobody names."""
    with _upkeep() as upkeep:
        done = upkeep.vacuum(log_kept_s=log_kept * 60)
    typer.echo(
        f"{done.items} items, {done.changes} changes, {done.episodes} episodes, {done.pictures} pictures removed"
    )


@backup_app.command()
def backup(folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")]) -> None:
    """Copy rows and pictures; a service that runs goes on."""
    settings = read_settings()
    with _told(), _attached(settings) as database, Progress(console=_console) as bar:
        task = bar.add_task("pictures", total=None)
        done = write_backup(
            database,
            _blobs(settings),
            folder,
            lambda count, total: bar.update(task, completed=count, total=total),
        )
    typer.echo(f"{done.items} items and {done.pictures} pictures as of change {done.seq} in {folder}")


@restore_app.command()
def restore(folder: Annotated[Path, typer.Argument(help="What `vermouth backup` wrote.", exists=True)]) -> None:
    """Into the data folder or the database of the settings, which must be empty."""
    settings = read_settings()
    with _told(), _opened(settings) as database, Progress(console=_console) as bar:
        task = bar.add_task("pictures", total=None)
        done = restore_backup(
            folder,
            database,
            _blobs(settings),
            lambda count, total: bar.update(task, completed=count, total=total),
        )
    typer.echo(f"{done.items} items and {done.pictures} pictures as of change {done.seq} restored")


@contextmanager
def _upkeep() -> Iterator[Maintenance]:
    settings = read_settings()
    options = IndexOptions(
        kind=None if settings.index_kind == "auto" else settings.index_kind,
        flat_rows=settings.index_flat_rows,
        storage=settings.index_storage,
    )
    # PostgreSQL is shared as it is; SQLite's indexes belong to one process.
    opened = _attached(settings) if settings.database_url is not None else _opened(settings)
    with _told():
        require_database(settings)
        with opened as database:
            snapshots = IndexSnapshots(settings.data_dir / INDEXES)
            yield Maintenance(database, _blobs(settings), snapshots, options=options)


@contextmanager
def _opened(settings: Settings) -> Iterator[Database]:
    database = open_database(data_dir=settings.data_dir, url=_url(settings))
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _attached(settings: Settings) -> Iterator[Database]:
    database = attach_database(data_dir=settings.data_dir, url=_url(settings))
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _told() -> Iterator[None]:
    """What an operator can mend is a line, not a traceback."""
    try:
        with sql_errors():
            yield
    except (DataFolderLocked, UnusableDatabase, BackupRefused, ServiceError) as err:
        _console.print(f"error: {err}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from err


def _blobs(settings: Settings) -> Blobs:
    return Blobs(settings.blob_url or str(settings.data_dir / BLOBS))


def _url(settings: Settings) -> str | None:
    return None if settings.database_url is None else settings.database_url.get_secret_value()
