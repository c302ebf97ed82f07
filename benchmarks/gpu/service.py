"""The whole service on the device, over a socket."""

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import httpx
import numpy as np

from benchmarks.gpu.generator import Fired, Generators
from benchmarks.serve.contenders import CONTENDERS, Contender
from benchmarks.serve.measure import running
from benchmarks.serve.processes import cpu_s, rss_bytes

Row = dict[str, object]

START_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is varied."""

    decode_workers: int
    max_batch: int
    has_graphs: bool
    port: int


def contender(device: str, setting: Setting) -> Contender:
    """The service with caches off."""
    command = CONTENDERS[0].command
    if not setting.has_graphs:
        command = (
            command[0],
            f"import models.acceleration.cuda_graphs; models.acceleration.cuda_graphs.LARGEST = 0; {command[1]}",
            *command[2:],
        )
    varied = {
        "VERMOUTH_DEVICE": device,
        "VERMOUTH_LANES": "0",
        "VERMOUTH_DECODE_WORKERS": str(setting.decode_workers),
        "VERMOUTH_MAX_BATCH": str(setting.max_batch),
        "VERMOUTH_MAX_IN_FLIGHT": "512",
        "VERMOUTH_MAX_DECODE_WAITING": "1024",
        "VERMOUTH_DRAIN_DELAY_S": "0.5",
    }
    return replace(CONTENDERS[0], command=command, variables={**CONTENDERS[0].variables, **varied})


@contextlib.contextmanager
def started(device: str, settings: list[Setting]) -> "Iterator[list[subprocess.Popen[bytes]]]":
    """A server a setting, all started at once: their starts take longer than what is measured."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(running(contender(device, each), each.port, "")) for each in settings]


def measure(
    setting: Setting, process: "subprocess.Popen[bytes]", generators: Generators, *, clients: int, seconds: float
) -> Row:
    """Capacity, and latency at four fifths of it."""
    with httpx.Client(base_url=f"http://127.0.0.1:{setting.port}", timeout=60) as client:
        _wait(client, process)
        generators.closed_loop(setting.port, clients, min(1.5, seconds))
        before, used_s = _metrics(client), cpu_s(process.pid)
        full = generators.closed_loop(setting.port, clients, seconds)
        after, spent_s = _metrics(client), cpu_s(process.pid) - used_s
        partly = generators.open_loop(setting.port, 0.8 * full.per_s, seconds)
        loaded = _metrics(client)
    return {
        "decode_workers": setting.decode_workers,
        "max_batch": setting.max_batch,
        "graphs": setting.has_graphs,
        "clients": clients,
        "capacity_per_s": full.per_s,
        "mean_batch": _mean(before, after, "vermouth_batch_size", 'kind="images"'),
        "pass_ms": _mean(before, after, "vermouth_batch_execution_seconds", 'kind="images"') * 1e3,
        "decode_ms": _mean(before, after, "vermouth_decode_seconds", "") * 1e3,
        "server_cores": spent_s / full.seconds,
        "generator_share": max(full.busiest, partly.busiest),
        "full": _latency(full),
        "at_0.8": {**_latency(partly), "mean_batch": _mean(after, loaded, "vermouth_batch_size", 'kind="images"')},
        "rss_mib": rss_bytes(process.pid) / 2**20,
        "gpu_reserved_mib": _total(loaded, "vermouth_device_memory_bytes", 'kind="reserved"') / 2**20,
        "gpu_allocated_mib": _total(loaded, "vermouth_device_memory_bytes", 'kind="allocated"') / 2**20,
    }


def _wait(client: httpx.Client, process: "subprocess.Popen[bytes]") -> None:
    until_s = time.perf_counter() + START_LIMIT_S
    while time.perf_counter() < until_s and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/readyz").status_code == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the service did not start (exit code {process.poll()})")


def drained(setting: Setting, process: "subprocess.Popen[bytes]", generators: Generators) -> Row:
    """A service told to end under load: its exit code, and what its clients got. A refused connection counts as 0."""
    timer = threading.Timer(1.0, process.send_signal, (signal.SIGTERM,))
    timer.start()
    fired = generators.closed_loop(setting.port, 8, 2.5)
    timer.join()
    started_s = time.perf_counter()
    code = process.wait(30)
    return {"exit_code": code, "exit_s": time.perf_counter() - started_s, "statuses": _latency(fired)["statuses"]}


def _latency(fired: Fired) -> Row:
    answered_ms = [shot.latency_s * 1e3 for shot in fired.shots if shot.status == 200] or [float("nan")]
    statuses: dict[str, int] = {}
    for shot in fired.shots:
        statuses[str(shot.status)] = statuses.get(str(shot.status), 0) + 1
    p50, p95, p99 = np.percentile(answered_ms, [50, 95, 99]).tolist()
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "statuses": statuses}


def _metrics(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").raise_for_status().text.splitlines()
    return {line.rpartition(" ")[0]: float(line.split()[-1]) for line in lines if line and line[0] != "#"}


def _total(metrics: dict[str, float], name: str, label: str) -> float:
    return sum(value for key, value in metrics.items() if key.partition("{")[0] == name and label in key)


def _mean(before: dict[str, float], after: dict[str, float], name: str, label: str) -> float:
    """Of a histogram between two readings."""
    sums, counts = (_total(after, name + end, label) - _total(before, name + end, label) for end in ("_sum", "_count"))
    return sums / counts if counts else float("nan")
