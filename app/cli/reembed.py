"""`vermouth reembed`: go over to another bundle, or back."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.read_settings import read_settings
from app.cli.state import require_database
from app.errors import EngineUnavailable, ServiceError
from app.settings import Settings
from app.stores.maintenance.reembed import roll_back
from app.stores.sql.database import DataFolderLocked, attach_database, open_database
from app.stores.sql.engines import UnusableDatabase
from app.tasks.reembed import Reembedded

reembed_app = typer.Typer(add_completion=False, help="Go over to another bundle, or back.")


@reembed_app.command()
def reembed(
    bundle: Annotated[Path | None, typer.Option(help="The bundle to go over to.")] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Back to the bundle before.")] = False,
) -> None:
    """Embed galleries, episodes and class sets with the bundle of the settings, then switch to it at once.

    On SQLite the service must be stopped. On PostgreSQL it may go on with the old bundle until the switch: give
    this command a data folder of its own (VERMOUTH_DATA_DIR), then start the service with the new bundle.
    """
    console = Console(stderr=True)
    settings = read_settings(bundle=bundle)
    try:
        require_database(settings)
        if rollback:
            typer.echo(f"active again: {_roll_back(settings)}")
            return
        done = asyncio.run(_run(settings, console))
    except (ServiceError, DataFolderLocked, UnusableDatabase) as err:
        console.print(f"error: {err}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from err
    for gallery, share in done.overlap_at_10.items():
        typer.echo(f"overlap@10 {gallery}: {share:.3f}")
    typer.echo(f"{done.embedded} entries embedded by {done.job}")


async def _run(settings: Settings, console: Console) -> Reembedded:
    from app.composition import build_services
    from app.main import create_app

    platform = create_app(settings).state.platform
    services = await asyncio.to_thread(build_services, settings, platform)
    try:
        for start in services.on_start:
            await start()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("embedding", total=None)
            tasks = services.tasks
            if tasks is None:
                raise EngineUnavailable("The stores are not open.")
            return await tasks.reembed.run(lambda done, total: bar.update(task, completed=done, total=total))
    finally:
        for stop in services.on_stop:
            await stop()
        platform.images.stop()


def _roll_back(settings: Settings) -> str:
    url = None if settings.database_url is None else settings.database_url.get_secret_value()
    # A service on SQLite does not look for others' writes: it must not run.
    open_or_attach = open_database if url is None else attach_database
    database = open_or_attach(data_dir=settings.data_dir, url=url)
    try:
        return roll_back(database)
    finally:
        database.close()
