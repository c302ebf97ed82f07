"""What the playground does with first words, second images, damaged and repeated files, and keys."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import skimage.data

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
