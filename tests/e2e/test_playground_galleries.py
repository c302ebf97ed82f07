"""The Galleries tab in a real browser: what is imported, as what, and what the page says of the rest."""

import hashlib
import io
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.cli.importing.archives import read_folder
from app.cli.importing.files import SourceOptions
from app.cli.importing.tables import read_table
from tests.app.test_server import started
from tests.e2e.browser import CHROMIUM, Page, expect
from vermouth_client.bulk import item_id

pytestmark = [pytest.mark.server, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]
PHONE = {"width": 360, "height": 740}
LIMIT_S = 600
FOLDER = ".drop input[webkitdirectory]"
FILES = ".drop input[type=file]:not([webkitdirectory])"
LINE = {"strokes": [[[0, 9], [0, 9]]], "width": 10, "height": 10}
TABLE = """path;Caption;year;sku;ID
house/h0.png; a red house ;2019;007;
house\\h1.png;;2021;012;second
./tree.png;a tree;2019;013;

http://example.org/a.png;;;;
house/missing.png;a house;2020;1;
house/h2.png;too;many;cells;;here
house/h3.png;;;;no id
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with a fake encoder: images are stored as ever, and search is not the point here."""
    with started("free", tmp_path_factory.mktemp("data"), limit_s=LIMIT_S) as process, process.connect() as connected:
        process.wait_for("ready")
        yield connected


