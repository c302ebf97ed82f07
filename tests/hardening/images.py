"""Damaged images and odd drawings through the decoder processes: `python -m tests.hardening.images --count 20000`.

Each must be decoded or refused as itself, within its time, and leave the service as it was.
"""

import argparse
import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from app.domain import Limits
from app.errors import EngineUnavailable, InferenceFailed, ServiceError
from app.imaging.fork_server import ForkServer
from app.imaging.messages import DecodeRequest, Product
from app.imaging.processes import DecoderProcesses
from app.imaging.sources import EncodedImage, SvgImage
from app.runtime.logging import configure_logging
from tests.hardening.mutations import mutated, seeds, svg

LIMITS = Limits()
SIZE = 128
WORKERS = 2
SLOWEST_S = 60.0  # the wall clock of a quick and two slow attempts at the largest canvas, and the wait for them
_WARM_UP = 100  # first cases, after which descriptors and memory are compared
_RSS_GROWTH, _RSS_SPARE_BYTES = 1.10, 30_000_000  # an idle process holds what its last image left
_PRODUCTS = (Product.DECODED, Product.DECODED, Product.TILED, Product.THUMBNAIL)


@dataclass(kw_only=True)
class Report:
    """Outcomes of a run, and what it broke."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    faults: list[str] = field(default_factory=list)
    descriptors: tuple[int, int] = (0, 0)
    rss_bytes: tuple[int, int] = (0, 0)
    processes: int = 0

    def __str__(self) -> str:
        lines = [f"{name}: {count}" for name, count in sorted(self.outcomes.items())]
        lines += [f"slowest: {self.slowest_s:.1f} s", f"processes: {self.processes}"]
        lines += [f"descriptors: {self.descriptors[0]} -> {self.descriptors[1]}"]
        lines += [f"RSS of server and processes: {' -> '.join(f'{value / 1e6:.0f} MB' for value in self.rss_bytes)}"]
        return "\n".join([*lines, *(f"FAULT {fault}" for fault in self.faults)])


async def run(count: int, seed: int, fork_server: ForkServer) -> Report:
    """Decode `count` damaged images and `count` drawings, and check what is left."""
    processes, report = DecoderProcesses(WORKERS, limits=LIMITS, fork_server=fork_server), Report()
    files = seeds()

    async def work(cases: Iterator[int]) -> None:
        for case in cases:
            await _try(case, random.Random(f"{seed} {case}"), files, processes, report)

    async def work_all(cases: range) -> tuple[int, int]:
        shared = iter(cases)
        # Twice as many as slots, so that some always wait.
        await asyncio.gather(*(work(shared) for _ in range(4 * WORKERS)))
        await asyncio.gather(*processes._tasks, return_exceptions=True)
        return _descriptors(), _rss_bytes(processes)

    before = await work_all(range(_WARM_UP))
    after = await work_all(range(_WARM_UP, 2 * count))
    report.processes = len(processes.pids)
    report.descriptors, report.rss_bytes = (before[0], after[0]), (before[1], after[1])
    if report.processes > 2 * WORKERS + 1:
        report.faults.append("processes are left over")
    if report.descriptors[1] > report.descriptors[0] + WORKERS:
        report.faults.append("descriptors leak")
    if report.rss_bytes[1] > _RSS_GROWTH * report.rss_bytes[0] + _RSS_SPARE_BYTES:
        report.faults.append("memory grows")
    await processes.stop()
    return report


async def _try(
    case: int, chance: random.Random, files: list[bytes], processes: DecoderProcesses, report: Report
) -> None:
    kind = "drawing" if case % 2 else "image"
    source = SvgImage(text=svg(chance)) if case % 2 else EncodedImage(data=mutated(chance, files))
    request = DecodeRequest(source=source, product=chance.choice(_PRODUCTS), size=SIZE, limits=LIMITS)
    started_s = time.perf_counter()
    try:
        await processes.make(request, lambda _width, _height: None)
        outcome = "decoded"
    except (EngineUnavailable, InferenceFailed) as err:
        outcome = err.code
        report.faults.append(f"{kind} {case}: {err.detail}")
    except ServiceError as err:
        outcome = f"{err.code} ({err.detail})" if "process" in err.detail or "long" in err.detail else err.code
    except Exception as err:  # noqa: BLE001 - the fault that this looks for
        outcome = type(err).__name__
        report.faults.append(f"{kind} {case}: {err!r}")
    took_s = time.perf_counter() - started_s
    report.slowest_s = max(report.slowest_s, took_s)
    if took_s > SLOWEST_S:
        report.faults.append(f"{kind} {case}: {took_s:.0f} s")
    report.outcomes[f"{kind} {outcome}"] += 1


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _rss_bytes(processes: DecoderProcesses) -> int:
    """Memory of the server and twice that of the largest idle process, whose number varies."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) for pid in _running(processes)]
    own = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return (own + 2 * max(pages, default=0)) * os.sysconf("SC_PAGESIZE")


def _running(processes: DecoderProcesses) -> list[int]:
    return [pid for pid in processes.pids if Path(f"/proc/{pid}/statm").exists()]


def main() -> int:
    """Run as the command line asks; the status is 1 if anything broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="damaged images, and as many drawings")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    configure_logging(level="error", as_json=True)
    fork_server = ForkServer(limits=LIMITS)
    started_s = time.perf_counter()
    report = asyncio.run(run(options.count, options.seed, fork_server))
    sys.stdout.write(f"{report}\n{2 * options.count} cases in {time.perf_counter() - started_s:.0f} s\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
