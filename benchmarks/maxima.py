"""Send a request at the maximum of every limit, one after another: `python -m benchmarks.maxima`.

Each must be answered or refused inside its deadline, within 2 GiB above the loaded model, and health must answer
meanwhile. Writes `docs/results/maxima.md` and `.json`.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.load import encoded
from benchmarks.report import arguments, header, table, write
from benchmarks.server import VERMOUTH, Running, health, ready

DEADLINE_S, GRACE_S = 30.0, 1.0  # for the way of the answer
MAX_EXTRA_MIB = 2048


def main() -> None:
    """Measure and write; exit with 1 if a request missed its deadline, took too much memory or failed."""
    options = arguments(__doc__).parse_args()
    rows = []
    with ready(VERMOUTH) as (service, client):
        client.post("/embed", json={"texts": ["warm"]}).raise_for_status()  # loads what is loaded at first use
        loaded_mib = _memory_mib(service, "VmRSS")
        for name, path, body in _requests():
            with health(service, 0.05) as latencies_s:
                started_s = time.perf_counter()
                answer = client.post(path, **body)
                took_s = time.perf_counter() - started_s
            extra_mib = _memory_mib(service, "VmHWM") - loaded_mib  # the kernel's own high-water mark
            is_within_limits = took_s <= DEADLINE_S + GRACE_S and extra_mib <= MAX_EXTRA_MIB
            row = {
                "name": name,
                "status": answer.status_code,
                "code": answer.json().get("code", "") if answer.status_code >= 400 else "",
                "seconds": round(took_s, 2),
                "peak_over_loaded_mib": round(extra_mib),
                "health_max_ms": round(max(latencies_s, default=0.0) * 1e3),
                "is_within_limits": is_within_limits and answer.status_code != 500,
            }
            rows.append(row)
            sys.stderr.write(f"{row}\n")
    lines = [
        "# The largest requests",
        "",
        f"{header('python -m benchmarks.maxima')} The loaded service takes {loaded_mib:.0f} MiB; peaks are above that "
        f"and never fall back in this table. Each request must end within {DEADLINE_S:.0f} s and {MAX_EXTRA_MIB} MiB.",
        "",
        *table(rows),
    ]
    write(options.out, "maxima", lines, rows)
    sys.exit(0 if all(row["is_within_limits"] for row in rows) else 1)


def _requests() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield name, path and body of requests at a limit or just above it."""
    photo, small = _photo(8000), _photo(64)
    strokes = {"strokes": [[list(range(4000)) * 12 + list(range(2000)), [7] * 50_000]], "width": 4096, "height": 4096}
    yield "64 megapixels", "/embed", {"files": {"image": photo}}
    yield "256 megapixels in four", "/embed", {"files": [("image", photo)] * 4}
    yield "320 megapixels", "/embed", {"files": [("image", photo)] * 5}
    yield "a bomb of 64 megapixels", "/embed", {"files": {"image": _bomb(8000)}}
    yield "a bomb of 144 megapixels", "/embed", {"files": {"image": _bomb(12000)}}
    yield "1,000 images", "/embed", {"files": [("image", _dot(n)) for n in range(1000)]}
    yield "1,001 images", "/embed", {"files": [("image", small)] * 1001}
    yield "2,048 texts", "/embed", {"json": {"texts": [f"text {n}" for n in range(2048)]}}
    yield "50,000 points on 4096²", "/embed", {"json": {"images": [strokes]}}
    names = [f"thing {number}" for number in range(255)]
    yield "segment 64 megapixels, 255 classes", "/segment", {"files": {"image": photo}, "data": {"classes": names}}
    wordy = [{"name": name, "synonyms": [f"{name} {word}" for word in "abcdefg"]} for name in names]
    templated = [{**each, "templates": ["a {}", "{}"]} for each in wordy]
    for count, classes in (("2,040", wordy), ("4,080", templated)):
        data = {"classes": [json.dumps(each) for each in classes]}
        yield f"segment {count} strings", "/segment", {"files": {"image": small}, "data": data}
    ways = [{"label": name, "support": [_drawing(n)]} for n, name in enumerate([*names, *map(str, range(257))])]
    yield "512 ways", "/fewshot/episodes", {"json": {"ways": ways}}
    yield "513 ways", "/fewshot/episodes", {"json": {"ways": [*ways, {"label": "more", "support": [_drawing(0)]}]}}
    yield "256 items", "/galleries/default/items", {"files": [("image", _dot(5000 + n)) for n in range(256)]}
    yield "a body over 32 MiB", "/embed", {"files": {"image": bytes(33 << 20)}}


def _photo(side: int) -> bytes:
    soft = np.random.default_rng(side).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return encoded(Image.fromarray(soft).resize((side, side), Image.Resampling.BICUBIC), "JPEG")


def _bomb(side: int) -> bytes:
    return encoded(Image.new("1", (side, side)), "PNG")  # a few kilobytes


def _dot(seed: int) -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)), "PNG")


def _drawing(seed: int) -> dict[str, object]:
    points = np.random.default_rng(seed).integers(0, 128, (2, 6)).tolist()
    return {"strokes": [points], "width": 128, "height": 128}


def _memory_mib(service: Running, field: str) -> float:
    lines = Path(f"/proc/{service.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


if __name__ == "__main__":
    main()
