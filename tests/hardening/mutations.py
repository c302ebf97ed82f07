"""Damaged images and odd drawings, reproducible by seed."""

import random
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.app.imaging import hostile
from tests.app.imaging.files import encoded

_ODD = (
    "0", "-0", "1", "-1", ".5", "1e-30", "-1e-30", "1e6", "-1e6", "999999", "4096", "32767", "32768", "65536", "1e-7",
)  # fmt: skip
_REFUSED = ("1e38", "-1e38", "3.5e38", "1e400", "NaN", "inf", "-", "1e", "16777217", "2147483648", "0000000000000001")
_COMMANDS = "MmLlHhVvCcSsQqTtAaZz"
_SHAPES = {
    "rect": ("x", "y", "width", "height", "rx", "ry"),
    "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry"),
    "line": ("x1", "y1", "x2", "y2"),
}
_FOREIGN = (
    "<mask id='m'><rect width='9' height='9'/></mask>",
    "<pattern id='p' width='1e-9' height='1e-9'><rect width='9' height='9'/></pattern>",
    "<filter id='f'><feGaussianBlur stdDeviation='1e9'/></filter>",
    "<use href='#u'/>",
    "<g id='u'><use xlink:href='#u'/></g>",
    "<linearGradient id='l'><stop offset='nan'/></linearGradient>",
    "<text x='1' y='2' font-size='1e9'>text</text>",
    "<image href='data:image/png;base64,AAAA' width='9' height='9'/>",
    "<style>*{stroke-width:1e38}</style>",
    "<foreignObject/>",
)


