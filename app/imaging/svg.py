"""A small SVG subset, rebuilt from what was checked and drawn to pixels.

The renderer never sees the caller's text: the tree is parsed without entities, every element and attribute is
on an allow-list, and what is rendered is written anew from them.
"""

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element, ParseError, SubElement, tostring

import resvg_py
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from app.domain import Limits
from app.errors import ImageTooLarge, Invalid, TooMuchWork, UndecodableImage

_NAMESPACE = "http://www.w3.org/2000/svg"
_SHAPES = {"g", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon"}
_SILENT = {"title", "desc", "metadata"}
_GEOMETRY = {
    "d", "points", "x", "y", "width", "height", "rx", "ry", "cx", "cy", "r", "x1", "y1", "x2", "y2", "transform",
}  # fmt: skip
_PAINT = {
    "fill", "fill-rule", "fill-opacity", "stroke", "stroke-width", "stroke-linecap", "stroke-linejoin",
    "stroke-miterlimit", "stroke-opacity", "opacity", "color",
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_LENGTH = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:px)?\s*")
_PLAIN_VALUE = re.compile(r"[^\\<>&;:{}@\"']*")
_MAX_DEPTH = 32
_MAX_ELEMENTS = 20_000
_MAX_VIEW_BOX = 1e6


def render_svg(text: str, limits: Limits) -> bytes:
    """Draw an SVG at its own size.

    Args:
        text: the document; paths and basic shapes, no entities, `use`, `image`, styles sheets or references.
        limits: canvas side and number of points.

    Returns:
        PNG bytes with alpha.

    Raises:
        UndecodableImage: not XML, or it cannot be drawn.
        Invalid: an element or value outside the subset.
        ImageTooLarge: the canvas.
        TooMuchWork: the points.
    """
    try:
        root: Element = fromstring(text, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    except DefusedXmlException as err:
        raise Invalid("The SVG holds a document type or entities, which are not allowed.") from err
    except (ParseError, ValueError) as err:
        raise UndecodableImage("The SVG is not well-formed XML.") from err
    if _local_name(root) != "svg":
        raise UndecodableImage("The root element is not <svg>.")
    _check_size_of_tree(root, limits)
    width, height = _canvas(root, limits)
    safe = Element("svg", {"xmlns": _NAMESPACE, "width": str(width), "height": str(height)})
    view_box = _view_box(root)
    if view_box is not None:
        safe.set("viewBox", " ".join(repr(number) for number in view_box))
    _paint_attributes(root, safe)
    _copy_children(root, safe)
    return _draw(tostring(safe, encoding="unicode"))


def _draw(text: str) -> bytes:
    try:
        return bytes(resvg_py.svg_to_bytes(svg_string=text, skip_system_fonts=True))
    except (ValueError, RuntimeError, TypeError) as err:
        raise UndecodableImage("The SVG cannot be drawn.") from err
    except BaseException as err:
        # A panic of the renderer derives from BaseException and has no importable name.
        if type(err).__name__ == "PanicException":
            raise UndecodableImage("The SVG cannot be drawn.") from err
        raise


def _walk(root: Element) -> Iterator[tuple[Element, int]]:
    stack = [(root, 0)]
    while stack:
        element, depth = stack.pop()
        yield element, depth
        stack.extend((child, depth + 1) for child in element)


def _check_size_of_tree(root: Element, limits: Limits) -> None:
    points = 0
    for count, (element, depth) in enumerate(_walk(root), start=1):
        if depth > _MAX_DEPTH or count > _MAX_ELEMENTS:
            raise TooMuchWork("The SVG has too many or too deeply nested elements.")
        for name in ("d", "points", "transform"):
            points += (sum(1 for _ in _NUMBER.finditer(element.get(name, ""))) + 1) // 2
        if points > limits.max_points:
            raise TooMuchWork(f"The SVG holds more than {limits.max_points} points.")


def _canvas(root: Element, limits: Limits) -> tuple[int, int]:
    view_box = _view_box(root)
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


def _view_box(root: Element) -> tuple[float, float, float, float] | None:
    text = root.get("viewBox")
    if text is None:
        return None
    numbers = [float(match) for match in _NUMBER.findall(text)]
    if len(numbers) != 4 or min(numbers[2:]) <= 0 or max(abs(number) for number in numbers) > _MAX_VIEW_BOX:
        raise Invalid("The SVG's viewBox must be four numbers with a width and height above zero.")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _copy_children(source: Element, target: Element) -> None:
    stack = [(source, target)]
    while stack:
        original, copy = stack.pop()
        for child in original:
            name = _local_name(child)
            if name in _SILENT:
                continue
            if name not in _SHAPES:
                raise Invalid("The SVG may hold paths and basic shapes only.")
            twin = SubElement(copy, name)
            for key in _GEOMETRY & child.attrib.keys():
                twin.set(key, _plain(child.attrib[key]))
            _paint_attributes(child, twin)
            stack.append((child, twin))


def _paint_attributes(source: Element, target: Element) -> None:
    if any(key.rpartition("}")[2] == "href" for key in source.attrib):
        raise Invalid("The SVG may not hold references.")
    pairs = {key: value for key, value in source.attrib.items() if key in _PAINT}
    for declaration in source.get("style", "").split(";"):
        key, _, value = declaration.partition(":")
        if key.strip() in _PAINT:
            pairs[key.strip()] = value.strip()
    for key, value in pairs.items():
        target.set(key, _plain(value))


def _plain(value: str) -> str:
    if "url(" in value.lower().replace(" ", "") or not _PLAIN_VALUE.fullmatch(value):
        raise Invalid("The SVG holds a value that is not plain numbers, colours or keywords.")
    return value


def _local_name(element: Element) -> str:
    tag = element.tag if isinstance(element.tag, str) else ""
    namespace, _, name = tag.rpartition("}")
    return name if namespace in ("", "{" + _NAMESPACE) else ""
