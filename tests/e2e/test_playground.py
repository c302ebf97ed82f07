"""The playground in a real browser: Debian's Chromium over the demo gallery, tab by tab."""

import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
import skimage.data
from pycocotools.coco import COCO

from app.domain import HOUSE
from tests.e2e.browser import CHROMIUM, WIDE, Page, Strokes, expect
from tests.e2e.test_mini import SKETCHES

FISH: Strokes = SKETCHES["fish"]["strokes"]
PHOTOGRAPHS = Path(skimage.data.__file__).parent
PHONE = {"width": 360, "height": 740}
TABS = ["", "?tab=segment", "?tab=teach", "?tab=galleries"]
MAX_PAGE_BYTES = 300_000
# Playwright does not see the parts of a form that holds files.
NOTE_FORMS = """window.forms = []; const send = fetch;
window.fetch = (url, init) => {
  if (init?.body instanceof FormData) forms.push([...init.body.keys()]);
  return send(url, init);
};"""
SHOWN = """(ids) => {
  const cards = [...document.querySelectorAll(".card")].slice(0, ids.length);
  return String(cards.map((card) => card.dataset.id)) === String(ids);
}"""
pytestmark = [pytest.mark.server, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


# --- Draw


def test_a_house_is_drawn_and_found_without_a_click(opened: Page) -> None:
    page = opened.open()
    expect(page.locator(".card figcaption").first).to_contain_text("house")
    assert page.locator(".timing").get_attribute("aria-label").startswith("decode")
    assert re.fullmatch(r"mini · CPU · [\d.]+ m?s", page.locator("#badge").inner_text())
    assert "d=" not in page.url  # nobody has drawn anything


def test_results_come_while_the_pen_is_down(opened: Page) -> None:
    page = opened.open()
    page.wait_for_selector(".card")
    page.get_by_role("button", name="Clear").click()
    page.wait_for_selector("text=Draw something")
    box = page.locator("canvas.pad").bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    moves = 0
    while not page.locator(".card").count():
        moves += 1
        assert moves < 5000
        page.mouse.move(box["x"] + 40 + moves % 150, box["y"] + 40 + moves // 10 % 150)
    page.mouse.up()


def test_a_fish_drawn_with_the_mouse_is_found_and_comes_back_by_its_address_and_undo(opened: Page) -> None:
    page = opened.open()
    page.wait_for_selector(".card img[src]")
    opened.draw(FISH)
    expect(page.locator(".card:nth-child(-n+10) figcaption", has_text="fish").first).to_be_visible()
    page.goto(page.url)  # the address holds the drawing
    expect(page.locator(".card:nth-child(-n+10) figcaption", has_text="fish").first).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    page.wait_for_selector("text=Draw something")
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector(".card")


def test_the_eraser_takes_strokes_that_undo_brings_back_and_redo_takes_again(opened: Page) -> None:
    page = opened.open()
    page.wait_for_selector(".card")
    opened.draw(HOUSE["strokes"])
    drawn = page.evaluate("location.href")
    page.get_by_role("button", name="Eraser").click()
    opened.draw([[[5, 250], [175, 175]]])
    erased = page.evaluate("location.href")
    assert len(erased) < len(drawn)
    for keys, wanted in (("Control+z", drawn), ("Control+Shift+Z", erased)):
        while page.evaluate("location.href") != wanted:  # the eraser took one stroke after the other
            before = page.evaluate("location.href")
            page.keyboard.press(keys)
            assert page.evaluate("location.href") != before


def test_words_search_and_go_into_the_address(opened: Page) -> None:
    page = opened.open("?q=fish")
    expect(page.locator(".card figcaption").first).to_contain_text("fish")
    page.get_by_label("Words", exact=True).fill("house")
    expect(page.locator(".card figcaption").first).to_contain_text("house")
    assert "q=house" in page.url


def test_a_drawing_and_words_are_weighed(opened: Page) -> None:
    page = opened.open()
    page.wait_for_selector(".card")
    opened.draw(HOUSE["strokes"])
    page.get_by_label("Words", exact=True).fill("fish")
    for weight, found in (("0.95", "fish"), ("0.05", "house")):
        page.get_by_label("Drawing against words").fill(weight)
        expect(page.locator(".card figcaption").first).to_contain_text(found)


def test_an_image_is_searched_for_as_an_image_and_a_sketch_as_one(opened: Page) -> None:
    opened.page.add_init_script(NOTE_FORMS)
    page = opened.open()
    page.wait_for_selector(".card")
    fish = httpx.get(f"{opened.base}/galleries/default/items/1f41f/image").content
    for kind, act in (
        ("image", lambda: opened.drop(".sheet", "fish.png", fish)),
        ("sketch", lambda: page.get_by_role("button", name="a sketch").click()),
    ):
        with page.expect_request("**/retrieve"):
            act()
        assert kind in page.evaluate("forms.at(-1)")
    page.get_by_role("button", name="an image", exact=True).click()
    expect(page.locator(".card figcaption").first).to_contain_text("fish")
    opened.draw(HOUSE["strokes"])  # a drawing takes the image's place
    expect(page.locator(".query-image")).to_have_count(0)


def test_results_resemble_liked_items_and_wait_on_teach_as_examples(opened: Page) -> None:
    page = opened.open("?q=fish")
    page.wait_for_selector(".card img[src]")
    for name in ("More like this", "Less like this"):
        card = page.locator(".card").nth(1)
        card.hover()
        card.get_by_role("button", name=name).click()
        page.wait_for_selector(".chips .positive" if "More" in name else ".chips .negative")
    page.locator(".card").first.hover()
    page.locator(".card").first.get_by_role("button", name="Use as example").click()
    page.locator("#waiting", has_text="1").wait_for()
    page.get_by_role("tab", name="Teach").click()
    page.locator(".tray").get_by_role("button", name="first").click()
    expect(page.locator(".class-column li")).to_have_count(1)


def test_an_item_of_another_gallery_with_the_same_id_is_another_item(opened: Page, client: httpx.Client) -> None:
    for gallery, name in (("cats", "chelsea.png"), ("cups", "coffee.png")):
        url = f"/galleries/{gallery}"
        assert client.put(url, json={}).status_code in (200, 201)
        metadata = {"metadata": json.dumps({"name": gallery})}
        image = {"image": (name, (PHOTOGRAPHS / name).read_bytes())}
        assert client.put(f"{url}/items/1", files=image, data=metadata).is_success
    page = opened.open("?gallery=cats&q=fish")
    expect(page.locator(".card figcaption")).to_have_text(["cats"])
    page.locator("#gallery").select_option("cups")
    expect(page.locator(".card figcaption")).to_have_text(["cups"])
    assert "/cups/items/1/" in page.locator(".card img").get_attribute("src")
    for gallery in ("cats", "cups"):
        assert client.delete(f"/galleries/{gallery}?confirm={gallery}").is_success


def test_scrolling_brings_the_next_results(opened: Page) -> None:
    page = opened.open("?q=fish")
    page.wait_for_selector(".card")
    page.mouse.wheel(0, 4000)
    page.locator(".card").nth(47).wait_for()
    ids = page.locator(".card").evaluate_all("(cards) => cards.map((card) => card.dataset.id)")
    assert len(ids) == len(set(ids))


def test_the_keyboard_alone_draws_and_opens_tabs(opened: Page) -> None:
    page = opened.open()
    page.wait_for_selector(".card")
    page.locator("canvas.pad").focus()
    page.keyboard.press("Space")
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
        for _ in range(8):
            page.keyboard.press(key)
    page.keyboard.press("Space")
    expect(page).to_have_url(re.compile("d="))
    page.locator("#tab-draw").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".samples")
    page.get_by_label("Class names").focus()
    page.keyboard.type("sky,tree\n")
    expect(page.locator(".chip.name")).to_have_count(2)
    page.keyboard.press("Backspace")
    expect(page.locator(".chip.name")).to_have_count(1)


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_the_code_of_a_request_runs_as_it_is(opened: Page, language: str) -> None:
    page = opened.open()
    page.wait_for_selector(".card")
    opened.draw(HOUSE["strokes"])
    page.get_by_label("Words", exact=True).fill("a 'small' house")
    expect(page).to_have_url(re.compile("small"))
    page.get_by_role("button", name="Code of the current request").click()
    page.get_by_role("button", name=language, exact=True).click()
    code = page.locator("#code code").inner_text()
    if language == "curl":
        found = [one["id"] for one in json.loads(_output("bash", "-c", code))["results"]]
    elif language == "Python":
        found = [line.split()[0] for line in _output(sys.executable, "-c", code).splitlines()]
    else:
        loaded = re.sub(r'import (\{.*\}) from (".*");', r"const \1 = await import(\2);", code)
        script = loaded.replace("console.log(found);", "return found.results.map((one) => one.id);")
        found = page.evaluate(f"async () => {{ {script} }}")
    assert len(found) >= 24
    page.wait_for_function(SHOWN, arg=found[:24])  # results move on until the last search is answered


# --- Segment


def test_a_sample_is_segmented_by_words_and_saved_in_every_form(opened: Page, tmp_path: Path) -> None:
    page = opened.open("?tab=segment")
    page.get_by_role("button", name="coffee").click()
    expect(page.locator(".legend li")).to_have_count(4)
    page.get_by_label("Class names").fill("plate,")
    page.get_by_label("Class names").press("Enter")
    expect(page.locator(".legend li")).to_have_count(5)
    assert "plate" in page.url
    page.locator(".legend li:not(.absent)").first.hover()
    expect(page.locator(".tip")).to_contain_text("of the image, score")
    for mode in ("Outline", "Cut out", "Fill"):
        page.get_by_role("button", name=mode, exact=True).click()
    page.get_by_label("smallest island").fill("1")
    page.wait_for_selector(".stage:not(.busy) .masks")
    files = {}
    for kind in ("COCO JSON", "polygons", "label map", "overlay", "cut-outs"):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind, exact=True).click()
        files[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[kind])
    coco = COCO(str(files["COCO JSON"]))
    assert len(coco.getCatIds()) == 5
    assert coco.imgs[1]["file_name"].startswith("coffee")
    assert json.loads(files["polygons"].read_text())["classes"][0]["name"] == "cup"
    for kind in ("label map", "overlay", "cut-outs"):
        assert files[kind].read_bytes().startswith(b"\x89PNG")


