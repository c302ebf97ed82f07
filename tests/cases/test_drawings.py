"""Strokes and SVG documents as programs write them: what is hidden stays hidden, the rest is drawn or named."""

import contextlib
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain import Limits
from app.errors import Invalid, ServiceError
from app.imaging.drawings import draw_on_canvas, open_strokes, open_svg
from app.imaging.sources import StrokesImage

Random = np.random.Generator
RED = "<rect width='100' height='100' fill='red'/>"
SVG = "<svg xmlns='http://www.w3.org/2000/svg' xmlns:xlink='http://www.w3.org/1999/xlink' {}>{}</svg>"
BOX = "viewBox='0 0 100 100'"


def drawn(text: str) -> NDArray[np.uint8]:
    return open_svg(text, Limits()).read()


def red_share(text: str) -> float:
    pixels = drawn(text)
    return float(((pixels[:, :, 0] > 200) & (pixels[:, :, 1] < 60)).mean())


def some_path(random: Random) -> str:
    """A visible path in a corner, drawn with a pen of two pixels."""
    x, y = random.integers(5, 60, 2)
    return f"<path d='M{x} {y}l20 5' stroke='black' stroke-width='2' fill='none'/>"


HIDDEN = {
    "display": "<rect width='100' height='100' fill='red' display='none'/>",
    "display in the style": "<rect width='100' height='100' style='fill:red;display:none'/>",
    "display of a group": "<g style='display:none'><g><rect width='100' height='100' fill='red'/></g></g>",
    "display over the attribute": "<rect width='100' height='100' fill='red' display='inline' style='display: NONE'/>",
    "important display": f"<g style='display:none !important;display:inline'>{RED}</g>",
    "display after a comment": "<g style='/* a;b */display:none'><rect width='99' height='99' fill='red'/></g>",
    "visibility": "<rect width='100' height='100' fill='red' visibility='hidden'/>",
    "visibility in the style": "<g style='visibility:hidden'><rect width='100' height='100' fill='red'/></g>",
    "visibility collapse": "<g visibility='collapse'><rect width='100' height='100' fill='red'/></g>",
    "opacity": "<g opacity='0'><rect width='100' height='100' fill='red'/></g>",
    "fill opacity": "<rect width='100' height='100' fill='red' fill-opacity='0'/>",
    "no fill": "<rect width='100' height='100' fill='red' style='fill:none'/>",
    "no fill, important": "<rect width='100' height='100' style='fill:none !important;fill:red'/>",
    "definitions": "<defs><rect width='100' height='100' fill='red'/></defs>",
    "symbol": "<symbol><rect width='100' height='100' fill='red'/></symbol>",
    "mask": "<mask><rect width='100' height='100' fill='red'/></mask>",
    "clip": "<clipPath id='c'><rect width='100' height='100' fill='red'/></clipPath>",
    "pattern": "<pattern><rect width='100' height='100' fill='red'/></pattern>",
    "unknown extension": "<g requiredExtensions='urn:x'><rect width='100' height='100' fill='red'/></g>",
    "the other branch of a switch": (
        "<switch><g><path d='M1 1l2 2'/></g><g><rect width='100' height='100' fill='red'/></g></switch>"
    ),
    "hidden and outside the subset": "<g display='none'><image href='x.png'/><text>a</text></g>",
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_3_what_an_svg_hides_stays_hidden(random: Random, kind: str) -> None:
    depth = int(random.integers(0, 4))
    hidden = "<g>" * depth + HIDDEN[kind] + "</g>" * depth
    parts = [hidden, some_path(random)]
    if random.integers(2):
        parts.reverse()
    pixels = drawn(SVG.format(BOX, "".join(parts)))
    assert red_share(SVG.format(BOX, "".join(parts))) == 0
    assert 0.001 < (pixels < 128).all(axis=2).mean() < 0.2


SHOWN = {
    "visible inside of hidden": f"<g visibility='hidden'><g visibility='visible'>{RED}</g></g>",
    "display inline": "<g display='inline' style='display:block'><rect width='100' height='100' fill='red'/></g>",
    "the later display": "<g display='none' style='display:inline'><rect width='100' height='100' fill='red'/></g>",
    "link": "<a href='#x' xlink:href='http://x'><rect width='100' height='100' fill='red'/></a>",
    "switch": (f"<switch><foreignObject requiredExtensions='urn:adobe'/><g>{RED}</g></switch>"),
    "upper case": "<rect width='100' height='100' style='FILL:RED'/>",
    "current colour": "<g color='red'><rect width='100' height='100' fill='CURRENTCOLOR'/></g>",
    "neutral effects": (
        "<g style='mix-blend-mode:normal;filter:none;clip-path:none;mask:none;marker:none;enable-background:new'>"
        "<rect width='100' height='100' fill='red' transform-origin='0 0' transform='translate(0 0)'/></g>"
    ),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_3_what_an_svg_shows_is_drawn(random: Random, kind: str) -> None:
    assert red_share(SVG.format(BOX, SHOWN[kind] + some_path(random))) > 0.9


NAMED = {
    "mask": ("<g mask='url(#m)'>{}</g>", "mask"),
    "clip-path": ("<g style='clip-path:url(#c)'>{}</g>", "clip-path"),
    "filter": ("<g filter='url(#f)'>{}</g>", "filter"),
    "blend mode": ("<g style='mix-blend-mode:multiply'>{}</g>", "mix-blend-mode"),
    "marker": ("<path d='M0 0l9 9' marker-end='url(#m)'/>{}", "marker-end"),
    "CSS transform": ("<g style='transform:translate(9px,9px)'>{}</g>", "transform"),
    "CSS geometry": ("<rect style='width:9px;height:9px'/>{}", "height"),
    "stroke that does not scale": (
        "<g transform='scale(9)'><path vector-effect='non-scaling-stroke'/>{}</g>",
        "vector-effect",
    ),
    "transform-origin": ("<g transform='rotate(9)' transform-origin='center'>{}</g>", "transform-origin"),
    "display": ("<g display='bogus'>{}</g>", "display"),
    "visibility": ("<g visibility='maybe'>{}</g>", "visibility"),
    "variable": ("<g style='fill:var(--a, red)'>{}</g>", "fill"),
    "light-dark": ("<g style='stroke: light-dark(#000, #fff)'>{}</g>", "stroke"),
    "gradient": ("<g fill='url(#g)'>{}</g>", "fill"),
    "language": ("<g systemLanguage='de'>{}</g>", "systemLanguage"),
    "style sheet": ("<defs><style>.a{{fill:none}}</style></defs>{}", "<style>"),
    "style sheet in another namespace": (
        "<h:style xmlns:h='http://www.w3.org/1999/xhtml'>*{{display:none}}</h:style>{}",
        "<style>",
    ),
    "nested": ("<svg>{}</svg>", "<svg>"),
    "text": ("<text>a</text>{}", "<text>"),
    "image": ("<image width='9' height='9'/>{}", "<image>"),
    "use": ("<use/>{}", "<use>"),
    "reference": ("<path xlink:href='#a' d='M0 0'/>{}", "reference in <path>"),
    "animation": ("<animate attributeName='display' to='none'/>{}", "<animate>"),
    "foreign object": ("<foreignObject/>{}", "<foreignObject>"),
    "escape": ("<g style='d\\69splay:none'>{}</g>", "escape"),
}


@pytest.mark.parametrize("kind", NAMED)
def test_4_what_is_outside_the_subset_is_named(random: Random, kind: str) -> None:
    template, name = NAMED[kind]
    depth = int(random.integers(0, 4))
    with pytest.raises(Invalid) as caught:
        drawn(SVG.format(BOX, "<g>" * depth + template.format(some_path(random)) + "</g>" * depth))
    assert name in caught.value.detail
    assert caught.value.detail.endswith(".")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("background", "#{:06x}"),
        ("background-color", "rgb({:d},0,0) !important"),
        ("background-image", "url(a{:d}.png)"),
    ],
)
def test_4_a_page_of_another_colour_is_named(random: Random, key: str, value: str) -> None:
    root = f"style='fill:none;{key}:{value.format(int(random.integers(255)))}' " + BOX
    with pytest.raises(Invalid, match=f"property {key}, .* rectangle"):
        drawn(SVG.format(root, some_path(random)))


