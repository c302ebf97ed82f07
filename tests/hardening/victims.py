"""What a small client sees while ten attackers repeat an attack: `python -m tests.hardening.victims [--only NAME]`.

Into docs/results/hardening.md. A victim does one small `/retrieve` a second and a probe asks `/livez` every 50 ms, each
on a new connection; memory is that of the server and its child processes.
"""

import asyncio
import io
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from benchmarks.report import ROOT, arguments, header, percentile_ms, table, write
from benchmarks.server import VERMOUTH, Running, polled, running
from tests.hardening.attacks import ATTACKS, HOST, LARGE_GALLERY, drawing, get, post

CALM_S, ATTACK_S, REST_S = 5.0, 30.0, 30.0
START_S = 2.0  # the attackers build their first requests
VICTIM_EVERY_S, HEALTH_EVERY_S, GIVE_UP_S = 1.0, 0.05, 10.0
DESCRIPTORS = 1024
MOST_VICTIM_MS, MOST_HEALTH_MS, MOST_GROWTH = 1500.0, 50.0, 1.1
SERVER = replace(
    VERMOUTH,
    name="hardened",
    variables={
        name: VERMOUTH.variables[name]
        for name in ("VERMOUTH_PORT", "VERMOUTH_BUNDLE", "VERMOUTH_DATA_DIR", "VERMOUTH_LOG_LEVEL")
    },
)
"""The defaults, with caches, as a user starts it."""


@dataclass(slots=True)
class Seen:
    """What one client saw: seconds of each answer, and how often which failure."""

    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def p_ms(self, share: float) -> float | None:
        """A percentile in milliseconds; None without an answer."""
        return percentile_ms(self.seconds, share) if self.seconds else None


async def ask(port: int, request: bytes, seen: Seen) -> None:
    """Send a request on a new connection and note how it was answered."""
    started_s = time.perf_counter()
    try:
        async with asyncio.timeout(GIVE_UP_S):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(request)
                answer = await reader.read(-1)
            finally:
                writer.close()
    except (OSError, TimeoutError) as err:
        seen.failures[type(err).__name__] += 1
        return
    status = answer[9:12].decode("latin-1") or "closed"
    if status == "200":
        seen.seconds.append(time.perf_counter() - started_s)
    else:
        code = answer.rpartition(b'"code": "')[2].partition(b'"')[0].decode("latin-1") if status != "closed" else ""
        seen.failures[f"{status} {code[:30]}".strip()] += 1


async def watch(port: int, seconds: float) -> tuple[Seen, Seen]:
    """Ask as the victim and as the probe for so long, whatever earlier requests do."""
    victim, health, chance, asked = Seen(), Seen(), random.Random(), list[asyncio.Task[None]]()

    async def repeat(make: Callable[[], bytes], every_s: float, seen: Seen) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        until_s = due_s + seconds
        while due_s < until_s:
            asked.append(asyncio.create_task(ask(port, make(), seen)))
            due_s += every_s
            await asyncio.sleep(max(0.0, due_s - loop.time()))

    def search() -> bytes:
        return post("/retrieve", json.dumps({"sketch": drawing(chance), "k": 5}).encode())

    await asyncio.gather(
        repeat(search, VICTIM_EVERY_S, victim),
        repeat(lambda: get("/livez", "Connection: close"), HEALTH_EVERY_S, health),
    )
    await asyncio.gather(*asked)
    return victim, health