def test_class_sets_are_saved_chosen_and_deleted(opened: Page, client: httpx.Client) -> None:
    page = opened.open("?tab=segment&classes=cup,spoon")
    page.get_by_role("button", name="Save as set").click()
    page.get_by_label("Name of the class set").fill("table")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("button", name="coffee").click()
    expect(page.locator(".legend li")).to_have_count(2)
    page.get_by_role("button", name="Code of the current request").click()
    expect(page.locator("#code code")).to_contain_text("class_set=table")
    page.get_by_role("button", name="Delete set").click()
    expect(page.get_by_label("Class set", exact=True)).to_be_hidden()
    assert client.get("/class-sets").json()["total"] == 0


# --- Teach


def test_classes_are_taught_and_a_wrong_answer_is_corrected(opened: Page, tmp_path: Path) -> None:
    page = opened.open("?tab=teach")
    _give(page, ".class-column >> nth=0", "chelsea.png", "astronaut.png")
    _give(page, ".class-column >> nth=1", "coffee.png", "coins.png")
    expect(page.locator(".verdict")).to_contain_text("Too few to trust: give each class 4.")
    assert "episode=ep_" in page.url
    _give(page, ".asking", "rocket.jpg", "moon.png")
    expect(page.locator(".query-card .correction")).to_have_count(2)
    page.get_by_label("Abstain below this probability").fill("1")
    assert page.locator(".asking label .figures").inner_text().endswith("0 of 2 answered")
    page.locator(".query-card .chip").first.click()
    expect(page.locator(".class-column li")).to_have_count(5)
    page.get_by_label("Name of the class").first.fill("living")
    page.get_by_label("Name of the class").first.press("Enter")
    page.locator(".confusion th[title=living]").first.wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    download.value.save_as(tmp_path / "episode.json")
    page.goto(page.url)
    expect(page.locator(".class-column li")).to_have_count(5)
    page.get_by_role("button", name="New", exact=True).click()
    expect(page.locator(".class-column li")).to_have_count(0)
    page.locator("input[accept*=json]").set_input_files(tmp_path / "episode.json")
    expect(page.locator(".class-column li")).to_have_count(5)


