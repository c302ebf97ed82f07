"""Measures the playground against a running service, checks it as Lighthouse does, and records the README's animation.

`python -m tests.e2e.playground_figures http://127.0.0.1:8000 [docs/pictures/draw.webp]`: with a path it only records.
"""

import io
import math
import random
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import httpx
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]  # it has no types
from PIL import Image

from tests.e2e.browser import Page, launched

Check = tuple[str, str, bool]
"""A name, what was found, and whether that is good."""
MEASURE = "pen-up to results"
STROKES = 40
FRAME_MS, STROKE_MS, LAST_MS = 90, 500, 2400
SIZE = {"width": 1120, "height": 700}
MAX_PAINT_MS, MAX_BYTES = 1000, 300_000
MAX_SHIFT = 0.1
META = {
    "viewport": "document.querySelector('meta[name=viewport]')?.content",
    "title": "document.title",
    "language": "document.documentElement.lang",
    "description": "document.querySelector('meta[name=description]')?.content",
    "document type": "document.doctype?.name",
    "character set": "document.characterSet",
}
TABS = ("draw", "segment", "teach", "galleries")
SHIFT = """new Promise((done) => {
  let sum = 0;
  const add = (list) => list.getEntries().forEach((one) => { sum += one.hadRecentInput ? 0 : one.value; });
  new PerformanceObserver(add).observe({ type: "layout-shift", buffered: true });
  setTimeout(() => done(sum), 200);
})"""
ENTRIES = "performance.getEntries().map((one) => [one.name, one.encodedBodySize, one.decodedBodySize])"
OWN = r"/(\?[^/]*)?$|/playground/[^/]*\.(js|css|svg)$"
QUALITY = 70


def checks(browser: Any, base: str) -> Iterator[Check]:
    """What Lighthouse looks at."""
    seen = Page(browser, base, viewport=SIZE)
    page = seen.open()
    page.wait_for_selector(".card")
    page.wait_for_load_state("networkidle")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    yield "first contentful paint", f"{paint:.0f} ms", paint <= MAX_PAINT_MS
    shift = page.evaluate(SHIFT)
    yield "cumulative layout shift", f"{shift:.3f}", shift <= MAX_SHIFT
    for name, script in META.items():
        found = page.evaluate(script)
        yield name, str(found), bool(found)
    sizes: dict[str, tuple[int, int]] = {}
    serious, minor = [], 0
    for scheme, tab in product(("light", "dark"), TABS):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.goto(f"{seen.base}/?tab={tab}")
        page.wait_for_selector(".card img, .samples, .class-column")
        sizes |= {url: (sent, plain) for url, sent, plain in page.evaluate(ENTRIES) if re.search(OWN, url)}
        for one in Axe().run(page).response["violations"]:
            is_serious = one["impact"] in ("serious", "critical")
            serious += [f"{tab}, {scheme}: {one['id']}"] if is_serious else []
            minor += not is_serious
    yield "contrast, labels, roles (axe)", "; ".join(serious) or f"nothing serious, {minor} minor", not serious
    page.close()
    yield "console errors, requests to other hosts", "; ".join(seen.faults) or "none", not seen.faults
    sent, plain = map(sum, zip(*sizes.values(), strict=True))
    yield "page and modules", f"{len(sizes)} files, {sent:,} bytes sent, {plain:,} plain", plain <= MAX_BYTES
    yield from _headers([f"{seen.base}/", *sizes])


def _headers(urls: Sequence[str]) -> Iterator[Check]:
    """What the page and its modules are sent with."""
    answers = {url: httpx.get(url) for url in urls}
    plain = [url for url, one in answers.items() if one.headers.get("content-encoding") != "gzip"]
    yield "text compression", ", ".join(plain) or "gzip for every file", not plain
    stale = [url for url, one in answers.items() if not _is_cached(url, one)]
    yield "caching", ", ".join(stale) or "every file has Cache-Control and an ETag, by which it is 304", not stale
    policy = answers[urls[0]].headers["content-security-policy"]
    yield "content security policy", policy, "'none'" in policy and "unsafe" not in policy


