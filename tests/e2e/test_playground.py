"""The playground in a real browser: Debian's Chromium over the demo gallery."""

import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import skimage.data

from tests.e2e.test_mini import FISH

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SLOW_MS = 60_000
PHOTOGRAPHS = Path(skimage.data.__file__).parent
pytestmark = [pytest.mark.server, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        expect.set_options(timeout=SLOW_MS)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Page:
    """A page of the playground that records what should not happen."""

    def __init__(self, browser: Any, client: httpx.Client, **options: Any) -> None:
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 860}, **options})
        self.page.set_default_timeout(SLOW_MS)
        self.faults: list[str] = []
        self.base = str(client.base_url)
        self.page.on(
            "console", lambda line: self.faults.append(line.text) if line.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda sent: self.faults.append(sent.url) if not self._is_own(sent.url) else None)

    def open(self, query: str = "") -> Any:
        self.page.goto(f"{self.base}/{query}")
        return self.page

    def close(self) -> None:
        self.page.close()
        assert not self.faults

    def _note(self, fault: str, is_fine: bool = False) -> None:
        if not is_fine:
            self.faults.append(fault)

    def _is_own(self, url: str) -> bool:
        return url.startswith((self.base, self.base.replace("http", "ws"), "blob:", "data:"))


@pytest.fixture
def opened(browser: Any, client: httpx.Client) -> Iterator[Page]:
    page = Page(browser, client)
    yield page
    page.close()


def test_a_house_is_drawn_and_found_without_a_click(opened: Page) -> None:
    page = opened.open()
    expect(page.locator(".card figcaption").first).to_contain_text("house")
    assert page.locator(".timing").get_attribute("aria-label").startswith("decode")


def test_a_fish_drawn_with_the_mouse_is_found_while_the_pen_is_down(opened: Page) -> None:
    page = opened.open()
    page.wait_for_selector(".card img[src]")
    _draw(page, FISH["strokes"])  # type: ignore[arg-type]  # of a dict of several types
    expect(page.locator(".card:nth-child(-n+10) figcaption", has_text="fish").first).to_be_visible()


def test_words_search_and_go_into_the_address(opened: Page) -> None:
    page = opened.open()
    page.wait_for_selector(".card")
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Words", exact=True).fill("fish")
    expect(page.locator(".card figcaption").first).to_contain_text("fish")
    assert "q=fish" in page.url
    page.reload()
    expect(page.locator(".card figcaption").first).to_contain_text("fish")


def test_the_keyboard_draws(opened: Page) -> None:
    page = opened.open()
    page.wait_for_selector(".card")
    page.locator("canvas.pad").focus()
    page.keyboard.press("Space")
    for key, times in (("ArrowRight", 8), ("ArrowDown", 8), ("ArrowLeft", 8), ("ArrowUp", 8)):
        for _ in range(times):
            page.keyboard.press(key)
    page.keyboard.press("Space")
    expect(page.locator(".card").nth(9)).to_be_visible()


def test_more_like_a_result_searches_with_it(opened: Page) -> None:
    page = opened.open()
    page.wait_for_selector(".card img[src]")
    time.sleep(1.5)  # the house is whole then
    page.locator(".card").first.hover()
    page.locator(".card").first.get_by_role("button", name="More like this").click()
    page.wait_for_selector(".chips .positive")


def test_a_sample_is_segmented_by_words(opened: Page) -> None:
    page = opened.open("?tab=segment")
    page.get_by_role("button", name="coffee").click()
    page.wait_for_selector(".legend li")
    assert page.locator(".legend li").count() == 4
    page.get_by_label("Class names").fill("plate,")
    page.get_by_label("Class names").press("Enter")
    expect(page.locator(".legend li")).to_have_count(5)
    page.locator("#code-button").click()
    assert "classes=plate" in page.locator("#code").inner_text()


def test_classes_are_taught_and_a_wrong_answer_is_corrected(opened: Page) -> None:
    page = opened.open("?tab=teach")
    _give(page, ".class-column >> nth=0", "chelsea.png", "astronaut.png")
    _give(page, ".class-column >> nth=1", "coffee.png", "coins.png")
    page.wait_for_selector(".confusion")
    assert "episode=ep_" in page.url
    _give(page, ".asking", "rocket.jpg", "moon.png")
    page.wait_for_selector(".query-card .figures")
    page.get_by_label("Abstain below this probability").fill("1")
    assert page.locator(".asking label .figures").inner_text().endswith("0 of 2 answered")
    page.locator(".query-card summary").first.click()
    page.locator(".query-card .chip").first.click()
    expect(page.locator(".class-column li")).to_have_count(5)
    page.reload()
    expect(page.locator(".class-column li")).to_have_count(5)


def test_a_folder_a_zip_and_a_table_are_imported(opened: Page, tmp_path: Path) -> None:
    folder = tmp_path / "things"
    folder.mkdir()
    for name in ("chelsea.png", "coffee.png"):
        shutil.copy(PHOTOGRAPHS / name, folder / name)
    (folder / "things.csv").write_text("path;year;sku\nchelsea.png;2019;007\ncoffee.png;2021;012\n")
    (folder / "broken.png").write_bytes(b"no image")
    with zipfile.ZipFile(folder / "more.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(PHOTOGRAPHS / "rocket.jpg", "deep/rocket.jpg")
        archive.writestr("__MACOSX/deep/._rocket.jpg", b"junk")
    page = opened.open("?tab=galleries")
    page.get_by_label("Name of a new gallery").fill("browser")
    page.get_by_role("button", name="Create").click()
    page.wait_for_selector(".gallery h2 >> text=browser")
    page.locator(".drop input[type=file]").set_input_files(folder)
    page.get_by_role("button", name="Import 4 images").click()
    page.wait_for_selector("text=3 images added.")
    page.get_by_text("1 rejected").click()
    assert "broken" in page.locator(".import-report").inner_text()
    page.get_by_label("Filter by this field").fill("year")
    page.get_by_label("Value of the field").fill("2021")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator(".items .card")).to_have_count(1)
    assert page.locator(".items figcaption").text_content() == "coffee"  # rendered or not
    page.get_by_label("Type browser to delete it").fill("browser")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.wait_for_selector(".gallery h2 >> text=default")


@pytest.mark.parametrize("tab", ["", "?tab=segment", "?tab=teach", "?tab=galleries"])
def test_it_fits_a_phone_in_the_dark(browser: Any, client: httpx.Client, tab: str) -> None:
    phone = Page(browser, client, viewport={"width": 360, "height": 740}, color_scheme="dark", has_touch=True)
    page = phone.open(tab)
    page.wait_for_selector(".card, .samples, .class-column")
    assert page.locator("html").evaluate("(html) => html.scrollWidth") <= 360
    phone.close()


def test_the_page_allows_nothing_but_itself(client: httpx.Client) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    again = client.get("/", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/playground/../settings.py").status_code == 404
    assert client.get("/playground/main.js").headers["content-type"].startswith("text/javascript")


def _draw(page: Any, strokes: list[Any]) -> None:
    box = page.locator("canvas.pad").bounding_box()
    scale = box["width"] / 256
    for xs, ys in strokes:
        points = [(box["x"] + x * scale, box["y"] + y * scale) for x, y in zip(xs, ys, strict=True)]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=6)
        page.mouse.up()


def _give(page: Any, place: str, *names: str) -> None:
    page.locator(f"{place} >> input[type=file]").set_input_files([PHOTOGRAPHS / name for name in names])
