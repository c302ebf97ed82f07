"""Measure one server under every load: capacity, goodput, latency and what it cost."""

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import numpy as np

from benchmarks.load import Generators, Response, jpeg
from benchmarks.report import percentile_ms
from benchmarks.server import Running, health

FACTORS = (0.5, 0.8, 1.0, 2.0, 5.0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how hard every server is loaded."""

    seconds: float  # of each load
    clients: int  # of the closed loop that finds the capacity
    deadline_s: float = 5.0  # a later answer does not count as goodput
    common_per_s: float | None = None  # arrivals of a load that is the same for all servers; None leaves it out
    factors: Sequence[float] = FACTORS  # further loads, in multiples of the server's own capacity


@dataclass(frozen=True, kw_only=True)
class Load:
    """The outcome of one load."""

    server: str
    load: str  # `full`, the closed loop; `common`; or a multiple of the capacity, as `0.5×`
    offered_per_s: float  # of the closed loop, the capacity
    goodput_per_s: float
    p50_ms: float | None  # None without answers
    p95_ms: float | None
    p99_ms: float | None
    late: int
    statuses: dict[str, int]
    server_cpu_s: float
    generator_cpu_s: float
    rss_mib: float
    processes: int
    health_p99_ms: float | None
    retry_after_within_2: float | None
    mean_batch: float | None  # None for servers without such metrics, as the next two
    pass_ms: float | None
    decode_ms: float | None


def measure(service: Running, generators: Generators, plan: Plan, *, seed: int = 0) -> dict[str, Load]:
    """Return every load by its name, the closed loop first. Raises RuntimeError if the server does not start."""
    service.wait_until_ready("/embed", files={"image": jpeg(0)})
    generators.closed_loop(service.port, plan.clients, plan.seconds / 3)  # warm-up
    full = _measured(service, generators, plan, "full")
    rates = {"common": plan.common_per_s} if plan.common_per_s else {}
    rates |= {f"{factor}×": factor * full.offered_per_s for factor in plan.factors}
    loads = {"full": full}
    for number, (name, rate) in enumerate(rates.items()):
        loads[name] = _measured(service, generators, plan, name, rate=rate, seed=seed * len(rates) + number)
        time.sleep(1.0)
    return loads


def median_of(rounds: Sequence[Load]) -> dict[str, Any]:
    """Merge one load of several rounds: medians, but sums of late answers and of statuses."""
    merged = asdict(rounds[0])
    for name in merged.keys() - {"server", "load"}:
        values = [value for load in rounds if (value := getattr(load, name)) is not None]
        if name == "statuses":
            merged[name] = dict(sum(map(Counter, values), Counter[str]()))
        elif values:
            merged[name] = sum(values) if name == "late" else statistics.median(values)
    return merged


def _measured(
    service: Running, generators: Generators, plan: Plan, name: str, *, rate: float | None = None, seed: int = 0
) -> Load:
    """Measure arrivals at a rate or, without one, the closed loop of `plan.clients`."""
    before, cpu_s = metrics(service), service.cpu_s()
    with health(service, 0.1) as health_s:
        if rate is None:
            run = generators.closed_loop(service.port, plan.clients, plan.seconds)
        else:
            run = generators.open_loop(service.port, rate, plan.seconds, seed)
    cpu_s, after = service.cpu_s() - cpu_s, metrics(service)
    good = [response for response in run.answered if response.latency_s <= plan.deadline_s]
    # Answers come after the last arrival too; counting that time keeps goodput at or under capacity.
    span_s = max([plan.seconds, *(response.sent_s + response.latency_s for response in good)])
    return Load(
        server=service.server.name,
        load=name,
        offered_per_s=len(run.answered) / run.seconds if rate is None else rate,
        goodput_per_s=len(good) / span_s,
        late=len(run.answered) - len(good),
        server_cpu_s=cpu_s,
        generator_cpu_s=run.cpu_s,
        rss_mib=service.rss_mib(),
        processes=len(service.family()),
        health_p99_ms=percentile_ms(health_s, 99) if health_s else None,
        retry_after_within_2=retry_after_within_2(run.responses),
        mean_batch=_mean(before, after, "vermouth_batch_size"),
        pass_ms=_mean(before, after, "vermouth_batch_execution_seconds", scale=1e3),
        decode_ms=_mean(before, after, "vermouth_decode_seconds", scale=1e3),
        **run.summary(),
    )


def metrics(service: Running) -> dict[str, float]:
    """Return this service's own metrics by name and labels; none of a server that has no such metrics."""
    with service.client() as client, contextlib.suppress(httpx.TransportError):
        lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith("vermouth_")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
    return {}


def _mean(before: Mapping[str, float], after: Mapping[str, float], name: str, *, scale: float = 1.0) -> float | None:
    """Return the mean that a histogram gained between two readings, text passes left out."""
    keys = [key for key in after if 'kind="texts"' not in key]
    sums, counts = (
        sum(after[key] - before.get(key, 0.0) for key in keys if key.partition("{")[0] == f"{name}_{part}")
        for part in ("sum", "count")
    )
    return scale * sums / counts if counts else None


def retry_after_within_2(responses: Sequence[Response]) -> float | None:
    """Return the share of refusals whose `Retry-After` is within a factor of two of the wait at that moment.

    That is the latency of the admitted request that was sent nearest to it. None without refusals or without answers.
    """
    admitted = [response for response in responses if response.status == 200]
    refused = [response for response in responses if response.status == 429 and response.retry_after_s is not None]
    if not admitted or not refused:
        return None
    sent_s = np.array([response.sent_s for response in admitted])
    within = 0
    for response in refused:
        wait_s = admitted[int(np.abs(sent_s - response.sent_s).argmin())].latency_s
        # `Retry-After` is in whole seconds, at least one, so a second is right for any shorter wait.
        within += wait_s / 2 <= (response.retry_after_s or 0.0) <= max(2 * wait_s, np.ceil(wait_s))
    return within / len(refused)
