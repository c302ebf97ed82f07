"""Debian's Chromium, and a page of the playground that records what should not happen."""

import base64
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SLOW_MS = 60_000
WIDE = {"width": 1280, "height": 860}
_SIDE = 256  # of the canvas, in the units of strokes
Strokes = Sequence[Sequence[Sequence[float]]]


@contextmanager
def launched() -> Iterator[Any]:
    """A browser."""
    with sync_api.sync_playwright() as playwright:
        expect.set_options(timeout=SLOW_MS)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Page:
    """A page; `close` fails after an error in the console or a request to another host.

    Attributes:
        tolerated: texts in the browser's own lines about answers that a test provokes.
    """

    def __init__(self, browser: Any, base: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(SLOW_MS)
        self.base = base.rstrip("/")
        self.faults: list[str] = []
        self.tolerated: tuple[str, ...] = ()
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda sent: None if self._is_own(sent.url) else self.faults.append(sent.url))

    def open(self, query: str = "") -> Any:
        """Go to the playground; returns Playwright's page."""
        self.page.goto(f"{self.base}/{query}")
        return self.page

    def close(self) -> None:
        """Close the page and check what it recorded."""
        self.page.close()
        assert not self.faults, self.faults

    def draw(self, strokes: Strokes, after_each: Callable[[], object] = lambda: None) -> None:
        """Draw with the mouse; `after_each` is called after each point."""
        for points in self._on_screen(strokes):
            self.page.mouse.move(*points[0])
            self.page.mouse.down()
            for point in points[1:]:
                self.page.mouse.move(*point, steps=6)
                after_each()
            self.page.mouse.up()
            after_each()

    def touch(self, strokes: Strokes) -> None:
        """Draw with a finger."""
        session = self.page.context.new_cdp_session(self.page)

        def send(kind: str, *points: tuple[float, float]) -> None:
            content = {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]}
            session.send("Input.dispatchTouchEvent", content)

        for points in self._on_screen(strokes):
            send("touchStart", points[0])
            for point in points[1:]:
                send("touchMove", point)
            send("touchEnd")

    def drop(self, place: str, name: str, content: bytes, kind: str = "image/png") -> None:
        """Drop a file of a media type on an element."""
        create = (
            "([name, text, type]) => { const transfer = new DataTransfer();"
            "const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));"
            "transfer.items.add(new File([bytes], name, { type })); return transfer; }"
        )
        transfer = self.page.evaluate_handle(create, [name, base64.b64encode(content).decode(), kind])
        self.page.dispatch_event(place, "drop", {"dataTransfer": transfer})

    def _on_screen(self, strokes: Strokes) -> Iterator[list[tuple[float, float]]]:
        box = self.page.locator("canvas.pad").bounding_box()
        scale = box["width"] / _SIDE
        for xs, ys in strokes:
            yield [(box["x"] + x * scale, box["y"] + y * scale) for x, y in zip(xs, ys, strict=True)]

    def _note(self, line: Any) -> None:
        is_tolerated = any(text in line.text for text in self.tolerated)
        if line.type in ("error", "warning") and not is_tolerated:
            self.faults.append(line.text)

    def _is_own(self, url: str) -> bool:
        return url.startswith((self.base, self.base.replace("http", "ws"), "blob:", "data:"))
