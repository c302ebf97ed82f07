"""Drawings to pixels: strokes on a canvas, and a small SVG subset.

The SVG renderer never sees the caller's text: the document is parsed without entities, every element and attribute
is checked against an allow-list, and the rendered document is built from those alone.
"""

import re
from xml.etree.ElementTree import Element, ParseError, tostring

import numpy as np
import resvg_py
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from app.domain import Limits
from app.errors import ImageTooLarge, Invalid, TooMuchWork, UndecodableImage
from app.imaging.raster import OpenedImage, damage_refused, open_file
from app.imaging.sources import StrokesImage
from app.imaging.svg_subset import HINT, MAX_NUMBER, NAMESPACE, NUMBER, copy_svg, declarations, local_name
from models.errors import InputError
from models.transforms import SKETCH_LINE_WIDTH, canonical_strokes

# No text matches in two ways: trying them all would take minutes for a long one.
_LENGTH = re.compile(
    r"\s*\+?(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)\s*(?:(?P<unit>[a-z]+)\s*)?", re.IGNORECASE
)
_PX = {
    "": 1.0, "px": 1.0, "in": 96.0, "cm": 96 / 2.54, "mm": 96 / 25.4, "q": 96 / 101.6, "pt": 96 / 72, "pc": 16.0,
    "em": 16.0, "rem": 16.0, "ex": 8.0, "ch": 8.0,
}  # fmt: skip
_ASPECT = re.compile(r"\s*(?:none|xM(?:in|id|ax)YM(?:in|id|ax)(?:\s+(?:meet|slice))?)\s*")
LEAST_SIDE = 256  # px; icons of 16 and 24 px are found less well, and look coarse (docs/adr/0056)
_LEAST_PX = 1e-6
_LEAST_BOX = 16  # a view box below it is in units of its own, not in px
_MAX_DEPTH = 32  # for the renderer, which recurses
_MAX_ELEMENTS = 20_000


def open_strokes(source: StrokesImage, size: int, limits: Limits) -> OpenedImage:
    """Check a drawing; `read` draws it as a canonical sketch, [size, size, 3] uint8, or raises Invalid.

    Raises ImageTooLarge, Invalid or TooMuchWork if the canvas is too large or empty, or there are too many points.
    """
    if max(source.width, source.height) > limits.max_canvas_side:
        raise ImageTooLarge(f"A canvas side is over {limits.max_canvas_side}.")
    if not min(source.width, source.height) > 0:
        raise Invalid("The canvas's width and height must be above zero.")
    # A stroke counts as a point more, since an empty one costs as much.
    points = len(source.strokes) + sum(len(stroke[0]) if stroke else 0 for stroke in source.strokes)
    if points - len(source.strokes) > limits.max_points or len(source.strokes) > limits.max_points:
        raise TooMuchWork(f"The drawing holds more than {limits.max_points} points.")

    def read() -> NDArray[np.uint8]:
        try:
            return canonical_strokes(source.strokes, size)
        except InputError as err:
            raise Invalid(f"The strokes cannot be drawn: {err}.") from err

    return OpenedImage(width=size, height=size, read=read, points=points, is_canonical=True)


def draw_on_canvas(source: StrokesImage) -> NDArray[np.uint8]:
    """Draw strokes where they lie on their canvas, [H, W, 3] uint8: masks refer to the canvas, not to the crop."""
    canvas = Image.new("RGB", (max(1, round(source.width)), max(1, round(source.height))), "white")
    draw = ImageDraw.Draw(canvas)
    width = max(1, round(max(canvas.size) * SKETCH_LINE_WIDTH))
    for stroke in source.strokes:
        points = [(float(x), float(y)) for x, y in zip(stroke[0], stroke[1], strict=False)]
        if points:  # one point is drawn twice: Pillow draws nothing for it alone
            draw.line(points * 2 if len(points) == 1 else points, fill="black", width=width, joint="curve")
    return np.asarray(canvas, dtype=np.uint8)