@pytest.fixture
def gallery(client: httpx.Client) -> Iterator[str]:
    """The name of an empty gallery; requested before a page, it is deleted after that is closed."""
    client.put("/galleries/mine").raise_for_status()
    yield "mine"
    client.delete("/galleries/mine?confirm=mine").raise_for_status()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with five images and a table that names four of them, a missing one and a URL."""
    (tmp_path / "things/house").mkdir(parents=True)
    for at, name in enumerate(("house/h0.png", "house/h1.png", "house/h2.png", "house/h3.png", "tree.png")):
        (tmp_path / "things" / name).write_bytes(_image(at))
    (tmp_path / "things/table.csv").write_text(TABLE)
    return tmp_path / "things"


def test_a_table_means_the_same_to_the_page_and_to_the_command_line(
    gallery: str, opened: Page, client: httpx.Client, folder: Path
) -> None:
    page = _import(opened, gallery, folder, "Import 3 images")
    page.get_by_text("4 rejected").click()
    shown = page.locator(".import-report li").all_inner_texts()
    rows = [row for row in read_table(folder / "table.csv", SourceOptions()) if row.skip is None]
    faults = [f"{row.name}: {row.fault}".translate(str.maketrans("'", "“")) for row in rows if row.fault]
    assert [line.replace("”", "“") for line in shown] == faults
    assert "house/missing.png (row 7): there is no such file" in shown
    items = client.get(f"/galleries/{gallery}/items").json()["items"]
    assert {item["id"]: item["caption"] for item in items} == {row.id: row.caption for row in rows if not row.fault}
    stored = {item["id"]: item["metadata"] for item in items}
    for row in rows:
        assert row.fault or stored[row.id] == stored[row.id] | row.metadata


def test_a_folder_gets_the_ids_of_the_command_line_and_is_replaced_by_a_second_import(
    gallery: str, opened: Page, client: httpx.Client, folder: Path
) -> None:
    (folder / "table.csv").unlink()
    page = _import(opened, gallery, folder, "Import 5 images")
    page.wait_for_selector("text=5 images added.")
    items = client.get(f"/galleries/{gallery}/items").json()["items"]
    assert {item["id"] for item in items} == {one.id for one in read_folder(folder, SourceOptions())}
    assert {item["metadata"]["path"] for item in items} >= {"house/h0.png", "tree.png"}
    (folder / "new.png").write_bytes(_image(9))
    page = _import(opened, gallery, folder, "Import 6 images")
    page.wait_for_selector("text=1 image added, 5 images replaced (already in the gallery).")
    assert client.get(f"/galleries/{gallery}").json()["count"] == 6


def test_ids_and_digests_are_those_of_the_client(opened: Page) -> None:
    page = opened.open("?tab=galleries")
    names = [
        "cat.png",
        "pets/cat.png",
        "été (1)/猫 #1.PNG",
        "a" * 128,
        "a" * 129,
        "._x/.y",
        "🐈.png",
        "e\u0301.png",
        "-",
    ]
    made = page.evaluate(
        "async (names) => { const { idOf } = await import('/playground/archive.js'); return names.map(idOf); }", names
    )
    assert made == [item_id(name) for name in names]
    data = [random.Random(size).randbytes(size) for size in [*range(150), 10_000]]
    digests = page.evaluate(
        "async (data) => { const { sha256 } = await import('/playground/sha256.js');"
        "return data.map((bytes) => sha256(Uint8Array.from(bytes))); }",
        [list(each) for each in data],
    )
    assert digests == [hashlib.sha256(each).hexdigest() for each in data]


def test_files_are_picked_with_the_keyboard(
    gallery: str, opened: Page, client: httpx.Client, folder: Path, tmp_path: Path
) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.write(folder / "tree.png", "photos/tree.png")
    (tmp_path / "more.zip").write_bytes(content.getvalue())
    (tmp_path / "more.csv").write_text("file,caption\nh0.png,a house\ntree.png,a tree\n")
    page = opened.open(f"?tab=galleries&gallery={gallery}")
    page.wait_for_load_state("networkidle")  # the gallery is shown whole: a new button would not have the focus
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Pick files…").press("Enter")
    assert chooser.value.is_multiple()
    chooser.value.set_files([tmp_path / "more.zip", tmp_path / "more.csv", folder / "house/h0.png"])
    page.get_by_role("button", name="Import 2 images").press("Enter")
    page.wait_for_selector("text=2 images added.")
    captions = {item["id"]: item["caption"] for item in client.get(f"/galleries/{gallery}/items").json()["items"]}
    assert captions == {"h0.png": "a house", item_id("photos/tree.png"): "a tree"}  # as inside the archive


def test_paths_begin_inside_a_folder_that_is_dropped_alone(opened: Page) -> None:
    page = opened.open()
    paths = page.evaluate("""async () => {
      const { filesOf } = await import("/playground/archive.js");
      const file = (name) => ({ isFile: true, name, file: (take) => take(new File([], name)) });
      const reader = (parts) => ({ readEntries: (take) => take(parts.splice(0, 1)) });
      const folder = (name, parts) => ({ isDirectory: true, name, createReader: () => reader(parts) });
      const itemOf = (entry) => ({ webkitGetAsEntry: () => entry });
      const dropped = async (...entries) => {
        const found = await filesOf({ items: entries.map(itemOf) });
        return found.map(({ path }) => path);
      };
      const pets = () => folder("pets", [file("a.png"), folder("cats", [file("b.png")])]);
      return [await dropped(pets()), await dropped(pets(), file("c.png")), await dropped(file("c.png"))];
    }""")
    assert paths == [["a.png", "cats/b.png"], ["pets/a.png", "pets/cats/b.png", "c.png"], ["c.png"]]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("table.csv", "path,year\ncat.png,2020\n", "“table.csv” names images but has none itself"),
        ("empty.csv", "", "“empty.csv” names images but has none itself"),
        ("plan.pdf", "%PDF", "“plan.pdf” is not an image."),
        ("broken.zip", "PK", "There is no image to import here."),
    ],
)
def test_a_file_without_images_gets_a_reason_and_no_button(
    opened: Page, tmp_path: Path, name: str, content: str, reason: str
) -> None:
    (tmp_path / name).write_text(content)
    page = opened.open("?tab=galleries")
    page.locator(FILES).set_input_files(tmp_path / name)
    expect(page.locator(".import-report")).to_contain_text(reason)
    assert page.locator(".import-report button").count() == 0


def test_counts_follow_the_deletion_of_an_item(gallery: str, opened: Page, folder: Path) -> None:
    page = _import(opened, gallery, folder, "Import 3 images")
    page.locator(".facets").get_by_role("button", name="2019").click()
    expect(page.locator(".items .card")).to_have_count(2)
    page.get_by_role("button", name="Delete tree").click()
    expect(page.locator(".items .card")).to_have_count(1)
    expect(page.locator(".gallery h2 + .figures")).to_contain_text("2 items")
    expect(page.locator(".gallery-list [aria-current=true] .figures")).to_have_text("2")
    expect(page.locator("#gallery option:checked")).to_have_text("mine (2)")
    expect(page.locator(".facets").get_by_role("button", name="2019", pressed=True)).to_contain_text("1")
    page.get_by_role("button", name="Delete h0").click()  # with it goes the chip, and what it hid is shown
    expect(page.locator(".items figcaption")).to_have_text(["h1"])
    expect(page.locator(".gallery h2 + .figures")).to_contain_text("1 items")


def test_items_are_called_by_their_files_and_chips_are_not(gallery: str, opened: Page, client: httpx.Client) -> None:
    for at in range(12):  # every name twice, in two folders
        metadata = {"path": f"{at % 2}/house {at // 2}.png", "name_of": f"house {at // 2}", "size": at % 4}
        item = {"id": f"i{at}", "metadata": metadata, "image": LINE}
        answer = client.post(f"/galleries/{gallery}/items", json=[item])
        assert answer.json()["results"][0]["status"] == "created"
    page = opened.open(f"?tab=galleries&gallery={gallery}")
    expect(page.locator(".items .card")).to_have_count(12)
    assert set(page.locator(".items figcaption").all_text_contents()) == {f"house {at}" for at in range(6)}
    expect(page.locator(".facets .field")).to_have_text(["size"])
    page = opened.open(f"?gallery={gallery}")
    expect(page.locator(".card figcaption").first).to_contain_text("house")


def test_a_name_that_no_gallery_can_have_is_refused_in_a_sentence(opened: Page, client: httpx.Client) -> None:
    page = opened.open("?tab=galleries")
    box = page.get_by_label("Name of a new gallery")
    for name in ("猫", "-a", "", "a" * 65, "photos/2026"):
        box.fill(name)
        expect(page.locator("#gallery-problem")).to_be_empty()
        box.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("letters a–z, digits, _ and -")
        assert box.input_value() == name
    box.fill(" My  Photos ")
    box.press("Enter")
    page.wait_for_selector(".gallery h2 >> text=my-photos")
    assert client.delete("/galleries/my-photos").status_code == 204


def test_the_preview_of_a_table_and_the_name_of_a_gallery_fit_a_phone(
    browser: Any, client: httpx.Client, gallery: str, folder: Path
) -> None:
    long = "x" * 90
    lines = [f"path,{long},note", *(f"house/h{at}.png,{long},{'some words ' * 9}" for at in range(4))]
    (folder / "table.csv").write_text("\n".join([*lines, f"{long}.png,,"]))
    phone = Page(browser, str(client.base_url), viewport=PHONE, has_touch=True)
    phone.page.route(
        "**/galleries", lambda route: route.fulfill(json={"galleries": [_listed("default", 1656), _listed(gallery, 0)]})
    )
    page = phone.open("?tab=galleries")
    page.locator(FOLDER).set_input_files(folder)
    page.get_by_text("1 rejected").click()
    page.get_by_label("Type of note").wait_for()
    assert page.locator("html").evaluate("(html) => html.scrollWidth") <= 360
    for part in (".import-report > *", ".columns :is(select, caption)", ".gallery > *"):
        boxes = page.locator(part).evaluate_all("(all) => all.map((one) => one.getBoundingClientRect().right)")
        assert max(boxes) <= 360
    picker = page.locator("#gallery")
    expect(picker.locator("option:checked")).to_have_text("default (1,656)")
    whole = "(one) => { one.style.maxWidth = 'none'; return one.getBoundingClientRect().width; }"
    assert picker.bounding_box()["width"] == picker.evaluate(whole)
    phone.close()


def _import(opened: Page, gallery: str, folder: Path, button: str) -> Any:
    page = opened.open(f"?tab=galleries&gallery={gallery}")
    page.locator(FOLDER).set_input_files(folder)
    page.get_by_role("button", name=button).click()
    page.wait_for_selector(".import-report >> text=added")
    page.locator(".items .card").first.wait_for()
    return page


def _image(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (32, 32), (20 * shade, 90, 160)).save(content, "PNG")
    return content.getvalue()


def _listed(name: str, count: int) -> dict[str, object]:
    return {"name": name, "count": count, "description": ""}