@pytest.mark.parametrize(
    "value", ["white", "#FFF", "rgb(255, 255, 255)", "rgb(255 255 255)", "transparent", "none", ""]
)
def test_4_a_white_page_is_what_lies_behind(random: Random, value: str) -> None:
    path = some_path(random)
    plain = drawn(SVG.format(BOX, path))
    for style in (f"background:{value}", f"background-color: {value}; background-image: none"):
        np.testing.assert_array_equal(drawn(SVG.format(f"style='{style}' {BOX}", path)), plain)


LONG = 1 << 15
LONG_VALUES = {
    "spaces before nothing": (BOX, "style='fill:red" + " " * LONG + "x'"),
    "letters without a bracket": (BOX, "fill='" + "a" * LONG + "'"),
    "digits of a width": ("width='" + "1" * LONG + "!' " + BOX, ""),
    "digits of a width and an exponent": ("width='1e" + "1" * LONG + "!' " + BOX, ""),
    "spaces behind a width": ("width='1" + " " * LONG + "!' " + BOX, ""),
}


@pytest.mark.parametrize("kind", LONG_VALUES)
def test_4_long_values_are_read_in_time(kind: str) -> None:
    """A search that starts again at each character would take minutes."""
    attributes, paint = LONG_VALUES[kind]
    started_s = time.process_time()
    with contextlib.suppress(Invalid):
        open_svg(SVG.format(attributes, f"<path d='M0 0l9 9' stroke='red' {paint}/>"), Limits())
    assert time.process_time() - started_s < 1


