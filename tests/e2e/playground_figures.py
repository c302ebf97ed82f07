"""Measures the playground against a running service, and records the README's animation.

`python -m tests.e2e.playground_figures http://127.0.0.1:8000 [docs/pictures/draw.webp]`: with a path it only records.
"""

import io
import math
import random
import statistics
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from tests.e2e.browser import Page, launched

MEASURE = "pen-up to results"
STROKES = 40
FRAME_MS, STROKE_MS, LAST_MS = 90, 500, 2400
SIZE = {"width": 1120, "height": 700}
QUALITY = 70


def figures(browser: Any, base: str) -> None:
    """Prints first paint, weight, time to the house, and pen-up to results over strokes that no cache holds."""
    seen = Page(browser, base, viewport=SIZE)
    page = seen.open()
    page.wait_for_selector(".card")
    paint, house = page.evaluate(
        "[performance.getEntriesByName('first-contentful-paint')[0].startTime, performance.now()]"
    )
    page.wait_for_function(f"() => performance.getEntriesByName('{MEASURE}').length >= 1")
    weight = page.evaluate(
        "performance.getEntries().filter(({ name }) => /\\/$|playground\\/[^/]*[.](js|css|svg)$/.test(name))"
        ".reduce((sum, { decodedBodySize }) => sum + decodedBodySize, 0)"
    )
    sys.stdout.write(f"first paint {paint:.0f} ms, first results without a click {house:.0f} ms, {weight:,} bytes\n")
    page.wait_for_load_state("networkidle")
    page.evaluate("performance.clearMeasures()")
    chance = random.Random(0)
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
            figures(browser, base)
        for path in paths:
            animation(browser, base, Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
