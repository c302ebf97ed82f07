"""`vermouth gallery`: fills galleries over the service's own API."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.cli.demo import curl_line, demo_images, fill
from app.cli.importing import import_images, read_source
from app.cli.main import progress
from app.cli.service_calls import open_client, wait_until_ready

gallery_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fill galleries of a running service.")

MAX_BATCH = 64
_Url = Annotated[str, typer.Option(help="URL of the service.")]
_Gallery = Annotated[str, typer.Option(help="Gallery to fill; created if it does not exist.")]
_Batch = Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Images per request.")]
_WaitS = Annotated[float, typer.Option(min=0, help="Longest wait for the service to be ready.")]
_ApiKey = Annotated[str | None, typer.Option(envvar="VERMOUTH_API_KEY", help="Key with the scope write.")]


@gallery_app.command("demo")
def demo_command(
    url: _Url = "http://127.0.0.1:8000",
    gallery: _Gallery = "default",
    batch: _Batch = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of images.")] = None,
    wait_s: _WaitS = 600.0,
    api_key: _ApiKey = None,
) -> None:
    """Add OpenMoji's images, skip those already added, and print a curl command to try."""
    console = Console(stderr=True)
    with open_client(url, api_key) as client:
        wait_until_ready(client, wait_s)  # containers start together: the service may not listen yet
        added, rejected = fill(client, gallery, demo_images()[:limit], batch, console)
    for line in rejected:  # not an error: the other images can be searched
        console.print(f"rejected {line}", style="yellow", markup=False)
    console.print(f"{added} images added to the gallery {gallery!r}. Draw a house and search:", markup=False)
    typer.echo(curl_line(url, gallery, needs_key=api_key is not None))


@gallery_app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(help="A folder, .zip, .csv (column path) or webdataset .tar.", exists=True)],
    url: _Url = "http://127.0.0.1:8000",
    gallery: _Gallery = "default",
    batch: _Batch = 32,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Concurrent requests.")] = 2,
    wait_s: _WaitS = 600.0,
    api_key: _ApiKey = None,
) -> None:
    """Add images and skip those whose ids exist, so that a second run continues the first.

    Exit 1 if an image is rejected; a line names the reason for each.
    """
    with open_client(url, api_key) as client, progress(Console(stderr=True)) as bar:
        wait_until_ready(client, wait_s, is_started=True)  # a wrong URL fails at once, not after `wait_s`
        done = import_images(client, gallery, read_source(source), batch=batch, workers=workers, bar=bar)
    for line in done.rejected:
        typer.echo(f"rejected {line}")
    typer.echo(f"{done.added} added, {done.skipped} there already, {len(done.rejected)} rejected")
    if done.rejected:
        raise typer.Exit(1)
