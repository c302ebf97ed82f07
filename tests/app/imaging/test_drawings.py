import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain import Limits
from app.errors import ImageTooLarge, Invalid, ServiceError, TooMuchWork, UndecodableImage
from app.imaging.drawings import open_svg
from tests.app.imaging import hostile

SVG = "<svg xmlns='http://www.w3.org/2000/svg' {}>{}</svg>"


def drawn(text: str) -> NDArray[np.uint8]:
    opened = open_svg(text, Limits())
    pixels = opened.read()
    assert pixels.shape == (opened.height, opened.width, 3)
    return pixels


def test_shapes_paths_and_styles_are_drawn_at_the_documents_size() -> None:
    body = "<g transform='translate(2 0)'><rect width='10' height='20' style='fill: red; cursor: help'/></g>"
    pixels = drawn(SVG.format("width='40' height='20px' viewBox='0 0 40 20' id='x' onload='alert(1)'", body))
    assert pixels.shape == (20, 40, 3)
    assert pixels[10, 5].tolist() == [255, 0, 0]
    assert pixels[10, 30].tolist() == [255, 255, 255]


def test_the_view_box_gives_the_size_where_there_is_no_other() -> None:
    assert drawn(SVG.format("viewBox='0 0 24 12'", "<path d='M0 0L9 9' stroke='black'/>")).shape == (12, 24, 3)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        pytest.param("", UndecodableImage, id="nothing"),
        pytest.param("<svg", UndecodableImage, id="not XML"),
        pytest.param("<html/>", UndecodableImage, id="another root"),
        pytest.param("<svg xmlns='urn:x' width='9' height='9'/>", UndecodableImage, id="another namespace"),
        pytest.param("<!DOCTYPE svg><svg width='9' height='9'/>", Invalid, id="document type"),
        pytest.param(
            "<!DOCTYPE svg [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><svg width='9' height='9'>&b;</svg>",
            Invalid,
            id="entities",
        ),
        pytest.param(SVG.format("", ""), Invalid, id="no size"),
        pytest.param(SVG.format("width='0' height='9'", ""), Invalid, id="zero"),
        pytest.param(SVG.format("width='1e-310' height='1e-310'", ""), Invalid, id="nearly zero"),
        pytest.param(SVG.format("width='4097' height='9'", ""), ImageTooLarge, id="canvas"),
        pytest.param(SVG.format("width='9' height='9'", "<image href='file:///etc/passwd'/>"), Invalid, id="image"),
        pytest.param(SVG.format("width='9' height='9'", "<use href='#a'/>"), Invalid, id="use"),
        pytest.param(SVG.format("width='9' height='9'", "<text>x</text>"), Invalid, id="text"),
        pytest.param(SVG.format("width='9' height='9'", "<style>*{}</style>"), Invalid, id="style sheet"),
        pytest.param(SVG.format("width='9' height='9'", "<script/>"), Invalid, id="script"),
        pytest.param(SVG.format("width='9' height='9'", "<filter/>"), Invalid, id="filter"),
        pytest.param(SVG.format("width='9' height='9'", "<path fill='url(#a)'/>"), Invalid, id="reference"),
        pytest.param(SVG.format("width='9' height='9'", "<path style='fill:url(http://x)'/>"), Invalid, id="url"),
        pytest.param(SVG.format("width='9' height='9'", "<g>" * 60 + "</g>" * 60), TooMuchWork, id="depth"),
        pytest.param(
            SVG.format("width='9' height='9'", f"<path d='M0 0{'l1 1' * 50_001}'/>"), TooMuchWork, id="points"
        ),
        pytest.param(SVG.format("width='9' height='9'", "<path/>" * 20_001), TooMuchWork, id="elements"),
        pytest.param(hostile.ABORT, Invalid, id="line width"),
        pytest.param(hostile.FREEZE, Invalid, id="arc"),
    ],
)
def test_what_is_outside_the_subset_is_refused(text: str, error: type[ServiceError]) -> None:
    with pytest.raises(error):
        open_svg(text, Limits())


def test_dashes_are_not_drawn() -> None:
    # A dash of a millionth of a pixel on a long path takes the renderer minutes.
    body = "<path d='M0 5H4000' stroke='black' stroke-dasharray='0.000001'/>"
    assert drawn(SVG.format("width='4000' height='10'", body)).shape == (10, 4000, 3)


def test_a_colour_is_no_number() -> None:
    assert drawn(SVG.format("width='9' height='9'", "<rect width='9' height='9' fill='#1e9999'/>"))[4, 4].tolist() == [
        0x1E,
        0x99,
        0x99,
    ]
