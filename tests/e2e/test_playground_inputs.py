"""What the playground does with first words, second images, damaged and repeated files, and keys."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import skimage.data

from app.domain import HOUSE
from tests.e2e.browser import CHROMIUM, Page, expect, launched

PHOTOGRAPHS = Path(skimage.data.__file__).parent
WIDE = {"width": 1280, "height": 860}
pytestmark = [pytest.mark.server, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture
def opened(browser: Any, client: httpx.Client) -> Iterator[Page]:
    page = Page(browser, str(client.base_url), viewport=WIDE)
    yield page
    page.close()


def test_the_first_words_take_the_place_of_the_house(opened: Page) -> None:
    page = opened.open()
    expect(page.locator(".card figcaption").first).to_contain_text("house")
    with page.expect_response("**/retrieve") as answer:
        page.get_by_label("Words", exact=True).press_sequentially("a red fish")
        page.wait_for_url("**q=a+red+fish")
    assert "sketch" not in answer.value.request.post_data_json
    expect(page.locator(".card figcaption").first).to_contain_text("fish")
    expect(page.locator(".live-state")).to_be_hidden()


@pytest.mark.parametrize(
    ("name", "kind", "content", "reported"),
    [
        ("notes.txt", "text/plain", b"mine", "is not an image."),
        ("broken.png", "image/png", b"no image", "is damaged, or not an image."),
    ],
    ids=["text", "broken image"],
)
def test_a_file_that_is_no_image_is_named_and_changes_nothing(
    opened: Page, name: str, kind: str, content: bytes, reported: str
) -> None:
    page = opened.open()
    expect(page.locator(".card figcaption").first).to_contain_text("house")
    opened.drop(".sheet", name, content, kind)
    expect(page.locator("#notice .problem-box")).to_contain_text(f"{name}{reported}")
    expect(page.locator(".query-image")).to_have_count(0)
    expect(page.locator(".card figcaption").first).to_contain_text("house")
    page.get_by_role("tab", name="Segment").click()
    expect(page.locator("#notice")).to_be_empty()
    opened.drop(".stage", name, content, kind)
    expect(page.locator("#notice .problem-box")).to_contain_text(f"{name}{reported}")
    expect(page.locator(".samples")).to_be_visible()


def test_an_image_that_the_service_cannot_read_gives_way_to_the_drawing_before_it(opened: Page) -> None:
    opened.tolerated = ("400",)
    page = opened.open()
    expect(page.locator(".card figcaption").first).to_contain_text("house")
    opened.draw(HOUSE["strokes"])
    address = page.evaluate("location.href")
    opened.drop(".sheet", "scan.tif", b"no image", "image/tiff")  # of a kind that the browser does not show
    expect(page.locator("#notice .problem-box")).to_contain_text("scan.tif")
    expect(page).to_have_url(address)
    expect(page.locator(".query-image")).to_have_count(0)
    expect(page.locator(".card figcaption").first).to_contain_text("house")
    expect(page.locator("#notice .problem-box")).to_contain_text("scan.tif")  # also beside the drawing's results
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Words", exact=True).fill("fish")
    expect(page.locator("#notice")).to_be_empty()


def test_each_sample_brings_its_names_and_the_default_view_but_leaves_names_that_were_typed(opened: Page) -> None:
    page = opened.open("?tab=segment")
    names = page.locator(".legend .name")
    page.get_by_role("button", name="motorcycle").click()
    expect(names).to_have_text(["motorcycle", "car", "wall", "cat"])
    page.get_by_role("button", name="Cut out", exact=True).click()
    page.locator(".legend input").first.uncheck()
    page.get_by_label("opacity").fill("1")
    page.get_by_role("button", name="Back to the samples").click()
    page.get_by_role("button", name="rocket").click()
    expect(names).to_have_text(["rocket", "sky", "tree", "cat"])
    expect(page.get_by_role("button", name="Fill", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("opacity")).to_have_value("0.55")
    page.get_by_label("Class names").fill("moon")
    page.get_by_label("Class names").press("Enter")
    expect(names).to_have_count(5)
    page.get_by_role("button", name="Back to the samples").click()
    page.get_by_role("button", name="coffee").click()
    expect(names).to_have_text(["rocket", "sky", "tree", "cat", "moon"])


def test_code_has_a_line_for_each_stroke(opened: Page) -> None:
    page = opened.open()
    page.wait_for_selector(".card")
    opened.draw(HOUSE["strokes"])
    page.get_by_role("button", name="Code of the current request").click()
    for language in ("curl", "Python", "JavaScript"):
        page.get_by_role("button", name=language, exact=True).click()
        lines = [line.strip(" ,") for line in page.locator("#code code").inner_text().splitlines()]
        strokes = [json.loads(line) for line in lines if line.startswith("[[") and line.endswith("]]")]
        assert [len(stroke) for stroke in strokes] == [2] * len(HOUSE["strokes"])


def test_the_weight_goes_back_to_the_middle_where_nothing_is_weighed(opened: Page) -> None:
    page = opened.open()
    page.wait_for_selector(".card")
    opened.draw(HOUSE["strokes"])
    words, weight = page.get_by_label("Words", exact=True), page.get_by_label("Drawing against words")
    words.fill("fish")
    weight.fill("1")
    words.fill("")
    expect(weight).to_be_disabled()
    expect(weight).to_have_value("0.5")