def _is_cached(url: str, answer: httpx.Response) -> bool:
    tag = answer.headers.get("etag", "")
    again = httpx.get(url, headers={"If-None-Match": tag})
    return bool(tag) and "cache-control" in answer.headers and again.status_code == 304


def figures(browser: Any, base: str) -> None:
    """Prints the time to the house, and pen-up to results over strokes that no cache holds."""
    seen = Page(browser, base, viewport=SIZE)
    page = seen.open()
    page.wait_for_selector(".card")
    sys.stdout.write(f"first results without a click {page.evaluate('performance.now()'):.0f} ms\n")
    page.wait_for_function(f"() => performance.getEntriesByName('{MEASURE}').length >= 1")
    page.wait_for_load_state("networkidle")
    page.evaluate("performance.clearMeasures()")
    chance = random.Random(time.time_ns())  # a second run finds none of its drawings in the caches
    for drawn in range(STROKES):
        if drawn % 4 == 0:
            page.get_by_role("button", name="Clear").click()
        seen.draw([_scribble(chance)])
        page.wait_for_function(f"() => performance.getEntriesByName('{MEASURE}').length > {drawn}")
    times = page.evaluate(f"performance.getEntriesByName('{MEASURE}').map(({{ duration }}) => duration)")
    p50, p95 = statistics.median(times), statistics.quantiles(times, n=20)[-1]
    sys.stdout.write(f"pen-up to results on screen, {len(times)} strokes: p50 {p50:.0f} ms, p95 {p95:.0f} ms\n")
    seen.close()


def animation(browser: Any, base: str, path: Path) -> None:
    """Writes Draw as an animated WebP: the house draws itself, then a fish is drawn over it."""
    seen = Page(browser, base, viewport=SIZE)
    frames: list[Image.Image] = []
    durations: list[int] = []

    def record(duration_ms: int = FRAME_MS) -> None:
        frames.append(Image.open(io.BytesIO(seen.page.screenshot())).convert("RGB"))
        durations.append(duration_ms)

    page = seen.open()
    for _ in range(8):
        record()
    page.locator(".card figcaption", has_text="house").first.wait_for()
    page.wait_for_load_state("networkidle")
    record(LAST_MS // 2)
    page.evaluate("performance.clearMeasures()")
    for number, stroke in enumerate(_fish()):
        seen.draw([stroke], record)
        page.wait_for_function(f"() => performance.getEntriesByName('{MEASURE}').length > {number}")
        record()  # they glide
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(STROKE_MS)
        record(STROKE_MS)
    durations[-1] = LAST_MS
    options: dict[str, Any] = {
        "save_all": True,
        "append_images": frames[1:],
        "duration": durations,
        "loop": 0,
        "quality": QUALITY,
    }
    frames[0].save(path, method=6, **options)
    sys.stdout.write(f"{path}: {len(frames)} frames, {path.stat().st_size:,} bytes\n")
    seen.close()


def _scribble(chance: random.Random) -> list[list[float]]:
    return [[chance.uniform(20, 236) for _ in range(4)] for _ in range(2)]


def _fish() -> list[list[list[float]]]:
    """A body, a tail and an eye, as a hand draws them."""
    turns = [math.pi + 2 * math.pi * step / 24 for step in range(25)]
    body = [[107 + 78 * math.cos(turn) for turn in turns], [128 + 46 * math.sin(turn) for turn in turns]]
    return [body, [[183, 232, 226, 232, 183], [124, 84, 128, 172, 132]], [[66, 68, 69, 67], [116, 115, 117, 118]]]


def main(base: str, *paths: str) -> None:
    """Measures, or records to the paths that are given."""
    with launched() as browser:
        if not paths:
            sys.stdout.writelines(
                f"{'ok  ' if is_good else 'FAIL'} {name}: {found}\n" for name, found, is_good in checks(browser, base)
            )
            figures(browser, base)
        for path in paths:
            animation(browser, base, Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
