"""`vermouth gallery`: fill galleries over the service's own API."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.openmoji import DemoPicture, demo_pictures
from app.cli.service_calls import ServiceRefused, existing_ids, open_client, send, wait_until_ready

gallery_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fill galleries of a running service.")

HOUSE = {
    "strokes": [
        [[40, 40, 210, 210, 40], [120, 230, 230, 120, 120]],
        [[25, 125, 225], [120, 30, 120]],
        [[105, 105, 145, 145], [230, 170, 170, 230]],
    ],
    "width": 256,
    "height": 256,
}
MAX_BATCH = 64


@gallery_app.command("demo")
def demo_command(
    url: Annotated[str, typer.Option(help="Where the service answers.")] = "http://127.0.0.1:8000",
    gallery: Annotated[str, typer.Option(help="Gallery to fill; made when absent.")] = "default",
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Pictures a request.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Most pictures in all.")] = None,
    wait_s: Annotated[float, typer.Option(min=0, help="How long to wait for the service to be ready.")] = 600.0,
    api_key: Annotated[str | None, typer.Option(envvar="VERMOUTH_API_KEY", help="Key with the scope write.")] = None,
) -> None:
    """Add OpenMoji's pictures, go on where an earlier run stopped, and end with a curl line that works."""
    console = Console(stderr=True)
    try:
        with open_client(url, api_key) as client:
            wait_until_ready(client, wait_s)
            added, rejected = fill(client, gallery, demo_pictures()[:limit], batch, console)
    except (ServiceRefused, httpx.HTTPError) as err:
        console.print(f"error: {err}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from err
    for line in rejected:
        console.print(f"rejected {line}", style="yellow", markup=False)
    console.print(f"{added} pictures added to the gallery {gallery!r}. Draw a house and search:", markup=False)
    typer.echo(curl_line(url, gallery, needs_key=api_key is not None))


@gallery_app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(help="A folder, .zip, .csv (column path) or webdataset .tar.", exists=True)],
    url: Annotated[str, typer.Option(help="Where the service answers.")] = "http://127.0.0.1:8000",
    gallery: Annotated[str, typer.Option(help="Gallery to fill; made when absent.")] = "default",
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Pictures a request.")] = 32,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Requests at once.")] = 2,
    wait_s: Annotated[
        float, typer.Option(min=0, help="How long to wait for a service that listens and still loads.")
    ] = 600.0,
    api_key: Annotated[str | None, typer.Option(envvar="VERMOUTH_API_KEY", help="Key with the scope write.")] = None,
) -> None:
    """Add pictures; those whose ids are there already are left alone, so that a second run goes on.

    Exit 1 when a picture is rejected; each has a line that says why.
    """
    from app.cli.import_sources import UnreadableSource, read_source
    from app.cli.importing import import_pictures

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    try:
        with (
            open_client(url, api_key) as client,
            Progress(*columns, console=console) as bar,
        ):
            wait_until_ready(client, wait_s, is_started=True)
            done = import_pictures(client, gallery, read_source(source), batch=batch, workers=workers, bar=bar)
    except (ServiceRefused, UnreadableSource, httpx.HTTPError) as err:
        console.print(f"error: {err}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from err
    for line in done.rejected:
        typer.echo(f"rejected {line}")
    typer.echo(f"{done.added} added, {done.skipped} there already, {len(done.rejected)} rejected")
    if done.rejected:
        raise typer.Exit(1)


def curl_line(url: str, gallery: str, *, needs_key: bool = False) -> str:
    """A search for a drawn house, to paste into a shell."""
    key = ' -H "X-API-Key: $VERMOUTH_API_KEY"' if needs_key else ""
    body = json.dumps({"sketch": HOUSE, "gallery": gallery, "k": 10}, separators=(",", ":"))
    return f"curl -s {url.rstrip('/')}/retrieve{key} -H 'Content-Type: application/json' -d '{body}'"


def fill(
    client: httpx.Client, gallery: str, pictures: Sequence[DemoPicture], batch: int, console: Console
) -> tuple[int, list[str]]:
    """Add the pictures whose ids the gallery lacks.

    Returns:
        How many were added, and a line for each rejected one.

    Raises:
        ServiceRefused: a request failed for good.
    """
    known = existing_ids(client, gallery)
    missing = [picture for picture in pictures if picture.id not in known]
    added, rejected = 0, list[str]()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"filling {gallery}", total=len(pictures), completed=len(pictures) - len(missing))
        for start in range(0, len(missing), batch):
            part = missing[start : start + batch]
            for result in _add(client, gallery, part):
                if result["status"] == "rejected":
                    rejected.append(f"{result['id']}: {result['problem']['detail']}")
                else:
                    added += 1
            bar.update(task, advance=len(part))
    return added, rejected


def _add(client: httpx.Client, gallery: str, part: Sequence[DemoPicture]) -> list[dict[str, Any]]:
    files = [("image", (f"{picture.id}.png", picture.render(), "image/png")) for picture in part]
    items = [{"id": picture.id, "metadata": {"name": picture.name, "hexcode": picture.hexcode}} for picture in part]
    answer = send(client, "POST", f"/galleries/{gallery}/items", files=files, data={"items": json.dumps(items)})
    results: list[dict[str, Any]] = answer.json()["results"]
    return results