def test_a_folder_of_folders_becomes_classes(opened: Page, tmp_path: Path) -> None:
    for label, names in {"living": ("chelsea.png", "astronaut.png"), "things": ("coffee.png", "coins.png")}.items():
        (tmp_path / "examples" / label).mkdir(parents=True)
        for name in names:
            shutil.copy(PHOTOGRAPHS / name, tmp_path / "examples" / label)
    page = opened.open("?tab=teach")
    empty = page.locator(".class-column").first
    assert empty.evaluate("(column) => column.scrollWidth <= column.clientWidth")
    page.locator(".teach input[webkitdirectory]").set_input_files(tmp_path / "examples")
    page.wait_for_url("**episode=ep_*")
    expect(page.locator(".class-column li")).to_have_count(4)
    names = page.get_by_label("Name of the class").evaluate_all("(boxes) => boxes.map((box) => box.value)")
    assert names == ["living", "things"]
    fits = "(all) => all.every((one) => one.scrollWidth <= one.clientWidth)"
    page.get_by_role("button", name="Add a class").click()  # with a third, each can be removed
    assert page.locator(".class-column").evaluate_all(fits)


def test_a_change_from_elsewhere_is_reported_and_shown(opened: Page, client: httpx.Client) -> None:
    opened.tolerated = ("412",)
    page = opened.open("?tab=teach")
    _give(page, ".class-column >> nth=0", "chelsea.png")
    _give(page, ".class-column >> nth=1", "coffee.png")
    page.wait_for_url("**episode=ep_*")
    episode = page.url.rpartition("=")[2]
    changed = client.patch(
        f"/fewshot/episodes/{episode}", json={"labels": {"first": "elsewhere"}}, headers={"If-Match": '"1"'}
    )
    assert changed.status_code == 200
    _give(page, ".class-column >> nth=0", "moon.png")
    page.locator("#notice", has_text="Changed elsewhere").wait_for()
    expect(page.get_by_label("Name of the class").first).to_have_value("elsewhere")