FOREIGN = (
    "xmlns:sodipodi='http://sodipodi.sourceforge.net/DTD/sodipodi-0.dtd' "
    "xmlns:inkscape='http://www.inkscape.org/namespaces/inkscape' "
)
ACCEPTED = {
    "Inkscape": (
        FOREIGN + BOX,
        "<sodipodi:namedview id='v' pagecolor='#fff'><inkscape:grid/></sodipodi:namedview><defs id='defs1'/>"
        "<metadata><x xmlns='urn:x'/></metadata><g inkscape:label='Layer 1' inkscape:groupmode='layer'>{}</g>",
    ),
    "Inkscape's style": (
        BOX,
        "<g style='fill:none;stroke:#000;stroke-width:0.26458332px;stroke-linecap:butt;stroke-dasharray:none;"
        "-inkscape-stroke:none;paint-order:normal;font-variation-settings:normal;opacity:1;vector-effect:none;"
        "stop-color:#000000;marker:none'>{}</g>",
    ),
    "definitions": (BOX, "<defs><linearGradient id='a'><stop/></linearGradient><filter id='f'/></defs>{}"),
    "Excalidraw": (
        "version='1.1' width='100' height='100' " + BOX,
        "<!-- svg-source:excalidraw --><metadata/><defs><style class='style-fonts'>@font-face {{ font-family: Virgil; "
        "src: url(data:font/woff2;base64,AAAA); }}</style></defs><mask/><g stroke-linecap='butt'>{}</g>",
    ),
    "empty style": (BOX, "<style type='text/css'> /* nothing */ </style>{}"),
    "Illustrator": (
        "version='1.1' id='Layer_1' x='0px' y='0px' xml:space='preserve' style='enable-background:new 0 0 100 100;' "
        + BOX,
        "<switch><foreignObject requiredExtensions='http://ns.adobe.com/AdobeIllustrator/10.0/'/><g>{}</g></switch>",
    ),
    "link": (BOX, "<a xlink:href='https://example.org'>{}</a>"),
    "class names": (BOX, "<g class='a b' data-name='c' tabindex='0'>{}</g>"),
}


@pytest.mark.parametrize("kind", ACCEPTED)
@pytest.mark.parametrize(
    "before", ["", "\n \n", "<?xml version='1.0' encoding='utf-8'?>\n", "\ufeff", "\n<?xml version='1.0'?>"]
)
def test_4_files_of_common_programs_are_drawn(random: Random, kind: str, before: str) -> None:
    attributes, body = ACCEPTED[kind]
    path = some_path(random)
    plain = drawn(SVG.format(BOX, path))
    np.testing.assert_array_equal(drawn(before + SVG.format(attributes, body.format(path))), plain)


def test_4_a_style_sheet_beside_the_document_is_named() -> None:
    with pytest.raises(Invalid, match="xml-stylesheet"):
        drawn("<?xml-stylesheet href='a.css'?>" + SVG.format(BOX, "<path d='M0 0l9 9'/>"))
    with pytest.raises(Invalid, match="document type"):
        drawn("<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN' 'x.dtd'>" + SVG.format(BOX, "<path d='M0 0l9 9'/>"))


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("width='{w}' viewBox='0 0 {vw} {vh}'", "ratio"),
        ("width='{w}px' viewBox='0 0 {vw} {vh}' height='auto'", "ratio"),
        ("width='100%' viewBox='0 0 {vw} {vh}'", "box"),
        ("width='100%' height='50%' viewBox='0 0 {vw} {vh}'", "box"),
        ("width='{w}' height='{h}' viewBox='0 0 {vw} {vh}'", "stated"),
        ("style='width:{w}px;height:{h}px;max-width:9px' viewBox='0 0 {vw} {vh}'", "stated"),
        ("width='{w}' height='{h}'", "stated"),
        ("width='{win}in' height='{hin}in'", "stated"),
        ("width='{wmm}mm' height='{hmm}mm' viewBox='0 0 {vw} {vh}'", "stated"),
        ("width='{wpt}pt' height='{hpt}pt'", "stated"),
        ("width='+{w}.0e0' height=' {h} '", "stated"),
    ],
)
def test_5_sizes_are_those_of_browsers(random: Random, attributes: str, size: str) -> None:
    w, h, vw, vh = random.integers(20, 400, 4).tolist()
    values = {
        "win": w / 96,
        "hin": h / 96,
        "wmm": w * 25.4 / 96,
        "hmm": h * 25.4 / 96,
        "wpt": w * 0.75,
        "hpt": h * 0.75,
    }
    found = drawn(
        SVG.format(attributes.format(w=w, h=h, vw=vw, vh=vh, **values), "<rect width='9' height='9'/>")
    ).shape[:2]
    expected = {"ratio": (w * vh / vw, w), "box": (vh, vw), "stated": (h, w)}[size]
    assert np.abs(np.subtract(found, expected)).max() <= 0.51


