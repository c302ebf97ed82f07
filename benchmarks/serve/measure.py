"""One contender under every load, and what it cost."""

import asyncio
import contextlib
import os
import resource
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields

import numpy as np

from benchmarks.serve.contenders import Contender
from benchmarks.serve.load import Client, Shot
from benchmarks.serve.processes import cpu_s, family, rss_bytes

FACTORS = (0.5, 0.8, 1.0, 2.0, 5.0)
PATIENCE_FACTOR = 3.0
"""Clients give up after so many deadlines; what comes between counts as late."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how hard.

    Attributes:
        seconds: of each load.
        clients: of the closed loop that finds the capacity.
        deadline_s: an answer later than this is worth nothing.
        common_per_s: arrivals of a load that is the same for everyone.
    """

    seconds: float
    clients: int
    deadline_s: float
    common_per_s: float
    start_limit_s: float = 240.0


@dataclass(kw_only=True)
class Load:
    """What came of one rate."""

    factor: float
    offered_per_s: float
    goodput_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    statuses: dict[str, int]
    late: int
    server_cpu_s: float
    generator_cpu_s: float
    rss_mib: float
    health_p99_ms: float | None
    retry_after_within_2: float | None
    shots: list[Shot] = field(default_factory=list, repr=False)


@dataclass(kw_only=True)
class Result:
    """One contender's row."""

    name: str
    settings: dict[str, str]
    capacity_per_s: float
    processes: int
    start_s: float
    common: Load
    loads: list[Load]

    def as_json(self) -> dict[str, object]:
        """Everything but the single shots."""
        body = asdict(self)
        for load in (body["common"], *body["loads"]):
            del load["shots"]
        return body


def measure(
    contender: Contender, images: Sequence[bytes], plan: Plan, *, port: int, peers: str, seed: int = 0
) -> Result:
    """Start it, find its capacity, load it, stop it."""
    started_s = time.perf_counter()
    with running(contender, port, peers) as process:
        client = Client(port, images, patience_s=plan.deadline_s * PATIENCE_FACTOR, deadline_s=plan.deadline_s)
        return asyncio.run(_measured(contender, process, client, plan, started_s, seed))


def median_of(rounds: Sequence[Result]) -> Result:
    """One contender's row over several rounds: medians; what came late and other answers are added up."""
    return Result(
        name=rounds[0].name,
        settings=rounds[0].settings,
        capacity_per_s=statistics.median(each.capacity_per_s for each in rounds),
        processes=rounds[0].processes,
        start_s=statistics.median(each.start_s for each in rounds),
        common=_median_load([each.common for each in rounds]),
        loads=[_median_load(loads) for loads in zip(*(each.loads for each in rounds), strict=True)],
    )


def _median_load(loads: Sequence[Load]) -> Load:
    names = [each.name for each in fields(Load) if each.name not in ("statuses", "late", "shots")]
    values = {name: [v for load in loads if (v := getattr(load, name)) is not None] for name in names}
    statuses: dict[str, int] = {}
    for load in loads:
        for status, count in load.statuses.items():
            statuses[status] = statuses.get(status, 0) + count
    return Load(
        **{name: statistics.median(found) if found else None for name, found in values.items()},
        statuses=statuses,
        late=sum(load.late for load in loads),
    )


async def _measured(
    contender: Contender, process: "subprocess.Popen[bytes]", client: Client, plan: Plan, started_s: float, seed: int
) -> Result:
    def check() -> None:
        if process.poll() is not None or time.perf_counter() - started_s > plan.start_limit_s:
            raise RuntimeError(f"{contender.name} did not start (exit code {process.poll()})")

    await client.until_answered(check)
    start_s = time.perf_counter() - started_s
    await client.closed_loop(plan.clients, plan.seconds / 3)
    begun_s = time.perf_counter()
    shots = await client.closed_loop(plan.clients, plan.seconds)
    capacity = sum(shot.status == 200 for shot in shots) / (time.perf_counter() - begun_s)
    common = await _load(process.pid, client, plan.common_per_s / capacity, capacity, plan, seed=seed)
    await asyncio.sleep(1.0)
    loads = []
    for number, factor in enumerate(FACTORS):
        loads.append(await _load(process.pid, client, factor, capacity, plan, seed=seed * len(FACTORS) + number))
        await asyncio.sleep(1.0)
    client.close()
    return Result(
        name=contender.name,
        settings=dict(contender.settings),
        capacity_per_s=capacity,
        processes=len(family(process.pid)),
        start_s=start_s,
        common=common,
        loads=loads,
    )


async def _load(pid: int, client: Client, factor: float, capacity: float, plan: Plan, *, seed: int) -> Load:
    cpu_before_s, own_before_s = cpu_s(pid), _own_cpu_s()
    health = asyncio.create_task(client.health("/livez", 0.1, plan.seconds))
    shots = await client.open_loop(factor * capacity, plan.seconds, seed)
    try:
        health_ms = np.array(await health) * 1000
    except (OSError, asyncio.IncompleteReadError):
        health_ms = np.array([])
    good = [shot for shot in shots if shot.status == 200 and shot.latency_s <= plan.deadline_s]
    answered_ms = np.array([shot.latency_s for shot in shots if shot.status == 200]) * 1000
    p50, p95, p99 = np.percentile(answered_ms, [50, 95, 99]).tolist() if len(answered_ms) else (None, None, None)
    statuses: dict[str, int] = {}
    for shot in shots:
        statuses[str(shot.status)] = statuses.get(str(shot.status), 0) + 1
    # Work goes on after the last arrival; counting that time too keeps goodput at or under capacity.
    span_s = max([plan.seconds, *(shot.sent_s + shot.latency_s for shot in good)])
    return Load(
        factor=factor,
        offered_per_s=factor * capacity,
        goodput_per_s=len(good) / span_s,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        statuses=statuses,
        late=len(answered_ms) - len(good),
        server_cpu_s=cpu_s(pid) - cpu_before_s,
        generator_cpu_s=_own_cpu_s() - own_before_s,
        rss_mib=rss_bytes(pid) / 2**20,
        health_p99_ms=float(np.percentile(health_ms, 99)) if len(health_ms) else None,
        retry_after_within_2=retry_after_within_2(shots),
        shots=shots,
    )


def retry_after_within_2(shots: Sequence[Shot]) -> float | None:
    """Share of refusals whose `Retry-After` is within a factor of two of the wait at that moment.

    The wait at a moment is the latency of the admitted request that was sent nearest to it. `Retry-After` is in whole
    seconds, one at least, so a second is allowed for any shorter wait.
    """
    admitted = sorted((shot for shot in shots if shot.status == 200), key=lambda shot: shot.sent_s)
    refused = [shot for shot in shots if shot.status == 429 and shot.retry_after_s is not None]
    if not admitted or not refused:
        return None
    sent = np.array([shot.sent_s for shot in admitted])
    within = 0
    for shot in refused:
        wait_s = admitted[int(np.abs(sent - shot.sent_s).argmin())].latency_s
        told_s = shot.retry_after_s or 0.0
        within += wait_s / 2 <= told_s <= max(2 * wait_s, np.ceil(wait_s))
    return within / len(refused)


@contextlib.contextmanager
def running(contender: Contender, port: int, peers: str) -> "Iterator[subprocess.Popen[bytes]]":
    """The contender's process, ended with all below it on the way out."""
    process = contender.start(port, peers)
    try:
        yield process
    finally:
        left = [pid for pid in family(process.pid) if pid != process.pid]
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
