"""Drawings to pixels: strokes on a canvas, and a small SVG subset.

The SVG renderer never sees the caller's text: the document is parsed without entities, every element and attribute
is checked against an allow-list, and the rendered document is built from those alone.
"""

import re
from xml.etree.ElementTree import Element, ParseError, SubElement, tostring

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
from models.errors import InputError
from models.transforms import SKETCH_LINE_WIDTH, canonical_strokes

_NAMESPACE = "http://www.w3.org/2000/svg"
_SHAPES = {"g", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon"}
_NOT_DRAWN = {"title", "desc", "metadata"}
_GEOMETRY = {
    "d", "points", "x", "y", "width", "height", "rx", "ry", "cx", "cy", "r", "x1", "y1", "x2", "y2", "transform",
}  # fmt: skip
# No dashes: one of a millionth of a pixel on a long path takes the renderer minutes.
_PAINT = {
    "fill", "fill-rule", "fill-opacity", "stroke", "stroke-width", "stroke-linecap", "stroke-linejoin",
    "stroke-miterlimit", "stroke-opacity", "opacity", "color",
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_COLOUR = re.compile(r"#[0-9a-fA-F]+")  # `#1e9999` is no number
_LENGTH = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:px)?\s*")
_PLAIN_VALUE = re.compile(r"[^\\<>&;:{}@\"']*")
_MAX_DEPTH = 32  # for the renderer, which recurses
_MAX_ELEMENTS = 20_000
_MAX_NUMBER = 1e6  # the renderer computes in float32; it panics or never ends on numbers near the largest


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


def open_svg(text: str, limits: Limits) -> OpenedImage:
    """Check an SVG of paths and basic shapes; `read` renders it at its own size.

    Raises:
        UndecodableImage: not XML.
        Invalid: an element or value outside the subset.
        ImageTooLarge, TooMuchWork: the canvas is too large, or there are too many points.
    """
    try:
        root: Element = fromstring(text, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    except DefusedXmlException as err:
        raise Invalid("The SVG holds a document type or entities, which are not allowed.") from err
    except (ParseError, ValueError) as err:
        raise UndecodableImage("The SVG is not well-formed XML.") from err
    if _local_name(root) != "svg":
        raise UndecodableImage("The root element is not <svg>.")
    work = _work(root, limits)
    view_box = _view_box(root)
    width, height = _canvas(root, view_box, limits)
    safe = Element("svg", {"xmlns": _NAMESPACE, "width": str(width), "height": str(height)})
    if view_box is not None:
        safe.set("viewBox", " ".join(map(repr, view_box)))
    _copy_paint(root, safe)
    _copy_children(root, safe)

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
            points += (sum(1 for _ in _NUMBER.finditer(element.get(name, ""))) + 1) // 2  # two numbers are a point
        if points > limits.max_points:
            raise TooMuchWork(f"The SVG holds more than {limits.max_points} points.")
        stack.extend((child, depth + 1) for child in element)
    return points + elements


def _view_box(root: Element) -> list[float] | None:
    text = root.get("viewBox")
    if text is None:
        return None
    numbers = [float(match) for match in _NUMBER.findall(text)]
    if len(numbers) != 4 or min(numbers[2:]) <= 0 or max(map(abs, numbers)) > _MAX_NUMBER:
        raise Invalid("The SVG's viewBox must be four numbers with a width and height above zero.")
    return numbers


def _canvas(root: Element, view_box: list[float] | None, limits: Limits) -> tuple[int, int]:
    sides: list[float] = []
    for index, name in enumerate(("width", "height")):
        match = _LENGTH.fullmatch(root.get(name, ""))
        if match:
            sides.append(float(match[1]))
        elif view_box is not None:
            sides.append(view_box[2 + index])
        else:
            raise Invalid("The SVG needs a width and a height in pixels, or a viewBox.")
    if max(sides) > limits.max_canvas_side:
        raise ImageTooLarge(f"A canvas side is over {limits.max_canvas_side} pixels.")
    if min(sides) <= 0:
        raise Invalid("The SVG's width and height must be above zero.")
    return max(1, round(sides[0])), max(1, round(sides[1]))


def _copy_children(source: Element, target: Element) -> None:
    stack = [(source, target)]
    while stack:
        original, copy = stack.pop()
        for child in original:
            name = _local_name(child)
            if name in _NOT_DRAWN:
                continue
            if name not in _SHAPES:
                raise Invalid("The SVG may hold paths and basic shapes only.")
            twin = SubElement(copy, name)
            for key in _GEOMETRY & child.attrib.keys():
                twin.set(key, _plain(child.attrib[key]))
            _copy_paint(child, twin)
            stack.append((child, twin))


def _copy_paint(source: Element, target: Element) -> None:
    if any(key.rpartition("}")[2] == "href" for key in source.attrib):  # xlink:href too
        raise Invalid("The SVG may not hold references.")
    pairs = {key: value for key, value in source.attrib.items() if key in _PAINT}
    for declaration in source.get("style", "").split(";"):  # CSS wins over attributes, as in browsers
        key, _, value = declaration.partition(":")
        if key.strip() in _PAINT:
            pairs[key.strip()] = value.strip()
    for key, value in pairs.items():
        target.set(key, _plain(value))


def _plain(value: str) -> str:
    if "url(" in value.lower().replace(" ", "") or not _PLAIN_VALUE.fullmatch(value):
        raise Invalid("The SVG holds a value that is not plain numbers, colours or keywords.")
    if any(abs(float(number)) > _MAX_NUMBER for number in _NUMBER.findall(_COLOUR.sub("", value))):
        raise Invalid("The SVG holds a number over a million.")
    return value


def _local_name(element: Element) -> str:
    tag = element.tag if isinstance(element.tag, str) else ""  # comments have a function as their tag
    namespace, _, name = tag.rpartition("}")
    return name if namespace in ("", "{" + _NAMESPACE) else ""