def seeds() -> list[bytes]:
    """Return small sound files of each format and colour type, those that are refused included."""
    grey, photograph = Image.new("L", (24, 17), 90), hostile.photograph(24, 17)
    clear = photograph.convert("RGBA")
    frames = [hostile.photograph(20, 16), Image.new("RGB", (20, 16), "red")]
    wide = Image.fromarray(np.arange(24 * 17, dtype=np.uint16).reshape(17, 24) * 150)
    made: list[tuple[Image.Image, str, dict[str, object]]] = [
        *((photograph.convert(mode), "PNG", {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")),
        (wide, "PNG", {}),
        (photograph, "PNG", {"compress_level": 0}),
        (frames[0], "PNG", {"save_all": True, "append_images": frames[1:]}),
        *((photograph.convert(mode), "JPEG", {}) for mode in ("RGB", "L", "CMYK")),
        (photograph, "JPEG", {"progressive": True}),
        (photograph, "JPEG", {"progressive": True, "subsampling": 0, "restart_marker_rows": 1}),
        (photograph, "JPEG", {"exif": _turned()}),
        (photograph, "WEBP", {}),
        (clear, "WEBP", {"lossless": True}),
        (frames[0], "WEBP", {"save_all": True, "append_images": frames[1:]}),
        (photograph.convert("P"), "GIF", {}),
        (frames[0], "GIF", {"save_all": True, "append_images": frames[1:]}),
        *((photograph.convert(mode), "BMP", {}) for mode in ("RGB", "L", "P", "1")),
        (clear, "BMP", {}),
        (grey, "TIFF", {}),
        (photograph, "AVIF", {}),
    ]
    files = [encoded(image, kind, **options) for image, kind, options in made]
    return [*files, hostile.png_without_palette(), hostile.repeated_scans(64, 20)]


def mutated(chance: random.Random, files: list[bytes]) -> bytes:
    """Return one of the files with one to four kinds of damage."""
    data = bytearray(chance.choice(files))
    for _ in range(chance.choice((1, 1, 2, 4))):
        chance.choice(_MUTATIONS)(chance, data)
        if chance.random() < 0.1:
            other = chance.choice(files)
            at = chance.randrange(len(data) + 1)
            data[at:] = other[chance.randrange(len(other)) :]
    return bytes(data)


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _flip_bits(chance: random.Random, data: bytearray) -> None:
    for _ in range(chance.choice((1, 2, 8, 40))):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _flip_head(chance: random.Random, data: bytearray) -> None:
    if data:
        data[chance.randrange(min(64, len(data)))] = chance.randrange(256)


def _cut(chance: random.Random, data: bytearray) -> None:
    del data[chance.randrange(len(data) + 1) :]


def _remove(chance: random.Random, data: bytearray) -> None:
    at = chance.randrange(len(data) + 1)
    del data[at : at + chance.choice((1, 4, 12, 100))]


def _repeat(chance: random.Random, data: bytearray) -> None:
    at, length = chance.randrange(len(data) + 1), chance.choice((1, 4, 12, 50, 400))
    data[at:at] = data[at : at + length] * chance.choice((1, 2, 60))


def _repeat_segment(chance: random.Random, data: bytearray) -> None:
    """Repeat what lies between two markers of a JPEG, or two chunks of a PNG or WebP."""
    marks = [at for at in range(len(data)) if data[at] == 0xFF or data[at : at + 4] in _CHUNKS]
    if len(marks) > 1:
        first, last = sorted(chance.sample(marks, 2))
        data[first:first] = data[first:last] * chance.choice((1, 3, 120))
        del data[2_000_000:]


def _number(chance: random.Random, data: bytearray) -> None:
    """Overwrite a length, a size or an offset."""
    if len(data) > 8:
        value = chance.choice((0, 1, 0x7F, 0xFF, 0xFFFF, 8000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
        form = chance.choice(("<H", ">H", "<I", ">I"))
        value &= (1 << 8 * struct.calcsize(form)) - 1
        struct.pack_into(form, data, chance.randrange(len(data) - 4), value)


_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"fcTL", b"fdAT", b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANMF")
_MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    _flip_bits, _flip_head, _cut, _remove, _repeat, _repeat_segment, _number,
)  # fmt: skip


def svg(chance: random.Random) -> str:
    """Return an SVG that is mostly within the subset, with odd numbers."""
    side = chance.choice((1, 16, 64, 100, 256, 600)) if chance.random() < 0.997 else 4096
    box = f' viewBox="{" ".join(_value(chance) for _ in range(4))}"' if chance.random() < 0.2 else ""
    depth = chance.choice((1, 2, 4, 31))
    body = "".join(_element(chance, depth) for _ in range(chance.choice((1, 2, 5, 20))))
    if chance.random() < 0.1:
        body += chance.choice(_FOREIGN)
    text = f'<svg width="{side}" height="{chance.choice((side, 1, 50))}"{box}{_paint(chance)}>{body}</svg>'
    if chance.random() < 0.03:
        at = chance.randrange(len(text))
        text = text[:at] + chance.choice(("<", "&#0;", "\x00", "]]>", "é", "")) + text[at + chance.randrange(3) :]
    return text


def _element(chance: random.Random, depth: int) -> str:
    kind = chance.choice(("g", "g", "path", "polyline", "polygon", *_SHAPES))
    attributes = _paint(chance)
    if chance.random() < 0.2:
        attributes += f' transform="{_transform(chance)}"'
    if kind == "g":
        inner = "".join(_element(chance, depth - 1) for _ in range(chance.choice((1, 1, 2)))) if depth else ""
        return f"<g{attributes}>{inner}</g>"
    if kind == "path":
        commands = (_command(chance) for _ in range(chance.choice((1, 3, 10, 100))))
        attributes += f' d="M{_value(chance)} {_value(chance)}{"".join(commands)}"'
    elif kind in _SHAPES:
        attributes += "".join(f' {name}="{_value(chance)}"' for name in _SHAPES[kind] if chance.random() < 0.9)
    else:
        attributes += f' points="{" ".join(_value(chance) for _ in range(chance.choice((1, 4, 60))))}"'
    return f"<{kind}{attributes}/>"


def _command(chance: random.Random) -> str:
    count = chance.choice((1, 2, 4, 6, 7))
    return chance.choice(_COMMANDS) + " ".join(_value(chance) for _ in range(count))


def _paint(chance: random.Random) -> str:
    choices = {
        "fill": ("none", "red", "#1e9999", "currentColor", "rgb(1,2,3)"),
        "stroke": ("black", "red", "none", "#fff"),
        "stroke-width": (_value(chance),),
        "stroke-miterlimit": (_value(chance),),
        "stroke-linejoin": ("miter", "round", "bevel", "arcs", "miter-clip"),
        "stroke-linecap": ("butt", "round", "square"),
        "stroke-dasharray": (f"{_value(chance)} {_value(chance)}",),
        "opacity": (".5", _value(chance)),
        "fill-rule": ("evenodd", "nonzero"),
        "fill-opacity": (_value(chance),),
    }
    chosen = {name: chance.choice(values) for name, values in choices.items() if chance.random() < 0.3}
    if chance.random() < 0.2:
        return f' style="{";".join(f"{name}:{value}" for name, value in chosen.items())}"'
    return "".join(f' {name}="{value}"' for name, value in chosen.items())


def _transform(chance: random.Random) -> str:
    kind, count = chance.choice((("translate", 2), ("scale", 2), ("rotate", 3), ("skewX", 1), ("matrix", 6)))
    return f"{kind}({' '.join(_value(chance) for _ in range(count))})"


def _value(chance: random.Random) -> str:
    if chance.random() < 0.06:
        return chance.choice(_ODD if chance.random() < 0.95 else _REFUSED)
    size = chance.choice((1.0, 10.0, 100.0, 100.0, 5000.0))
    return f"{chance.uniform(-0.3 * size, size):.3g}" if chance.random() < 0.97 else f"{chance.uniform(-1e6, 1e6):.7g}"
