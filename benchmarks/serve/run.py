"""Measure this service beside the servers a user would choose instead, in one run on one machine: `make bench-serve`.

With `--against REVISION`, measure only this service, from this tree and from that revision in turns.
"""

import math
import os
import random
import statistics
import subprocess
import sys
from argparse import Namespace
from contextlib import closing
from dataclasses import asdict

from benchmarks.load import Generators
from benchmarks.report import ROOT, arguments, header, shown
from benchmarks.serve.measure import FACTORS, Load, Plan, measure
from benchmarks.serve.report import Report
from benchmarks.serve.shared_pass import three_tasks
from benchmarks.server import VERMOUTH, Server, running, server_of

# Settings and their reasons are in each module.
PEERS = {
    "LitServe": "litserve_server {port}",
    "mosec": "mosec_server --port {port} --timeout 30000",
    "Ray Serve": "ray_server {port}",
    "FastAPI": "fastapi_server {port}",
}
# The glibc settings that this service makes for itself (docs/adr/0029), for every other process: fewer page faults.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def main() -> None:
    """Measure and write `docs/results/serve.*`, or print the ratios to another revision."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3, help="every server has its turn in each")
    parser.add_argument("--images", type=int, default=1024, help="distinct; none is in flight twice at a time")
    parser.add_argument("--common", type=float, default=40.0, help="arrivals a second of one load that all get")
    parser.add_argument("--peers", default="/tmp/peers/bin/python", help="interpreter with litserve, mosec, ray")
    parser.add_argument("--only", default="", help="names of servers, comma-separated")
    parser.add_argument("--against", metavar="REVISION", help="compare with this service at another git revision")
    options = parser.parse_args()
    about = header("make bench-serve")  # first: its load average is that without this run
    factors = () if options.against else FACTORS
    plan = Plan(seconds=options.seconds, clients=24, common_per_s=options.common, factors=factors)
    with closing(Generators(options.images, deadline_s=plan.deadline_s)) as generators:
        if options.against:
            sys.stdout.write(f"{about} {_compare(options.against, generators, plan, options.rounds)}\n")
        else:
            _side_by_side(options, about, generators, plan)


def _side_by_side(options: Namespace, about: str, generators: Generators, plan: Plan) -> None:
    servers = [VERMOUTH]
    for name, command in PEERS.items():
        arguments = ("-m", *f"benchmarks.serve.{command}".split())
        servers.append(Server(name=name, command=arguments, variables=MALLOC, python=options.peers))
    servers = [server for server in servers if not options.only or server.name in options.only.split(",")]
    limits: dict[str, list[float]] = {}
    rounds: list[dict[str, dict[str, Load]]] = []
    for number in range(options.rounds):
        for workers, threads in ((1, 1), (1, 2), (2, 1)):
            way = f"{workers} encoding at {threads} torch threads"
            limits.setdefault(way, []).append(_direct(workers, options.seconds, threads))
        rounds.append({})
        # The machine is faster at times: no server always comes first, or after the same one.
        for server in random.Random(number).sample(servers, len(servers)):
            try:
                with running(server) as service:
                    loads = measure(service, generators, plan, seed=number)
            except RuntimeError as err:
                sys.stderr.write(f"{err}\n")
                continue
            rounds[-1][server.name] = loads
            sys.stderr.write(f"round {number + 1}, {server.name}: {loads['full'].offered_per_s:.1f} a second\n")
    three = three_tasks(max(4, 4 * int(options.seconds)))
    Report(header=about, plan=plan, rounds=rounds, limits=limits, three=three).write(options.out)
    sys.stderr.write(f"written to {options.out}\n")


def _compare(revision: str, generators: Generators, plan: Plan, rounds: int) -> str:
    """Return the median ratios, this tree / the revision, of capacity and of p99 at the common load.

    Each round starts both servers, one after the other, in alternating order; a ratio is taken within a round, since
    the machine itself may be faster in the next one. Raises RuntimeError if a server does not start.
    """
    ratios: dict[str, list[float]] = {"capacity": [], f"p99 at {plan.common_per_s} requests/s": []}
    with server_of(revision) as other:
        for number in range(rounds):
            results = {}
            for server in (VERMOUTH, other) if number % 2 else (other, VERMOUTH):
                with running(server) as service:
                    results[server.name] = loads = measure(service, generators, plan, seed=number)
                for load in loads.values():
                    sys.stderr.write(f"round {number + 1}: {shown(asdict(load))}\n")
            new, old = results[VERMOUTH.name], results[other.name]
            capacity, p99 = ratios.values()
            capacity.append(new["full"].offered_per_s / old["full"].offered_per_s)
            p99.append((new["common"].p99_ms or math.inf) / (old["common"].p99_ms or math.inf))
    medians = (
        f"{name} {statistics.median(each):.3f} of {', '.join(map(shown, each))}" for name, each in ratios.items()
    )
    return f"This tree / {revision}, medians of {rounds} rounds: {'; '.join(medians)}."


def _direct(workers: int, seconds: float, threads: int) -> float:
    """Return the direct loop's images a second, from a process of its own with thread settings of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serve.direct", *map(str, (workers, seconds, threads))],
        cwd=ROOT,
        env={**os.environ, **MALLOC, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


if __name__ == "__main__":
    main()
