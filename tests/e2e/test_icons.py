"""SVG icons: of few pixels and with features beyond the subset, over HTTP and in the browser."""

import re
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.imaging.demo import demo_images
from tests.e2e.browser import CHROMIUM, Page, expect

pytestmark = pytest.mark.server
SIDE_PX, EVERY, LEAST = 16, 20, 0.95
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
# A heart whose fill is a gradient and whose shape is used by reference: the service's subset has neither.
HEART = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><defs><linearGradient id="a">
<stop offset="0" stop-color="#d22f27"/><stop offset="1" stop-color="#ea5a47"/></linearGradient>
<path id="b" d="M12 21C5 15 2 12 2 8a5 5 0 0 1 10-2 5 5 0 0 1 10 2c0 4-3 7-10 13z"/></defs>
<use href="#b" fill="url(#a)"/></svg>"""


def icon(file: Traversable) -> str:
    """An emoji as an SVG that states a few pixels."""
    return re.sub("<svg ", f'<svg width="{SIDE_PX}" height="{SIDE_PX}" ', file.read_text(encoding="utf-8"), count=1)


def test_icons_of_few_pixels_are_found_as_larger_ones_are(client: httpx.Client) -> None:
    emoji = [one for one in demo_images() if one.metadata["kind"] == "emoji"][::EVERY]
    found = [
        client.post("/retrieve", json={"image": {"svg": icon(one.file)}, "k": 1}).json()["results"][0]["id"]
        for one in emoji
    ]
    assert sum(one.id == id for one, id in zip(emoji, found, strict=True)) >= LEAST * len(emoji)


def test_an_icon_is_stored_as_large_as_it_was_embedded_and_masked_at_its_own_size(client: httpx.Client) -> None:
    svg = icon(next(one.file for one in demo_images() if one.id == "1f41f"))
    client.put("/galleries/icons").raise_for_status()
    item = client.put("/galleries/icons/items/fish", json={"image": {"svg": svg}}).raise_for_status().json()
    assert (item["width"], item["height"], item["media_type"]) == (256, 256, "image/png")
    masks = client.post("/segment", json={"image": {"svg": svg}, "classes": ["fish"]}).raise_for_status().json()
    assert (masks["width"], masks["height"]) == (SIDE_PX, SIDE_PX)
    client.delete("/galleries/icons", params={"confirm": "icons"}).raise_for_status()


@needs_browser
def test_the_playground_draws_an_svg_of_any_kind(opened: Page, client: httpx.Client, tmp_path: Path) -> None:
    page: Any = opened.open()
    page.wait_for_selector(".card")
    opened.drop(".sheet", "heart.svg", HEART.encode())
    expect(page.locator(".query-image img")).to_have_attribute("alt", "Query: heart.png")
    expect(page.locator(".card figcaption").first).to_contain_text("heart")
    (tmp_path / "icons").mkdir()
    (tmp_path / "icons" / "heart.svg").write_text(HEART)
    (tmp_path / "icons" / "none.svg").write_text("no drawing")
    client.put("/galleries/vectors").raise_for_status()
    page.goto(f"{opened.base}/?tab=galleries&gallery=vectors")
    page.wait_for_selector(".gallery h2 >> text=vectors")
    page.locator(".drop input[webkitdirectory]").set_input_files(tmp_path / "icons")
    page.get_by_role("button", name="Import 2 images").click()
    page.wait_for_selector("text=1 image added.")
    page.get_by_text("1 rejected").click()
    assert "none.svg" in page.locator(".import-report").inner_text()
    items = client.get("/galleries/vectors/items").json()["items"]
    assert [(one["width"], one["height"]) for one in items] == [(512, 512)]
    client.delete("/galleries/vectors", params={"confirm": "vectors"}).raise_for_status()