def open_svg(text: str, limits: Limits, *, least_side: int = 1) -> OpenedImage:
    """Check an SVG of paths and basic shapes; `read` renders it.

    Args:
        least_side: px; a smaller drawing is scaled until its longest side has it.

    Raises:
        UndecodableImage: not XML.
        Invalid: an element or property outside the subset, which the message names, or nothing is drawn.
        ImageTooLarge, TooMuchWork: the canvas is too large, or there are too many points.
    """
    if "<?xml-stylesheet" in text:
        raise Invalid(f"The SVG refers to a style sheet (xml-stylesheet), which is not read: {HINT}.")
    text = text.lstrip("\N{ZERO WIDTH NO-BREAK SPACE} \t\r\n")  # before the XML declaration
    try:
        root: Element = fromstring(text, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    except DefusedXmlException as err:
        raise Invalid(f"The SVG holds a document type or entities, which are not allowed: {HINT}.") from err
    except (ParseError, ValueError) as err:
        raise UndecodableImage("The SVG is not well-formed XML.") from err
    if local_name(root) != "svg":
        raise UndecodableImage("The root element is not <svg>.")
    work = _work(root, limits)
    view_box = _view_box(root)
    own = _canvas(root, view_box, limits)
    scale = max(1.0, least_side / max(own))
    width, height = (max(1, round(side * scale)) for side in own)
    safe = Element("svg", {"xmlns": NAMESPACE, "width": str(width), "height": str(height)})
    if view_box is not None or scale > 1:
        safe.set("viewBox", " ".join(map(repr, view_box or [0, 0, *own])))
    if _ASPECT.fullmatch(root.get("preserveAspectRatio", "")):
        safe.set("preserveAspectRatio", root.get("preserveAspectRatio", "").strip())
    copy_svg(root, safe)

    def read() -> NDArray[np.uint8]:
        with damage_refused("The SVG cannot be drawn.", limits):
            file = resvg_py.svg_to_bytes(svg_string=tostring(safe, encoding="unicode"), skip_system_fonts=True)
            return open_file(bytes(file), limits).read()

    return OpenedImage(width=width, height=height, read=read, points=work)


def _work(root: Element, limits: Limits) -> int:
    """Return the number of points and elements. Raises TooMuchWork if there are too many, or too deep."""
    points, elements = 0, 0
    stack = [(root, 0)]  # not recursion: the depth is the caller's
    while stack:
        element, depth = stack.pop()
        elements += 1
        if depth > _MAX_DEPTH or elements > _MAX_ELEMENTS:
            raise TooMuchWork("The SVG has too many or too deeply nested elements.")
        for name in ("d", "points", "transform"):
            points += (sum(1 for _ in NUMBER.finditer(element.get(name, ""))) + 1) // 2  # two numbers are a point
        if points > limits.max_points:
            raise TooMuchWork(f"The SVG holds more than {limits.max_points} points.")
        stack.extend((child, depth + 1) for child in element)
    return points + elements


def _view_box(root: Element) -> list[float] | None:
    text = root.get("viewBox")
    if text is None:
        return None
    numbers = [float(match) for match in NUMBER.findall(text)]
    if len(numbers) != 4 or min(numbers[2:]) <= 0 or max(map(abs, numbers)) > MAX_NUMBER:
        raise Invalid("The SVG's viewBox must be four numbers with a width and height above zero.")
    return numbers


def _canvas(root: Element, view_box: list[float] | None, limits: Limits) -> tuple[float, float]:
    """Width and height in px as a browser lays the document out; a side that is not stated follows the viewBox."""
    style = declarations(root)
    width, height = (_px(style.get(name, "")) or _px(root.get(name, "")) for name in ("width", "height"))
    if view_box is not None:
        ratio = view_box[2] / view_box[3]
        if width is None and height is None:
            width, height = view_box[2:]
            if max(width, height) < _LEAST_BOX:
                scale = LEAST_SIDE / max(width, height)
                width, height = width * scale, height * scale
        width = height * ratio if width is None and height is not None else width
        height = width / ratio if height is None and width is not None else height
    if width is None or height is None:
        raise Invalid("The SVG needs a width and a height in units such as px, or a viewBox.")
    if max(width, height) > limits.max_canvas_side:
        raise ImageTooLarge(f"A canvas side is over {limits.max_canvas_side} pixels.")
    if min(width, height) < _LEAST_PX:
        raise Invalid("The SVG's width and height must be above zero.")
    return width, height


def _px(length: str) -> float | None:
    """A length in px; None for a share of the page, such as 100 %, and for what is no length."""
    match = _LENGTH.fullmatch(length)
    unit = _PX.get((match["unit"] or "").lower()) if match else None
    return None if match is None or unit is None else float(match["number"]) * unit
