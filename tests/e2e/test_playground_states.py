"""What the playground shows while the service starts, asks for a key, is busy, fails, restarts or is away."""

import signal
from pathlib import Path
from typing import Any

import pytest

from app.api.auth import Scope, new_key
from tests.app.test_server import started
from tests.e2e.browser import CHROMIUM, Page, expect

pytestmark = [pytest.mark.server, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]
BROWSERS_OWN = ("Failed to load resource", "WebSocket connection to")  # lines about answers that a test provokes
LIMIT_S = 300
PROBLEM = {
    "type": "/errors/x",
    "title": "A title",
    "detail": "In the service’s words.",
    "request_id": "0123456789abcdef",
}


def test_it_starts_asks_for_a_key_is_empty_and_outlives_a_restart(browser: Any, tmp_path: Path) -> None:
    key, entry = new_key("visitor", [Scope.READ])
    with started("held", tmp_path, limit_s=LIMIT_S, API_KEYS=entry) as process, process.connect() as client:
        seen = Page(browser, str(client.base_url))
        seen.tolerated = BROWSERS_OWN
        page = seen.open()
        page.get_by_role("heading", name="Starting").wait_for()
        process.release()
        page.get_by_role("heading", name="API key").wait_for()
        page.get_by_label("Key", exact=True).fill("vm_wrong")
        page.get_by_role("button", name="Use this key").click()
        page.locator("#key-problem", has_text="This key is unknown.").wait_for()
        page.get_by_label("Key", exact=True).fill(key)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="“default” is empty").wait_for()
        assert key not in page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
        process.signal(signal.SIGTERM)
        assert process.exit_code() == 0
        page.locator("#notice", has_text="This page reconnects by itself.").wait_for()
        port = str(client.base_url.port)
    with started("free", tmp_path, limit_s=LIMIT_S, API_KEYS=entry, PORT=port) as process:  # the session holds
        process.wait_for("ready")
        expect(page.locator("#notice")).to_be_empty()
        page.get_by_role("heading", name="“default” is empty").wait_for()
    seen.close()


def test_a_refusal_from_before_the_key_does_not_ask_again(browser: Any, tmp_path: Path) -> None:
    key, entry = new_key("visitor", [Scope.READ])
    late: list[Any] = []

    def held(route: Any) -> None:  # the first request for the bundle has no key
        late.append(route)
        if len(late) > 1:
            route.continue_()

    def tried(route: Any) -> None:
        late[0].fulfill(status=401, json={**PROBLEM, "status": 401})
        page.wait_for_timeout(300)
        route.continue_()

    with started("free", tmp_path, limit_s=LIMIT_S, API_KEYS=entry) as process, process.connect() as client:
        process.wait_for("ready")
        seen = Page(browser, str(client.base_url))
        seen.tolerated = BROWSERS_OWN
        page = seen.page
        page.route("**/bundle", held)
        page.route("**/session", tried)
        seen.open().get_by_label("Key", exact=True).fill(key)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="“default” is empty").wait_for()
        expect(page.locator("#key-dialog")).to_be_hidden()
        assert len(late) > 1
        seen.close()


def test_it_waits_when_asked_to_and_shows_a_problem_in_the_services_words(browser: Any, tmp_path: Path) -> None:
    with started("free", tmp_path, limit_s=LIMIT_S) as process, process.connect() as client:
        process.wait_for("ready")
        seen = Page(browser, str(client.base_url), permissions=["clipboard-read", "clipboard-write"])
        seen.tolerated = BROWSERS_OWN
        page = seen.page
        seen.open().get_by_role("button", name="Key", exact=True).click()
        page.locator("#key-text", has_text="This service needs no key.").wait_for()
        expect(page.get_by_label("Key", exact=True)).to_be_hidden()
        page.get_by_role("button", name="Close", exact=True).click()
        answers = [(429, {"Retry-After": "2"}), (500, {})]

        def answer(route: Any) -> None:
            status, headers = answers.pop(0)
            route.fulfill(status=status, headers=headers, json={**PROBLEM, "status": status})

        page.route("**/retrieve", answer)
        seen.open("?q=house")
        page.locator("#notice .countdown", has_text="in 2 s").wait_for()
        page.locator("#notice .countdown", has_text="in 1 s").wait_for()
        page.locator("#notice strong", has_text="A title").wait_for()
        assert PROBLEM["detail"] in page.locator("#notice").inner_text()
        page.get_by_role("button", name="request 01234567").click()
        assert page.evaluate("navigator.clipboard.readText()") == PROBLEM["request_id"]
        page.unroute("**/retrieve")
        page.get_by_label("Words", exact=True).fill("tree")
        expect(page.locator("#notice")).to_be_empty()
        page.context.set_offline(True)
        page.get_by_label("Words", exact=True).fill("lake")
        page.locator("#notice strong", has_text="Offline").wait_for()
        page.context.set_offline(False)
        expect(page.locator("#notice")).to_be_empty()
        seen.close()
