"""Every maximum of the limits, one after another, against a running service: `python -m benchmarks.maxima`.

Each must answer, or refuse, inside its deadline, within 2 GiB above the loaded model, and health must answer meanwhile.
Writes `docs/results/maxima.md` and `.json`.
"""

import argparse
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from benchmarks.header import header
from benchmarks.serve.contenders import CONTENDERS, ROOT
from benchmarks.serve.measure import running
from benchmarks.serve.shared_pass import wait_until_ready

DEADLINE_S, GRACE_S = 30.0, 1.0
MAX_EXTRA_MIB = 2048
Call = Callable[[httpx.Client], httpx.Response]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8791)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    options = parser.parse_args()
    url = f"http://127.0.0.1:{options.port}"
    rows = []
    with (
        running(CONTENDERS[0], options.port, "") as process,
        httpx.Client(base_url=url, timeout=4 * DEADLINE_S) as client,
    ):
        wait_until_ready(client)
        client.post("/embed", json={"texts": ["warm"]}).raise_for_status()
        loaded_mib = _memory_mib(process.pid, "VmRSS")
        for name, call in _calls().items():
            with _health(url) as worst_ms:
                begun_s = time.perf_counter()
                answer = call(client)
                took_s = time.perf_counter() - begun_s
            peak_mib = _memory_mib(process.pid, "VmHWM")
            is_kept = took_s <= DEADLINE_S + GRACE_S and peak_mib - loaded_mib <= MAX_EXTRA_MIB
            rows.append(
                {
                    "name": name,
                    "status": answer.status_code,
                    "code": answer.json().get("code", "") if answer.status_code >= 400 else "",
                    "seconds": round(took_s, 2),
                    "peak_over_loaded_mib": round(peak_mib - loaded_mib),
                    "health_max_ms": round(max(worst_ms, default=0.0)),
                    "is_kept": is_kept and answer.status_code != 500,
                }
            )
            sys.stderr.write(f"{rows[-1]}\n")
    _write(options.out, rows, loaded_mib)
    sys.exit(0 if all(row["is_kept"] for row in rows) else 1)


def _calls() -> dict[str, Call]:
    """Name → a request at its limit, or one over it."""
    photo, small = _photo(8000), _photo(64)
    strokes = {"strokes": [[list(range(4000)) * 12 + list(range(2000)), [7] * 50_000]], "width": 4096, "height": 4096}
    names = [f"thing {number}" for number in range(255)]
    wordy = [{"name": name, "synonyms": [f"{name} {word}" for word in "abcdefg"]} for name in names]
    ways = [
        {"label": name, "support": [_drawing(number)]} for number, name in enumerate([*names, *map(str, range(257))])
    ]
    return {
        "64 megapixels": lambda client: client.post("/embed", files={"image": photo}),
        "256 megapixels in four": lambda client: client.post("/embed", files=[("image", photo)] * 4),
        "320 megapixels": lambda client: client.post("/embed", files=[("image", photo)] * 5),
        "a bomb of 64 megapixels": lambda client: client.post("/embed", files={"image": _bomb(8000)}),
        "a bomb of 144 megapixels": lambda client: client.post("/embed", files={"image": _bomb(12000)}),
        "1,000 images": lambda client: client.post("/embed", files=[("image", _dot(n)) for n in range(1000)]),
        "1,001 images": lambda client: client.post("/embed", files=[("image", small)] * 1001),
        "2,048 texts": lambda client: client.post("/embed", json={"texts": [f"text {n}" for n in range(2048)]}),
        "50,000 points on 4096²": lambda client: client.post("/embed", json={"images": [strokes]}),
        "segment 64 megapixels, 255 classes": lambda client: client.post(
            "/segment", files={"image": photo}, data={"classes": names}
        ),
        "segment 2,040 strings": lambda client: client.post(
            "/segment", files={"image": small}, data={"classes": [json.dumps(one) for one in wordy]}
        ),
        "segment 4,080 strings": lambda client: client.post(
            "/segment",
            files={"image": small},
            data={"classes": [json.dumps({**one, "templates": ["a {}", "{}"]}) for one in wordy]},
        ),
        "512 ways": lambda client: client.post("/fewshot/episodes", json={"ways": ways}),
        "513 ways": lambda client: client.post(
            "/fewshot/episodes", json={"ways": [*ways, {"label": "more", "support": [_drawing(0)]}]}
        ),
        "256 items": lambda client: client.post(
            "/galleries/default/items", files=[("image", _dot(5000 + n)) for n in range(256)]
        ),
        "a body over 32 MiB": lambda client: client.post("/embed", files={"image": bytes(33 << 20)}),
    }


def _photo(side: int) -> bytes:
    soft = np.random.default_rng(side).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(soft).resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=80)
    return out.getvalue()


def _bomb(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("1", (side, side)).save(out, "PNG")
    return out.getvalue()


def _dot(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _drawing(seed: int) -> dict[str, object]:
    points = np.random.default_rng(seed).integers(0, 128, (2, 6)).tolist()
    return {"strokes": [points], "width": 128, "height": 128}


@contextmanager
def _health(url: str) -> Iterator[list[float]]:
    """Latencies of `/livez`, ms, all the while."""
    found: list[float] = []
    has_ended = threading.Event()

    def poll() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not has_ended.wait(0.05):
                begun_s = time.perf_counter()
                client.get("/livez")
                found.append((time.perf_counter() - begun_s) * 1e3)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield found
    finally:
        has_ended.set()
        thread.join()


def _memory_mib(pid: int, field: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def _write(folder: Path, rows: list[dict[str, object]], loaded_mib: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# The largest requests",
        "",
        f"{header('python -m benchmarks.maxima')} Memory of the loaded service: {loaded_mib:.0f} MiB; "
        f"peaks are above that and never fall back in this table. Each request must end within {DEADLINE_S:.0f} s "
        f"and {MAX_EXTRA_MIB} MiB above the loaded model.",
        "",
        "| request | status | code | s | peak over loaded, MiB | slowest health answer, ms | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['name']} | {row['status']} | {row['code']} | {row['seconds']} | {row['peak_over_loaded_mib']} | "
        f"{row['health_max_ms']} | {'yes' if row['is_kept'] else 'no'} |"
        for row in rows
    ]
    (folder / "maxima.md").write_text("\n".join(lines) + "\n")
    (folder / "maxima.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
