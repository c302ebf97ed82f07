"""Pictures in rows, masks over pictures, legends: what documents show of answers."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MAX_FILE_BYTES = 150_000

_CELL = 104
LINE = 15
"""Height of a line of text, px."""
_GAP = 8
_COLOURS = np.array(
    [
        *((255, 255, 255), (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)),
        *((140, 86, 75), (227, 119, 194), (188, 189, 34), (23, 190, 207), (0, 0, 0)),
    ],
    np.uint8,
)
"""[11, 3]: for no name and for up to ten, none of them the grey of the background."""
INK, _MUTED, RIGHT, WRONG = "#202020", "#707070", "#1a7f37", "#c62828"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A picture and lines of text below it: `colour` of the first line, grey for the rest."""

    image: Image.Image | None
    lines: Sequence[str]
    colour: str = INK


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How much of a picture is given to a name: its label and the share of pixels, 0 to 1."""

    index: int
    name: str
    fraction: float


def grid(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """Cells in rows, each picture over its lines."""
    columns = max(len(row) for row in rows)
    height = _CELL + 2 * LINE + _GAP
    sheet = Image.new("RGB", (columns * (_CELL + _GAP) + _GAP, len(rows) * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            left, top = _GAP + x * (_CELL + _GAP), _GAP + y * height
            if cell.image is not None:
                fitted = cell.image.convert("RGB").resize((_CELL, _CELL), Image.Resampling.LANCZOS)
                sheet.paste(fitted, (left, top))
            for number, line in enumerate(cell.lines):
                text = _shortened(line, _CELL)
                draw.text((left, top + _CELL + number * LINE), text, cell.colour if not number else _MUTED, _font())
    return sheet


def png(image: Image.Image) -> bytes:
    """A palette PNG of at most `MAX_FILE_BYTES`, with as many colours as that allows."""
    for colours in (256, 128, 64, 32):
        out = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() <= MAX_FILE_BYTES:
            break
    return out.getvalue()


def overlay(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Image.Image:
    """Masks over the dimmed picture, [H, W, 3] and [H, W]; the background stays grey."""
    grey = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.5 + 110
    tinted = np.where(labels[..., None] > 0, 0.3 * grey + 0.7 * _COLOURS[labels], grey)
    return Image.fromarray(np.clip(tinted, 0, 255).astype(np.uint8))


def legend(shares: Sequence[Share], absent: Sequence[str], *, height: int) -> Image.Image:
    """Colours of `overlay` with names and shares, `height` px high."""
    sheet = Image.new("RGB", (250, height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, each in enumerate(shares):
        top = LINE + number * 21
        draw.rectangle((0, top, 14, top + 14), fill=tuple(int(c) for c in _COLOURS[each.index]))
        told = f"{each.name}: {each.fraction:.0%}" + (" (not there)" if each.name in absent else "")
        draw.text((22, top), _shortened(told, 226), _MUTED if each.fraction == 0 else INK, _font())
    return sheet


def titled(image: Image.Image, title: str) -> Image.Image:
    """A picture under its title."""
    sheet = Image.new("RGB", (image.width, image.height + LINE), "white")
    ImageDraw.Draw(sheet).text((0, 0), title, INK, _font())
    sheet.paste(image, (0, LINE))
    return sheet


def beside(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures in a row."""
    width = sum(image.width + _GAP for image in images) + _GAP
    sheet = Image.new("RGB", (width, max(image.height for image in images) + 2 * _GAP), "white")
    left = _GAP
    for image in images:
        sheet.paste(image, (left, _GAP))
        left += image.width + _GAP
    return sheet


def below(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures in a column."""
    sheet = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(11)


def _shortened(text: str, width: int) -> str:
    font = _font()
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
