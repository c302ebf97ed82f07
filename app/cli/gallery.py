"""`vermouth gallery`: galleries of a running service; `demo` fills one from the installed packages."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from app.cli.importing.adding import Imported, check_images, existing_ids, import_images
from app.cli.importing.files import Importable, SourceOptions, UnreadableFile
from app.cli.importing.sources import find_sources, read_sources
from app.cli.main import CommandError, progress
from app.cli.output import AsCsv, AsJson, Rows, print_record
from app.cli.service import DEFAULT_URL, Key, Url, connect
from app.domain import HOUSE, Limits
from app.errors import ServiceError
from app.imaging.demo import DemoImage, demo_images
from vermouth_client import Client, NewItem
from vermouth_client.errors import NotFound

gallery_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Galleries of a running service.")

MAX_BATCH = 64
_TIMEOUT_S = 300.0  # of a batch: a large bundle takes seconds an image
_Gallery = Annotated[str, typer.Option(help="Gallery to fill; created if it does not exist.")]
_Name = Annotated[str, typer.Argument(help="Name of the gallery.")]
_Batch = Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Images per request.")]
_WaitS = Annotated[float, typer.Option(min=0, help="Longest wait while the service starts, restarts or is busy.")]
_MAX_CAPTION_LETTERS = 1000  # as the API's
_GALLERY = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")  # as the API's


@gallery_app.command("demo")
def demo_command(
    url: Url = DEFAULT_URL,
    gallery: _Gallery = "default",
    batch: _Batch = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of images.")] = None,
    wait_s: _WaitS = 600.0,
    key: Key = None,
) -> None:
    """Add OpenMoji's images and five photographs, skip those already added, and print a curl command to try."""
    _check_name(gallery)
    console = Console(stderr=True)
    # Containers start together: the service may not listen yet.
    with connect(url, key, timeout_s=_TIMEOUT_S, retry_s=wait_s, is_started=False) as client, progress(console) as bar:
        added, rejected = fill(client, gallery, demo_images()[:limit], batch, bar)
    for line in rejected:  # not an error: the other images can be searched
        console.print(f"rejected {line}", style="yellow", markup=False)
    console.print(f"{added} images added to the gallery {gallery!r}. Draw a house and search:", markup=False)
    typer.echo(curl_line(url, gallery, needs_key=key is not None))


@gallery_app.command("import")
def import_command(
    sources: Annotated[
        list[str],
        typer.Argument(help="Folders, .zip, .csv (column path), .ndjson or webdataset .tar; {000..003} for shards."),
    ],
    url: Url = DEFAULT_URL,
    gallery: _Gallery = "default",
    text: Annotated[list[str] | None, typer.Option(help="Column of a table to keep as text; repeatable.")] = None,
    zip_names: Annotated[str, typer.Option(help="Encoding of names in a ZIP that do not say theirs.")] = "utf-8",
    prefix: Annotated[str, typer.Option(help="Begins every id, so that shards with equal names stay apart.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check everything, send nothing.")] = False,
    batch: _Batch = 32,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Concurrent requests.")] = 2,
    wait_s: _WaitS = 600.0,
    key: Key = None,
) -> None:
    """Add images and skip those whose ids exist, so that a second run continues the first.

    Prints what became of every file. Exit codes: 0 nothing was rejected, 1 an image was rejected or the import could
    not go on, 2 a wrong option, 130 Ctrl-C.
    """
    _check_name(gallery)
    _check_encoding(zip_names)
    found, done = find_sources(sources), Imported()
    options = SourceOptions(prefix=prefix, text=tuple(text or ()), zip_names=zip_names, note=typer.echo)
    if dry_run:
        check_images(read_sources(found, options), done, _fault)
        _report(done, "would be added")
    else:
        try:
            # A wrong URL fails at once, not after `wait_s`.
            with (
                connect(url, key, timeout_s=_TIMEOUT_S, retry_s=wait_s) as client,
                progress(Console(stderr=True)) as bar,
            ):
                images = read_sources(found, replace(options, fetch=partial(_fetch, client)))
                import_images(client, gallery, images, batch=batch, workers=workers, bar=bar, done=done)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted: the same command continues from here") from None
        finally:
            if done.found or done.is_complete:
                _report(done, "added")
    if done.rejected:
        count = f"{len(done.rejected)} of {done.found} items were rejected"
        raise CommandError(f"{count}: correct those that the report names, and repeat the command.")


