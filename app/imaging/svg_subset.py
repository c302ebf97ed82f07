"""The SVG subset: which elements and properties are copied for the renderer, dropped, or refused by name.

What a browser does not draw is dropped: hidden elements, foreign namespaces, and definitions that nothing refers to.
"""

import re
from collections.abc import Iterator, Mapping, Set
from xml.etree.ElementTree import Element, SubElement

from app.errors import Invalid

NAMESPACE = "http://www.w3.org/2000/svg"
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
MAX_NUMBER = 1e6  # the renderer computes in float32; it panics or never ends on numbers near the largest
_SHAPES = {"path", "rect", "circle", "ellipse", "line", "polyline", "polygon"}
_GROUPS = {"g", "a", "switch"}
_NOT_DRAWN = {
    "title", "desc", "metadata", "defs", "style", "symbol", "clipPath", "mask", "marker", "pattern", "linearGradient",
    "radialGradient", "view",
}  # fmt: skip
_GEOMETRY = {
    "d", "points", "x", "y", "width", "height", "rx", "ry", "cx", "cy", "r", "x1", "y1", "x2", "y2", "transform",
}  # fmt: skip
# No dashes: one of a millionth of a pixel on a long path takes the renderer minutes.
_PAINT = {
    "fill", "fill-rule", "fill-opacity", "stroke", "stroke-width", "stroke-linecap", "stroke-linejoin",
    "stroke-miterlimit", "stroke-opacity", "opacity", "color", "paint-order", "visibility",
}  # fmt: skip
_EFFECTS = {
    "clip-path", "clip", "mask", "mask-image", "filter", "mix-blend-mode", "marker", "marker-start", "marker-mid",
    "marker-end", "translate", "rotate", "scale", "offset-path", "content-visibility",
    "vector-effect", "all",
}  # fmt: skip
_NEUTRAL = {"none", "auto", "normal", "visible", "initial", "inherit", "unset", "revert"}
_PAGE = ("background", "background-color", "background-image")  # of the root, which browsers paint
_WHITE = _NEUTRAL | {
    "white", "transparent", "#fff", "#ffff", "#ffffff", "#ffffffff", "rgb(255,255,255)", "rgba(255,255,255,1)",
    "rgba(0,0,0,0)",
}  # fmt: skip
_SHOWN = {"inline", "block", "inline-block", "inherit", "initial", "unset", "revert"}
_VISIBILITIES = {"visible", "hidden", "collapse", "inherit"}
_SPELLINGS = {"currentcolor": "currentColor", "collapse": "hidden"}
_NO_ORIGIN = re.compile(r"[\s0,.]*(?:(?:px|%)[\s0,.]*)*")
_SEPARATORS = re.compile(r"[\s,]+")
_COLOUR = re.compile(r"#[0-9a-fA-F]+")  # `#1e9999` is no number
_COLOUR_FUNCTIONS = {"rgb", "rgba", "hsl", "hsla"}
_FUNCTION = re.compile(r"(?<![A-Za-z-])([A-Za-z-]+)\s*\(")  # without the first part, slow on long words
_PLAIN_VALUE = re.compile(r"[^\\<>&;:{}@\"']*")
_COMMENT = re.compile(r"/\*.*?(?:\*/|$)", re.DOTALL)
_IMPORTANT = re.compile(r"!\s*important\s*$", re.IGNORECASE)
_FONT_FACES = re.compile(r"(?:\s|@font-face\s*\{[^{}]*\})*", re.IGNORECASE)  # text is not drawn
HINT = "save the drawing as a plain SVG of paths and basic shapes"


def copy_svg(source: Element, target: Element) -> None:
    """Copy what is drawn of an SVG's root into another. Raises Invalid, naming what is outside the subset."""
    for element in source.iter():
        if _tag(element)[1] == "style" and not _FONT_FACES.fullmatch(_COMMENT.sub("", "".join(element.itertext()))):
            raise Invalid(f"The SVG holds a style sheet in <style>, which is not read: {HINT}.")
    style = declarations(source)
    if _is_hidden(source, style):
        return
    for key in _PAGE:
        if _SEPARATORS.sub(",", style.get(key, "").lower() or "none") not in _WHITE:
            raise Invalid(f"The SVG has the property {key}, which is not drawn: draw a rectangle instead.")
    _check_effects(source, style, moves={"transform"} & (style.keys() | source.attrib.keys()))
    _copy_paint(source, style, target)
    stack = [(source, target)]
    while stack:
        original, copy = stack.pop()
        for child, style in _drawn(original):
            name = local_name(child)
            twin = SubElement(copy, "g" if name in _GROUPS else name)
            for key in _GEOMETRY & child.attrib.keys():
                twin.set(key, _plain(key, child.attrib[key]))
            _check_effects(child, style, moves=_GEOMETRY & style.keys())  # CSS may replace the attributes
            _copy_paint(child, style, twin)
            stack.append((child, twin))


