"""What the playground does with first words, second images, damaged and repeated files, and keys."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import skimage.data

from app.domain import HOUSE
from tests.e2e.browser import CHROMIUM, Page, expect

PHOTOGRAPHS = Path(skimage.data.__file__).parent
pytestmark = [pytest.mark.server, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


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


@pytest.mark.parametrize(
    ("tab", "place", "notice"),
    [
        ("", ".sheet", "#notice"),
        ("?tab=segment", ".stage", "#notice"),
        ("?tab=teach", ".class-column", ".note"),
        ("?tab=teach", ".asking", ".note"),
    ],
)
def test_a_dropped_folder_is_named(opened: Page, tmp_path: Path, tab: str, place: str, notice: str) -> None:
    (tmp_path / "holiday").mkdir()
    page = opened.open(tab)
    box = page.locator(place).first.bounding_box()
    session = page.context.new_cdp_session(page)  # only the browser itself hands out a folder
    dragged = {"items": [], "files": [str(tmp_path / "holiday")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": box["x"] + 20, "y": box["y"] + 20, "data": dragged}
        session.send("Input.dispatchDragEvent", event)
    expect(page.locator(notice)).to_contain_text("holiday")
    expect(page.locator(notice)).to_contain_text("is not an image.")


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


def test_a_class_with_synonyms_is_one_class_also_by_its_address_and_in_a_set(
    opened: Page, client: httpx.Client
) -> None:
    page = opened.open("?tab=segment")
    page.get_by_label("Class names").press_sequentially("cat=kitten,tabby\nsofa,")
    expect(page.locator(".chip.name")).to_have_text(["cat=kitten,tabby ×", "sofa ×"])
    page.goto(page.evaluate("location.href"))
    expect(page.locator(".chip.name")).to_have_text(["cat=kitten,tabby ×", "sofa ×"])
    page.get_by_role("button", name="cat", exact=True).click()
    expect(page.locator(".legend .name")).to_have_text(["cat", "sofa"])
    page.get_by_role("button", name="Save as set").click()
    page.get_by_label("Name of the class set").fill("pets")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("button", name="Delete set").wait_for()
    assert client.get("/class-sets/pets").json()["classes"][0]["synonyms"] == ["kitten", "tabby"]
    expect(page.locator(".chip.name")).to_have_text(["cat=kitten,tabby ×", "sofa ×"])
    assert client.delete("/class-sets/pets").is_success


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


def test_a_damaged_example_is_named_and_left_out_while_the_others_are_taught(opened: Page, tmp_path: Path) -> None:
    opened.tolerated = ("400",)
    (tmp_path / "cut.png").write_bytes((PHOTOGRAPHS / "coffee.png").read_bytes()[:20_000])
    (tmp_path / "broken.png").write_bytes(b"no image")
    page = opened.open("?tab=teach")
    first, second, queries = (page.locator(place) for place in (_column(0), _column(1), ".asking"))
    _give(queries, tmp_path / "broken.png", PHOTOGRAPHS / "moon.png")
    expect(queries.locator(".query-card .figures")).to_have_text(["waits for classes"] * 2)
    _give(first, PHOTOGRAPHS / "chelsea.png", tmp_path / "cut.png")
    _give(second, tmp_path / "broken.png", PHOTOGRAPHS / "coffee.png")
    page.wait_for_url("**episode=ep_*")
    expect(first.locator("li")).to_have_count(2)
    expect(first.locator(".unread")).to_have_text("cut.png is left out. The image is truncated or damaged.")
    expect(second.locator(".unread")).to_have_text("broken.png is left out. The bytes are not an image.")
    expect(page.locator(".note")).to_contain_text("cut.png, broken.png cannot be read and are left out.")
    expect(page.locator(".verdict")).to_contain_text("Give every class a second example")
    expect(page.locator("#notice")).to_be_empty()
    expect(queries.locator(".query-card")).to_have_count(1)
    expect(queries.locator(".query-card .correction")).to_have_count(1)
    first.get_by_role("button", name="Remove this example").last.click()
    expect(first.locator("li")).to_have_count(1)


def test_the_same_image_counts_once_in_a_class(opened: Page, tmp_path: Path) -> None:
    page = opened.open("?tab=teach")
    first, second = (page.locator(_column(at)) for at in range(2))
    (tmp_path / "copy.png").write_bytes((PHOTOGRAPHS / "chelsea.png").read_bytes())
    _give(first, PHOTOGRAPHS / "chelsea.png", tmp_path / "copy.png")
    expect(page.locator(".note")).to_have_text("copy.png is in “first” already: the same image counts once.")
    _give(second, PHOTOGRAPHS / "coffee.png")
    page.wait_for_url("**episode=ep_*")
    page.goto(page.url)  # the service knows them too
    expect(first.locator("li")).to_have_count(1)
    _give(first, PHOTOGRAPHS / "moon.png", tmp_path / "copy.png")
    expect(first.locator("li")).to_have_count(2)
    expect(page.locator(".note")).to_contain_text("copy.png")
    _give(second, tmp_path / "copy.png")  # of another class it may be an example
    expect(second.locator("li")).to_have_count(2)
    expect(page.locator(".note")).to_be_empty()


def test_cleared_classes_can_be_brought_back(opened: Page) -> None:
    page = opened.open("?tab=teach")
    examples = page.locator(".class-column li")
    page.get_by_role("button", name="New", exact=True).click()
    expect(page.locator(".note")).to_be_empty()  # there was nothing to clear
    _give(page.locator(_column(0)), PHOTOGRAPHS / "chelsea.png", PHOTOGRAPHS / "astronaut.png")
    _give(page.locator(_column(1)), PHOTOGRAPHS / "coffee.png")
    page.wait_for_url("**episode=ep_*")
    address = page.url
    _give(page.locator(".asking"), PHOTOGRAPHS / "moon.png")
    expect(page.locator(".query-card .correction")).to_have_count(1)
    page.get_by_role("button", name="New", exact=True).click()
    expect(examples).to_have_count(0)
    expect(page.locator(".note")).to_contain_text("3 examples and the classes are cleared.")
    page.get_by_role("button", name="Undo").click()
    expect(examples).to_have_count(3)
    expect(page).to_have_url(address)
    expect(page.locator(".query-card .correction")).to_have_count(1)
    expect(page.locator(".note")).to_be_empty()


def _column(number: int) -> str:
    return f".class-column >> nth={number}"


def _give(place: Any, *files: Path) -> None:
    place.locator("input[type=file]").set_input_files(files)