def _check_name(gallery: str) -> None:
    if not _GALLERY.fullmatch(gallery):
        raise CommandError(
            f"{gallery!r} is no name of a gallery: use up to 64 of a-z, 0-9, - and _, and begin with a letter or digit."
        )


def _check_encoding(name: str) -> None:
    try:
        b"a".decode(name)  # of an empty text the encoding is not looked up
    except (LookupError, UnicodeError) as err:
        raise typer.BadParameter(f"{name!r} is no encoding of text: try cp932, gbk, big5 or cp949.") from err


@gallery_app.command("list")
def list_command(as_json: AsJson = False, as_csv: AsCsv = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """List the galleries."""
    with Rows(as_json=as_json, as_csv=as_csv) as rows, connect(url, key) as client:
        for one in client.galleries().galleries:
            rows.add({"name": one.name, "items": one.count, "description": one.description})


@gallery_app.command("show")
def show_command(name: _Name, as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show a gallery and its index."""
    with connect(url, key) as client:
        print_record(client.gallery(name).model_dump(), as_json=as_json)


@gallery_app.command("export")
def export_command(
    name: _Name,
    file: Annotated[Path, typer.Argument(help="A .tar with images, or .ndjson with vectors.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Write all items to a file, complete or not at all; `gallery import` takes both."""
    if file.suffix not in (".tar", ".ndjson"):
        raise typer.BadParameter(f"{file} must end in .tar (images) or .ndjson (vectors).")
    if not file.parent.is_dir():
        raise CommandError(f"There is no folder {file.parent}: create it, or name another file.")
    with connect(url, key) as client, Console(stderr=True).status(f"exporting {client.gallery(name).count} items"):
        client.export(name, file, format="webdataset" if file.suffix == ".tar" else "ndjson")


@gallery_app.command("delete")
def delete_command(
    name: _Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Delete a gallery with its items, after a question."""
    with connect(url, key) as client:
        count = client.gallery(name).count
        if count and not yes:
            if not sys.stdin.isatty():
                raise CommandError(f"{name} holds {count} items: pass --yes to delete them.")
            if not typer.confirm(f"Delete {name} with its {count} items?"):
                raise CommandError("Nothing was deleted.")
        client.delete_gallery(name, with_items=True)


def fill(client: Client, gallery: str, images: Sequence[DemoImage], batch: int, bar: Progress) -> tuple[int, list[str]]:
    """Adds the images whose ids the gallery lacks; returns how many, and a line for each rejected one."""
    known = existing_ids(client, gallery)
    missing = [image for image in images if image.id not in known]  # only these are rendered
    there = len(images) - len(missing)
    task = bar.add_task(f"filling {gallery}", total=len(images), completed=there)
    report = client.import_items(
        gallery,
        (NewItem(image.render(), image.id, image.metadata) for image in missing),
        batch=batch,
        concurrency=1,  # in order, so that the examples of the README find their images first
        on_progress=lambda report: bar.update(task, completed=there + report.added + len(report.rejected)),
    )
    return report.added, [f"{one.id}: {one.detail}" for one in report.rejected]


def curl_line(url: str, gallery: str, *, needs_key: bool = False) -> str:
    """Returns a shell command that searches for a drawn house."""
    key = ' -H "X-API-Key: $VERMOUTH_API_KEY"' if needs_key else ""
    body = json.dumps({"sketch": HOUSE, "gallery": gallery, "k": 10}, separators=(",", ":"))
    return f"curl -s {url.rstrip('/')}/retrieve{key} -H 'Content-Type: application/json' -d '{body}'"


def _report(done: Imported, added: str) -> None:
    for line in done.others:
        typer.echo(f"skipped {line}")
    for line in done.rejected:
        typer.echo(f"rejected {line}")
    typer.echo(done.table(added))


def _fetch(client: Client, gallery: str, item: str) -> bytes:
    """Returns the image of an item, for lines of an export."""
    try:
        return client.item_image(gallery, item)
    except NotFound as err:
        raise UnreadableFile(f"/galleries/{gallery}/items/{item}/image: {err.detail}") from err


def _fault(one: Importable) -> str | None:
    """Returns why the service would refuse metadata or a caption at its default limits, or None."""
    from app.api.strict_json import check_metadata  # here: help must not import the server

    if len(one.caption or "") > _MAX_CAPTION_LETTERS:
        return f"its caption has over {_MAX_CAPTION_LETTERS} letters"
    try:
        check_metadata(one.metadata, "metadata", Limits())
        check_metadata({"caption": one.caption}, "caption", Limits())
    except ServiceError as err:
        return err.detail
    return None
