"""Measure the whole service on the device, over HTTP."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from benchmarks.load import Generators
from benchmarks.serve.measure import Plan, measure, metrics
from benchmarks.server import VERMOUTH, Running, Server, running


class Setting(NamedTuple):
    """The settings that are varied."""

    decode_workers: int
    max_batch: int
    has_graphs: bool = True


def server_of(device: str, setting: Setting) -> Server:
    """Return the service on the device, with its caches off."""
    command = VERMOUTH.command
    if not setting.has_graphs:  # then no batch is small enough for a graph
        command = (command[0], f"from models.acceleration import recording as g; g.LARGEST = 0; {command[1]}")
    varied = {
        "VERMOUTH_DEVICE": device,
        "VERMOUTH_LANES": "0",  # the service's own choice
        "VERMOUTH_DECODE_WORKERS": str(setting.decode_workers),
        "VERMOUTH_MAX_BATCH": str(setting.max_batch),
        "VERMOUTH_MAX_IN_FLIGHT": "512",
        "VERMOUTH_MAX_DECODE_WAITING": "1024",
        "VERMOUTH_DRAIN_DELAY_S": "0.5",
    }
    return replace(VERMOUTH, command=command, variables={**VERMOUTH.variables, **varied})


@contextlib.contextmanager
def started(device: str, settings: Sequence[Setting]) -> Iterator[list[Running]]:
    """Start a server for each setting, all at once: a start takes longer than what is measured."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(running(server_of(device, each))) for each in settings]


def loaded(setting: Setting, service: Running, generators: Generators, plan: Plan) -> dict[str, Any]:
    """Return a row for each load of the plan, and the GPU memory that the service held in the end."""
    loads = measure(service, generators, plan)
    memory = {key: f"{value / 2**20:.0f} MiB" for key, value in metrics(service).items() if "device_memory" in key}
    return {**setting._asdict(), "clients": plan.clients, **memory, "loads": [asdict(load) for load in loads.values()]}


def drain(service: Running, generators: Generators) -> dict[str, Any]:
    """Send SIGTERM under load; return the exit code and the statuses of all answers. 0 is a refused connection."""
    timer = threading.Timer(1.0, service.process.send_signal, (signal.SIGTERM,))
    timer.start()
    run = generators.closed_loop(service.port, 8, 2.5)
    timer.join()
    started_s = time.perf_counter()
    code = service.process.wait(30)
    return {"exit_code": code, "exit_s": time.perf_counter() - started_s, "statuses": run.summary()["statuses"]}