# --- Galleries


def test_a_folder_a_zip_and_a_table_are_imported_filtered_and_deleted(opened: Page, tmp_path: Path) -> None:
    page = opened.open("?tab=galleries")
    page.get_by_label("Name of a new gallery").fill("browser")
    page.get_by_role("button", name="Create").click()
    page.wait_for_selector(".gallery h2 >> text=browser")
    page.locator(".drop input[webkitdirectory]").set_input_files(_folder(tmp_path))
    page.get_by_label("Type of year").wait_for()
    page.get_by_role("button", name="Import 5 images").click()
    page.wait_for_selector("text=4 images added.")
    page.get_by_text("1 rejected").click()
    assert "broken" in page.locator(".import-report").inner_text()
    expect(page.locator(".items .card")).to_have_count(4)
    page.locator(".facets").get_by_role("button", name="2021").click()
    expect(page.locator(".items .card")).to_have_count(1)
    assert page.locator(".items figcaption").text_content() == "coffee"  # rendered or not
    page.get_by_role("tab", name="Draw").click()
    expect(page.locator(".results:not(.items) .card")).to_have_count(4)
    page.locator(".facets").get_by_role("button", name="2019").click()
    expect(page.locator(".results:not(.items) .card")).to_have_count(2)
    page.get_by_role("tab", name="Galleries").click()
    page.get_by_label("Type browser to delete it").fill("browser")
    page.get_by_role("tab", name="Teach").click()
    page.get_by_role("tab", name="Galleries").click()  # the gallery is shown again, and what was typed stays
    expect(page.locator(".items .card")).to_have_count(4)
    page.locator(".items img").evaluate_all("images => Promise.all(images.map((image) => image.decode()))")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.wait_for_selector(".gallery h2 >> text=default")


def test_odd_names_are_imported_and_every_other_file_is_named(
    opened: Page, client: httpx.Client, tmp_path: Path
) -> None:
    page = opened.open("?tab=galleries")
    page.get_by_label("Name of a new gallery").fill("My Photos")
    page.get_by_role("button", name="Create").click()
    page.wait_for_selector(".gallery h2 >> text=my-photos")
    (tmp_path / "été (1)").mkdir()
    for name in ("no_suffix", "猫 #1.PNG"):
        shutil.copy(PHOTOGRAPHS / "chelsea.png", tmp_path / "été (1)" / name)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    page.locator(".drop input[webkitdirectory]").set_input_files(tmp_path)
    page.get_by_text("1 left out").click()
    assert "notes.txt" in page.locator(".import-report").inner_text()
    page.get_by_role("button", name="Import 3 images").click()
    page.wait_for_selector("text=2 images added.")
    page.get_by_text("1 rejected").click()
    assert "broken.jpg" in page.locator(".import-report").inner_text()
    expect(page.locator(".items .card")).to_have_count(2)
    page.locator(".items img").evaluate_all("images => Promise.all(images.map((image) => image.decode()))")
    assert client.delete("/galleries/my-photos?confirm=my-photos").status_code == 204