def test_5_units_of_one_are_scaled_up(random: Random) -> None:
    side = random.uniform(0.5, 15)
    pixels = drawn(
        SVG.format(
            f"viewBox='0 0 {side} {side / 2}'",
            f"<path d='M0 0L{side} {side / 2}' stroke='black' stroke-width='{side / 40}'/>",
        )
    )
    assert pixels.shape == (128, 256, 3)
    assert 0.01 < (pixels < 128).mean() < 0.2


def test_5_the_aspect_ratio_may_be_given_up(random: Random) -> None:
    side = int(random.integers(50, 200))
    body = f"<rect width='{side}' height='{side}' fill='red'/>"
    text = SVG.format(f"width='200' height='50' viewBox='0 0 {side} {side}' preserveAspectRatio='{{}}'", body)
    assert red_share(text.format("none")) == 1
    assert red_share(text.format("xMidYMid slice")) == 1
    assert red_share(text.format("xMidYMid meet")) == pytest.approx(0.25, abs=0.02)
    assert red_share(text.format("bogus")) == pytest.approx(0.25, abs=0.02)


def test_5_paths_of_minifiers_and_of_faulty_exports(random: Random) -> None:
    x = int(random.integers(5, 15))
    tight, spaced = f"M{x} 50a40 40 0 0180 0", f"M{x} 50 a 40 40 0 0 1 80 0"
    tight, spaced = (f"<path d='{one}' stroke='black' fill='none'/>" for one in (tight, spaced))
    np.testing.assert_array_equal(drawn(SVG.format(BOX, tight)), drawn(SVG.format(BOX, spaced)))
    cut = f"<path d='M{x} 10L60 60L70 NaN L90 90' stroke='black' fill='none'/>"
    whole = f"<path d='M{x} 10L60 60' stroke='black' fill='none'/>"
    np.testing.assert_array_equal(drawn(SVG.format(BOX, cut)), drawn(SVG.format(BOX, whole)))


@pytest.mark.parametrize("colour", ["white", "#fff", "rgb(255,255,255)", "transparent", "none"])
def test_25_a_drawing_that_is_white_on_white_is_refused(random: Random, colour: str) -> None:
    x, y = random.integers(5, 60, 2)
    with pytest.raises(Invalid, match="nothing to see on white"):
        drawn(SVG.format(BOX, f"<path d='M{x} {y}l20 5' stroke='{colour}' stroke-width='2' fill='none'/>"))
    behind = f"<rect width='100' height='100' fill='#123'/><path d='M{x} {y}l20 5' stroke='white' stroke-width='2'/>"
    assert drawn(SVG.format(BOX, behind)).max() == 255


def strokes(random: Random, count: int) -> list[list[list[float]]]:
    return [random.uniform(10, 200, (2, int(random.integers(1, 6)))).tolist() for _ in range(count)]


def test_1_empty_strokes_are_ignored(random: Random) -> None:
    good = strokes(random, int(random.integers(1, 5)))
    mixed = list(good)
    for _ in range(int(random.integers(1, 4))):
        mixed.insert(int(random.integers(len(mixed) + 1)), [[], [], []] if random.integers(2) else [[], []])
    plain, other = (StrokesImage(strokes=one, width=256, height=256) for one in (good, mixed))
    np.testing.assert_array_equal(draw_on_canvas(other), draw_on_canvas(plain))
    np.testing.assert_array_equal(open_strokes(other, 128, Limits()).read(), open_strokes(plain, 128, Limits()).read())
    with pytest.raises(Invalid):
        open_strokes(StrokesImage(strokes=[[[], []]] * len(mixed), width=256, height=256), 128, Limits()).read()


def test_documents_of_random_parts_are_drawn_or_refused(random: Random) -> None:
    pieces = [*HIDDEN.values(), *SHOWN.values(), *(one.format("") for one, _ in NAMED.values())]
    for _ in range(20):
        chosen = [pieces[at] for at in random.integers(0, len(pieces), int(random.integers(1, 5)))]
        try:
            assert drawn(SVG.format(BOX, "".join(chosen))).shape == (100, 100, 3)
        except ServiceError as err:
            assert err.status == 422  # noqa: PT017 - a result is as good
