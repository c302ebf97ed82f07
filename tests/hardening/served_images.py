"""Damaged images of ten formats to a real server: `python -m tests.hardening.served_images --count 2100 --seed S`.

The server serves the mini bundle with its caches off. Each image must be answered or refused as itself: no 5xx, nothing
slower than a decoder may be, and in the end the memory of the server and its decoder processes is as before.
"""

import argparse
import base64
import json
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from app.imaging.formats import media_type
from benchmarks.server import VERMOUTH, Running, running
from tests.hardening.images import SLOWEST_S
from tests.hardening.mutations import mutated, seeds, svg

FILES = ("png", "jpeg", "webp", "gif", "bmp", "tiff", "avif")
FORMATS = (*FILES, "svg", "base64", "strokes")
CLIENTS = 4
START_LIMIT_S = 900.0  # on a machine that is busy otherwise
WARM_UP = 200  # first cases, after which memory is compared
REST_S = 60.0  # that memory may take to fall
MOST_GROWTH = 1.1
_ODD: tuple[Any, ...] = (None, "1", [], 1e308, -1e308, 1e-308, float("nan"), float("inf"), 2**70, -0.0, 40_000, True)


@dataclass(kw_only=True)
class Report:
    """Statuses by format, and what broke."""

    statuses: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    slowest_s: float = 0.0
    faults: list[str] = field(default_factory=list)


def requests(cases: range, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the request of each case, one format after another."""
    files = defaultdict[str, list[bytes]](list)
    for data in seeds():
        files[media_type(data).removeprefix("image/")].append(data)
    for case in cases:
        kind = FORMATS[case % len(FORMATS)]
        yield f"{kind} {case}", _request(kind, random.Random(f"{seed} {case}"), files)


def send_all(client: httpx.Client, cases: range, seed: int, report: Report) -> None:
    """Send the requests of these cases, a few at a time, and note each answer."""

    def send(case: tuple[str, dict[str, Any]]) -> None:
        name, request = case
        started_s = time.perf_counter()
        try:
            answer = client.post("/retrieve", **request)
        except httpx.TransportError as err:
            report.faults.append(f"{name}: {err!r}")
            return
        took_s = time.perf_counter() - started_s
        report.slowest_s = max(report.slowest_s, took_s)
        report.statuses[name.split()[0]][answer.status_code] += 1
        is_problem = answer.headers["content-type"] == "application/problem+json"
        if answer.status_code >= 500 or took_s > SLOWEST_S or is_problem != (answer.status_code != 200):
            report.faults.append(f"{name}: {answer.status_code} after {took_s:.1f} s: {answer.text[:200]}")

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(send, requests(cases, seed)))


def _request(kind: str, chance: random.Random, files: Mapping[str, list[bytes]]) -> dict[str, Any]:
    if kind in FILES:
        return {"files": {"image": (f"a.{kind}", mutated(chance, files[kind]))}}
    if kind == "svg":
        return {"json": {"sketch": {"svg": svg(chance)}}}
    if kind == "base64":
        text = base64.b64encode(mutated(chance, files[chance.choice(FILES)]))
        text = mutated(chance, [text]) if chance.random() < 0.3 else text
        return {"json": {"image": {"base64": "data:image/png;base64," + text.decode("latin-1")}}}
    sides = [chance.choice((1, 256, 256, 4096)) for _ in range(2)]
    body = json.dumps({"sketch": {"strokes": _strokes(chance), "width": sides[0], "height": sides[1]}}).encode()
    content = mutated(chance, [body]) if chance.random() < 0.3 else body
    return {"content": content, "headers": {"Content-Type": "application/json"}}


def _strokes(chance: random.Random) -> list[Any]:
    odd = chance.choice((0.0, 0.0, 0.02, 0.3))
    strokes: list[Any] = []
    for _ in range(chance.choice((0, 1, 4, 40))):
        points = chance.choice((0, 1, 2, 30))
        axes = [[chance.uniform(-50, 300) for _ in range(points)] for _ in range(chance.choice((2, 2, 2, 2, 3, 1)))]
        strokes.append([[chance.choice(_ODD) if chance.random() < odd else at for at in axis] for axis in axes])
    return strokes


def settled_mib(service: Running, most_mib: float) -> float:
    """Return the memory of the server and its processes once it is at most that, or what it is after `REST_S`."""
    until_s = time.perf_counter() + REST_S
    while (found_mib := service.rss_mib()) > most_mib and time.perf_counter() < until_s:
        time.sleep(1)
    return found_mib


def run(count: int, seed: int) -> tuple[Report, Sequence[float]]:
    """Send so many images to a server of its own; return the report, and its memory in MiB before and after."""
    report = Report()
    with running(VERMOUTH) as service, service.client() as client:
        service.wait_until_ready(limit_s=START_LIMIT_S)
        send_all(client, range(WARM_UP), seed, report)
        before_mib = service.rss_mib()
        send_all(client, range(WARM_UP, count), seed, report)
        after_mib = settled_mib(service, MOST_GROWTH * before_mib)
        good = client.post("/retrieve", files={"image": ("a.png", seeds()[0])})
        if good.status_code != 200 or service.process.poll() is not None:
            report.faults.append(f"the server does not answer as before: {good.status_code}")
    if after_mib > MOST_GROWTH * before_mib:
        report.faults.append("memory grows")
    return report, (before_mib, after_mib)


def main() -> int:
    """Run, print the figures, and return 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report, rss_mib = run(options.count, options.seed)
    lines = [f"{kind}: {dict(sorted(found.items()))}" for kind, found in report.statuses.items()]
    lines += [f"{sum(found.total() for found in report.statuses.values())} images, slowest {report.slowest_s:.1f} s"]
    lines += [f"RSS of server and processes: {' -> '.join(f'{value:.0f} MiB' for value in rss_mib)}"]
    sys.stdout.write("\n".join([*lines, f"faults {len(report.faults)}", *report.faults[:20]]) + "\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