def test_an_empty_gallery_offers_the_demo_and_a_folder(opened: Page, client: httpx.Client) -> None:
    client.put("/galleries/empty", json={})
    page = opened.open("?gallery=empty")
    page.get_by_role("button", name="Import my folder").wait_for()
    page.get_by_role("button", name="Add the demo images").click()
    page.locator(".import-report", has_text="16 of 1,656 added").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.locator(".items .card").first.wait_for()
    stored = client.get("/galleries/empty/items?limit=1").json()["items"][0]
    original = client.get(f"/galleries/default/items/{stored['id']}").json()
    assert stored["metadata"] == original["metadata"]
    page.goto("about:blank")  # it would ask for more
    assert client.delete("/galleries/empty?confirm=empty").status_code == 204


# --- Everywhere


@pytest.mark.parametrize("tab", TABS)
def test_it_fits_a_phone_in_the_dark(browser: Any, client: httpx.Client, tab: str) -> None:
    phone = Page(browser, str(client.base_url), viewport=PHONE, color_scheme="dark", has_touch=True)
    page = phone.open(tab)
    page.wait_for_selector(".card, .samples, .class-column")
    assert page.locator("html").evaluate("(html) => html.scrollWidth") <= 360
    if not tab:
        phone.touch(FISH)
        expect(page.locator(".card:nth-child(-n+10) figcaption", has_text="fish").first).to_be_visible()
    phone.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("tab", TABS)
def test_axe_finds_nothing_serious(browser: Any, client: httpx.Client, tab: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    seen = Page(browser, str(client.base_url), viewport=WIDE, color_scheme=scheme, reduced_motion="reduce")
    page = seen.open(tab)
    page.wait_for_selector(".card img, .samples, .class-column")
    page.locator("#code-button").click()
    found = axe.Axe().run(page).response["violations"]
    assert not [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
    seen.close()


def test_the_page_is_small_and_allows_nothing_but_itself(opened: Page, client: httpx.Client) -> None:
    page = opened.open()
    for tab in ("Segment", "Teach", "Galleries"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_selector(".samples, .class-column, .items")
    seen = page.evaluate("performance.getEntries().map(({ name, decodedBodySize: bytes }) => [name, bytes])")
    own = {url: size for url, size in seen if re.search(r"/$|/playground/[^/]*\.(js|css|svg)$", url)}
    assert len(own) > 15
    assert sum(own.values()) < MAX_PAGE_BYTES
    answer = client.get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    again = client.get("/", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/playground/../settings.py").status_code == 404
    assert client.get("/playground/demo/none").status_code == 404
    assert client.get("/playground/main.js").headers["content-type"].startswith("text/javascript")


def test_live_search_closed_while_it_connects_ends_without_a_warning(opened: Page) -> None:
    page = opened.open()
    was_opened = page.evaluate(
        """async () => {
          const { Vermouth } = await import("/playground/vermouth.js");
          const live = new Vermouth().live();
          live.close();
          const { socket } = live;
          const opened = new Promise((resolve) => socket.addEventListener("open", () => resolve(true)));
          const closed = new Promise((resolve) => socket.addEventListener("close", () => resolve(false)));
          const wasOpened = await Promise.race([opened, closed]);
          await closed;
          return wasOpened;
        }"""
    )
    assert was_opened


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def _give(page: Any, place: str, *names: str) -> None:
    page.locator(f"{place} >> input[type=file]").set_input_files([PHOTOGRAPHS / name for name in names])


def _folder(tmp_path: Path) -> Path:
    """A folder with a table, a ZIP, and a file that is no image."""
    folder = tmp_path / "things"
    folder.mkdir()
    for name in ("chelsea.png", "coffee.png", "moon.png"):
        shutil.copy(PHOTOGRAPHS / name, folder / name)
    (folder / "things.csv").write_text("path;year;sku\nchelsea.png;2019;007\ncoffee.png;2021;012\nmoon.png;2019;013\n")
    (folder / "broken.png").write_bytes(b"no image")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(PHOTOGRAPHS / "rocket.jpg", "deep/rocket.jpg")
        archive.writestr("__MACOSX/deep/._rocket.jpg", b"junk")
    (folder / "more.zip").write_bytes(content.getvalue())
    return folder