@contextmanager
def attacked(name: str, port: int) -> Iterator[None]:
    """Run an attack in a process of its own until the block ends."""
    command = [sys.executable, "-m", "tests.hardening.attacks", name, str(port), str(CALM_S + 2 * ATTACK_S)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(START_S)
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError(f"the attackers of {name} ended early with {process.returncode}")
    finally:
        process.kill()
        process.wait()


def fill(client: httpx.Client) -> None:
    """A thousand items of one drawing with 15 KiB of metadata each, an image of 30 MB, and some to search."""
    chance = random.Random(0)
    client.put(f"/galleries/{LARGE_GALLERY}").raise_for_status()
    same, words = drawing(chance), "word " * 3000
    for start in range(0, 1000, 125):
        items = [{"id": f"i{n}", "image": same, "metadata": {"words": words}} for n in range(start, start + 125)]
        client.post(f"/galleries/{LARGE_GALLERY}/items", json=items).raise_for_status()
    client.post("/galleries/default/items", json=[{"image": drawing(chance)} for _ in range(32)]).raise_for_status()
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (3100, 3100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "PNG", compress_level=0)
    client.put("/galleries/default/items/large", files={"image": ("large.png", out.getvalue())}).raise_for_status()


def measure(service: Running, name: str | None) -> dict[str, object]:
    """Return the row of one attack; of calm without a name."""
    asyncio.run(watch(service.port, CALM_S))
    before_mib = service.rss_mib()
    with polled(service.rss_mib, 0.5) as memory_mib:
        if name is None:
            victim, health = asyncio.run(watch(service.port, ATTACK_S))
        else:
            with attacked(name, service.port):
                victim, health = asyncio.run(watch(service.port, ATTACK_S))
    time.sleep(REST_S if name is not None else 0)
    after_mib, has_died = service.rss_mib(), service.process.poll() is not None
    peak_mib = max([before_mib, *memory_mib])
    victim_ms, health_ms = victim.p_ms(99), health.p_ms(99)
    missed = [
        *(["server died"] if has_died else []),
        *(["victim errors"] if victim.failures else []),
        *(["victim p99"] if victim_ms is None or victim_ms > MOST_VICTIM_MS else []),
        *(["health errors"] if health.failures else []),
        *(["health p99"] if health_ms is None or health_ms > MOST_HEALTH_MS else []),
        *(["memory"] if after_mib > MOST_GROWTH * before_mib else []),
    ]
    return {
        "attack": name or "none",
        "victim p50 ms": victim.p_ms(50),
        "victim p99 ms": victim_ms,
        "victim errors": dict(victim.failures),
        "health p99 ms": health_ms,
        "health errors": dict(health.failures),
        "RSS before MiB": before_mib,
        "peak": peak_mib,
        "after": after_mib,
        "missed": ", ".join(missed) or None,
    }


def measure_all(names: Sequence[str], folder: Path) -> None:
    """Write a row per attack; a server that does not answer afterwards is replaced."""
    rows: list[dict[str, object]] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    left: list[str | None] = [None, *names]
    while left:
        with running(SERVER) as service:
            service.wait_until_ready()
            with service.client() as client:
                fill(client)
            while left:
                rows.append(measure(service, left.pop(0)))
                report(rows, folder)
                if not is_answering(service.port):
                    break


def is_answering(port: int) -> bool:
    """Whether a server still answers a search within seconds."""
    seen = Seen()
    asyncio.run(ask(port, post("/retrieve", json.dumps({"sketch": drawing(random.Random())}).encode()), seen))
    return bool(seen.seconds)


def report(rows: Sequence[dict[str, object]], folder: Path) -> None:
    """Write the page of the attacks measured so far."""
    lines = [
        "# A small client under attack",
        "",
        header("python -m tests.hardening.victims"),
        "",
        f"Ten attackers in a process of their own (nice 10) repeat an attack for {ATTACK_S:.0f} s against the default"
        f" settings with {DESCRIPTORS} descriptors. Meanwhile a victim does one small `/retrieve` a second, and a probe"
        f" asks `/livez` every {HEALTH_EVERY_S * 1e3:.0f} ms, each on a new connection. Memory is that of the server"
        f" and its processes: before, at its peak, and {REST_S:.0f} s after. Targets: victim p99"
        f" {MOST_VICTIM_MS:.0f} ms and no error, health p99 {MOST_HEALTH_MS:.0f} ms, memory after at most"
        f" {MOST_GROWTH} times that before. Attacks are those of `tests/hardening/attacks.py`.",
        "",
        *table(rows),
    ]
    write(folder, "hardening", lines, rows)


def main() -> None:
    """Measure and write the page."""
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=list(ATTACKS), action="append", help="attacks to measure, all by default")
    options = parser.parse_args()
    measure_all(options.only or list(ATTACKS), options.out)


if __name__ == "__main__":
    main()
