"""`make bench-serve`: this service beside the servers a user would pick instead, in one run on one machine."""

import argparse
import datetime
import os
import platform
import random
import subprocess
import sys
from pathlib import Path

from benchmarks.serve.contenders import CONTENDERS, KEPT_MEMORY, ROOT
from benchmarks.serve.images import jpeg
from benchmarks.serve.measure import Plan, Result, measure
from benchmarks.serve.report import Report
from benchmarks.serve.shared_pass import three_tasks

_DIRECT = (
    "import sys; from benchmarks.serve import direct; from benchmarks.serve.images import jpeg; "
    "print(getattr(direct, sys.argv[1])([jpeg(n) for n in range(64)], float(sys.argv[2]), int(sys.argv[3])))"
)
_DIRECT_WAYS = (
    ("one_after_another", 1),
    ("one_after_another", 2),
    ("side_by_side", 1),
    ("side_by_side", 2),
    ("two_lanes", 1),
)


def main() -> None:
    """Measure and write `docs/results/serve.*`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3, help="every contender has its turn in each")
    parser.add_argument("--images", type=int, default=1024, help="distinct; none is in flight twice at a time")
    parser.add_argument("--clients", type=int, default=24, help="of the closed loop that finds the capacity")
    parser.add_argument("--common", type=float, default=40.0, help="arrivals a second of one load that all get")
    parser.add_argument("--deadline", type=float, default=5.0, help="seconds")
    parser.add_argument("--port", type=int, default=8711)
    parser.add_argument("--peers", default="/tmp/peers/bin/python", help="interpreter with litserve, mosec, ray")
    parser.add_argument("--only", default="", help="names of contenders, comma-separated")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    options = parser.parse_args()
    chosen = [name for name in options.only.split(",") if name]
    load_before = ", ".join(f"{load:.2f}" for load in os.getloadavg())
    images = [jpeg(number) for number in range(options.images)]
    plan = Plan(
        seconds=options.seconds,
        clients=options.clients,
        deadline_s=options.deadline,
        common_per_s=options.common,
    )
    limits: dict[str, list[float]] = {}
    wanted = [each for each in CONTENDERS if not chosen or each.name in chosen]
    results: dict[str, list[Result | None]] = {each.name: [] for each in wanted}
    for number in range(options.rounds):
        for way, threads in _DIRECT_WAYS:
            found = _direct(way, options.seconds, threads)
            limits.setdefault(f"{way} ({threads} torch threads)", []).append(found)
        # The machine is faster at times: nobody always comes first, or after the same one.
        order = list(wanted)
        random.Random(number).shuffle(order)
        for place, contender in enumerate(order):
            port = options.port + number * len(wanted) + place
            try:
                result = measure(contender, images, plan, port=port, peers=options.peers, seed=number)
            except RuntimeError as err:
                sys.stderr.write(f"{err}\n")
                results[contender.name].append(None)
                continue
            results[contender.name].append(result)
            sys.stderr.write(f"round {number + 1}, {contender.name}: {result.capacity_per_s:.1f} a second\n")
    three = three_tasks(max(4, 4 * int(options.seconds)), port=options.port + 99)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    run = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": git.stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {_cpu()}, Python {platform.python_version()}",
        "seconds": options.seconds,
        "rounds": options.rounds,
        "deadline_s": options.deadline,
        "common_per_s": options.common,
        "load_before": load_before,
    }
    Report(rounds=results, limits=limits, three=three, run=run).write(options.out)
    sys.stderr.write(f"written to {options.out}\n")


def _direct(way: str, seconds: float, threads: int) -> float:
    """In a process of its own, so that thread settings do not leak."""
    done = subprocess.run(
        [sys.executable, "-c", _DIRECT, way, str(seconds), str(threads)],
        cwd=ROOT,
        env={**os.environ, **KEPT_MEMORY, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