def local_name(element: Element) -> str:
    """Return the name of an element of SVG, and nothing for one of another namespace."""
    namespace, name = _tag(element)
    return name if namespace in ("", NAMESPACE) else ""


def declarations(element: Element) -> Mapping[str, str]:
    """Return the properties in an element's `style`, as in CSS: the last counts, and `!important` before that."""
    style = _COMMENT.sub("", element.get("style", ""))
    if "\\" in style:
        raise Invalid(f"The SVG's style holds an escape, which is not read: {HINT}.")
    found: dict[str, str] = {}
    important: dict[str, str] = {}
    for declaration in style.split(";"):
        key, _, value = declaration.partition(":")
        bare = _IMPORTANT.sub("", value)
        (found if bare == value else important)[key.strip().lower()] = bare.strip()
    return found | important


def _drawn(parent: Element) -> Iterator[tuple[Element, Mapping[str, str]]]:
    """The children that are drawn, each with its style. Raises Invalid at one outside the subset."""
    children = [child for child in parent if local_name(child)]
    if local_name(parent) == "switch":  # the first child that is supported, and no other
        children = [child for child in children if "requiredExtensions" not in child.attrib][:1]
    for child in children:
        name, style = local_name(child), declarations(child)
        if name in _NOT_DRAWN or _is_hidden(child, style):
            continue
        if name not in _SHAPES | _GROUPS:
            raise Invalid(f"The SVG holds <{name[:40]}>, which is outside the subset: {HINT}.")
        # Inkscape and others write it with a namespace; a link only leads elsewhere.
        if name != "a" and any(key.rpartition("}")[2] == "href" for key in child.attrib):
            raise Invalid(f"The SVG holds a reference in <{name}>, which is not followed: {HINT}.")
        yield child, style


def _is_hidden(element: Element, style: Mapping[str, str]) -> bool:
    """Whether an element and all in it is not drawn. Raises Invalid where that depends on the reader."""
    if "systemLanguage" in element.attrib:
        raise Invalid(f"The SVG depends on the reader's language (systemLanguage), which is not known: {HINT}.")
    display = style.get("display", element.get("display", "inline")).strip().lower()
    if display not in _SHOWN | {"none"}:
        raise Invalid(f"The SVG's property display has the value {display[:40]!r}: use inline or none.")
    return display == "none" or "requiredExtensions" in element.attrib


def _check_effects(element: Element, style: Mapping[str, str], *, moves: Set[str]) -> None:
    """Raise Invalid at a property that changes what is drawn and that the subset does not have."""
    origin = style.get("transform-origin", element.get("transform-origin", "0"))
    if "transform" in element.attrib and not _NO_ORIGIN.fullmatch(origin):
        raise Invalid(f"The SVG has the property transform-origin, which is outside the subset: {HINT}.")
    for key in sorted(moves | (_EFFECTS & (style.keys() | element.attrib.keys()))):
        if style.get(key, element.get(key, "")).strip().lower() not in _NEUTRAL:
            raise Invalid(f"The SVG has the property {key}, which is outside the subset: {HINT}.")


def _copy_paint(source: Element, style: Mapping[str, str], target: Element) -> None:
    for key in sorted(_PAINT & (style.keys() | source.attrib.keys())):
        value = _plain(key, style.get(key, source.get(key, ""))).strip().lower()  # a style wins over attributes
        if any(name not in _COLOUR_FUNCTIONS for name in _FUNCTION.findall(value)) or (
            key == "visibility" and value not in _VISIBILITIES
        ):
            raise Invalid(f"The SVG's property {key} has the value {value[:40]!r}: {HINT}.")
        # The renderer knows keywords in one spelling alone.
        target.set(key, _SPELLINGS.get(value, value))


def _plain(key: str, value: str) -> str:
    if "url(" in value.lower().replace(" ", "") or not _PLAIN_VALUE.fullmatch(value):
        raise Invalid(f"The SVG's property {key} has a value that is not plain numbers, colours or keywords: {HINT}.")
    if any(abs(float(number)) > MAX_NUMBER for number in NUMBER.findall(_COLOUR.sub("", value))):
        raise Invalid(f"The SVG's property {key} holds a number over a million.")
    return value


def _tag(element: Element) -> tuple[str, str]:
    """Namespace and name; both empty for a comment, which has a function as its tag."""
    tag = element.tag if isinstance(element.tag, str) else ""
    namespace, _, name = tag.rpartition("}")
    return namespace.removeprefix("{"), name
