"""`vermouth db`, `backup`, `restore` and `reembed`: maintenance of the state."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from app.cli.main import CommandError, progress, read_settings, refuse
from app.errors import EngineUnavailable
from app.settings import Settings
from app.stores.blobs import IMAGE_FOLDER, Blobs
from app.stores.index.base import IndexOptions
from app.stores.index.snapshots import INDEX_FOLDER, IndexSnapshots
from app.stores.maintenance.backup import BackupRefused, read_manifest, restore_backup, write_backup
from app.stores.maintenance.check import LOG_RETAINED_S, Maintenance
from app.stores.maintenance.reembed import roll_back
from app.stores.maintenance.repair import accept_rows
from app.stores.sql.database import SQLITE_FILE, Database, DataFolderLocked, attach_database, open_database, sql_errors
from app.stores.sql.engines import UnusableDatabase

if TYPE_CHECKING:
    from app.api.deps import Tasks
    from app.tasks.reembed import Reembedded

db_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Maintain the state. SQLite: stop the service first."
)
backup_app = typer.Typer(add_completion=False, help="Copy the state into a folder while the service runs.")
restore_app = typer.Typer(add_completion=False, help="Restore a backup into an empty state.")
reembed_app = typer.Typer(add_completion=False, help="Switch to another bundle, or back.")


@db_app.command("check")
def check(deep: Annotated[bool, typer.Option(help="Read every image too.")] = False) -> None:
    """Print every fault; exit 1 if there is one. Changes nothing."""
    with _maintenance(migrates=False) as maintenance:
        faults = maintenance.check(deep=deep)
    for line in faults:
        typer.echo(line)
    if faults:
        raise CommandError(f"The state has faults ({len(faults)}): docs/scale.md says how to repair each kind.")
    typer.echo("sound")


@db_app.command("rebuild")
def rebuild() -> None:
    """Delete the vector indexes and build them from SQL."""
    with _maintenance() as maintenance:
        typer.echo(f"{maintenance.rebuild()} vectors indexed")


@db_app.command("vacuum")
def vacuum(
    log_kept: Annotated[
        float, typer.Option(help="Minutes of the log to keep, for running exports and replicas that lag behind.")
    ] = LOG_RETAINED_S / 60,
) -> None:
    """Remove deleted items, old log entries, expired episodes and unreferenced images."""
    with _maintenance() as maintenance:
        done = maintenance.vacuum(log_retained_s=log_kept * 60)
    typer.echo(f"{done.items} items, {done.changes} changes, {done.episodes} episodes, {done.images} images removed")


@db_app.command("repair")
def repair(
    accept: Annotated[
        bool, typer.Option("--accept", help="Also take damaged rows, which `db check` names, as they are now.")
    ] = False,
) -> None:
    """Embed again, from the stored images, what has a damaged vector or none, with the bundle of the settings.

    On PostgreSQL the service may keep running: give this command a data folder of its own (VERMOUTH_DATA_DIR).
    """
    settings = read_settings()
    if accept:
        with _database(settings, is_exclusive=settings.database_url is None) as database:
            typer.echo(f"{accept_rows(database)} damaged rows taken as they are")
    with _refusing():
        _require_database(settings)
        typer.echo(f"{asyncio.run(_repair(settings))} entries embedded again")


@backup_app.command()
def backup(folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")]) -> None:
    """Copy rows and images; a running service keeps serving."""
    settings = read_settings()
    with _database(settings, is_exclusive=False) as database, _progress("images") as report:
        done = write_backup(database, _blobs(settings), folder, report)
    typer.echo(f"{done.items} items and {done.images} images as of change {done.seq} in {folder}")


@restore_app.command()
def restore(folder: Annotated[Path, typer.Argument(help="Folder of `vermouth backup`.", exists=True)]) -> None:
    """Restore into the data folder or database of the settings, which must be empty."""
    settings = read_settings()
    with _refusing():
        read_manifest(folder)  # before anything is opened: opening creates a database
    # Exclusive: a service on a half restored state would answer wrongly.
    with _database(settings, is_exclusive=True, must_exist=False) as database, _progress("images") as report:
        done = restore_backup(folder, database, _blobs(settings), report)
    typer.echo(f"{done.items} items and {done.images} images as of change {done.seq} restored")


@reembed_app.command()
def reembed(
    bundle: Annotated[Path | None, typer.Option(help="The bundle to switch to.")] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Switch back to the previous bundle.")] = False,
) -> None:
    """Embed galleries, episodes and class sets with the bundle of the settings, then switch to it at once.

    On SQLite the service must be stopped. On PostgreSQL it may keep serving the old bundle until the switch: give
    this command a data folder of its own (VERMOUTH_DATA_DIR), then start the service with the new bundle.
    """
    settings = read_settings(bundle=bundle)
    if rollback:
        with _database(settings, is_exclusive=settings.database_url is None) as database:
            typer.echo(f"active again: {roll_back(database)}")
        return
    with _refusing():
        _require_database(settings)
        done = asyncio.run(_reembed(settings))
    for gallery, share in done.overlap_at_10.items():
        typer.echo(f"overlap@10 {gallery}: {share:.3f}")
    typer.echo(f"{done.embedded} entries embedded by {done.job}")


async def _reembed(settings: Settings) -> "Reembedded":
    async with _tasks(settings) as tasks:
        with _progress("embedding") as report:
            return await tasks.reembed.run(report)


async def _repair(settings: Settings) -> int:
    async with _tasks(settings) as tasks:
        with _progress("embedding") as report:
            return await tasks.reembed.repair(report)


@asynccontextmanager
async def _tasks(settings: Settings) -> AsyncIterator["Tasks"]:
    from app.composition import build_services
    from app.main import create_app

    platform = create_app(settings).state.platform  # the server's own parts, without listening
    services = await asyncio.to_thread(build_services, settings, platform)  # loading blocks for seconds
    try:
        for start in services.on_start:
            await start()
        if services.tasks is None:
            raise EngineUnavailable("The stores are not open.")
        yield services.tasks
    finally:
        for stop in services.on_stop:
            await stop()
        await platform.images.stop()


@contextmanager
def _maintenance(*, migrates: bool = True) -> Iterator[Maintenance]:
    settings = read_settings()
    options = IndexOptions(
        kind=None if settings.index_kind == "auto" else settings.index_kind,
        flat_rows=settings.index_flat_rows,
        storage=settings.index_storage,
    )
    # SQLite's indexes belong to one process; PostgreSQL is shared.
    is_exclusive = settings.database_url is None
    with _database(settings, is_exclusive=is_exclusive, migrates=migrates and is_exclusive) as database:
        snapshots = IndexSnapshots(settings.data_dir / INDEX_FOLDER)
        yield Maintenance(database, _blobs(settings), snapshots, options=options)


@contextmanager
def _database(
    settings: Settings, *, is_exclusive: bool, migrates: bool | None = None, must_exist: bool = True
) -> Iterator[Database]:
    url = None if settings.database_url is None else settings.database_url.get_secret_value()
    with _refusing():
        if must_exist:
            _require_database(settings)  # before anything is opened: opening creates a database
        if is_exclusive if migrates is None else migrates:
            database = open_database(data_dir=settings.data_dir, url=url)
        else:
            database = attach_database(data_dir=settings.data_dir, url=url, is_exclusive=is_exclusive)
        try:
            yield database
        finally:
            database.close()


def _require_database(settings: Settings) -> None:
    if settings.database_url is None and not (settings.data_dir / SQLITE_FILE).is_file():
        raise UnusableDatabase(f"There is no database in {settings.data_dir}: set VERMOUTH_DATA_DIR to the service's.")


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        with sql_errors():
            yield
    except (DataFolderLocked, UnusableDatabase, BackupRefused) as err:
        refuse(str(err), err)


@contextmanager
def _progress(task_name: str) -> Iterator[Callable[[int, int], None]]:
    with progress(Console(stderr=True)) as bar:  # stdout is for results
        task = bar.add_task(task_name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _blobs(settings: Settings) -> Blobs:
    return Blobs(settings.blob_url or str(settings.data_dir / IMAGE_FOLDER))
