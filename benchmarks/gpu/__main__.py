"""Measure and check serving on a GPU: `python -m benchmarks.gpu`. Writes `docs/results/gpu.json`, `.md` and `.png`.

With `--device cpu` everything runs at a small size, to try the benchmark itself.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.encoder import BF16, FP16, FP32, NO_TF32, Precision, profile
from benchmarks.gpu import agreement, engine, service
from benchmarks.gpu.service import Setting
from benchmarks.load import Generators
from benchmarks.report import arguments, header, plot, section, write
from benchmarks.serve.measure import Plan as LoadPlan
from benchmarks.serve.shared_pass import three_tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured; the defaults suit a GPU."""

    precisions: tuple[Precision, ...] = (FP32, FP16, BF16, NO_TF32)
    sizes: tuple[int, ...] = (1, 4, 8, 32, 64, 256)
    images: int = 256
    settings: tuple[Setting, ...] = (Setting(8, 32), Setting(8, 32, has_graphs=False), Setting(14, 64), Setting(4, 32))
    clients: int = 128
    flood: tuple[int, int] = (512, 64)
    views: int = 32


SMALL = Plan(precisions=(FP32,), sizes=(1, 4), images=12, settings=(Setting(1, 8),), clients=4, flood=(12, 4), views=2)


class Run:
    """Runs sections one after another; one that fails does not stop the others."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._started_s = options, time.perf_counter()
        self._sections: dict[str, Any] = {}
        name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "no GPU"
        about = header(f"python -m benchmarks.gpu --device {options.device}")
        self._header = f"{about} {name}, torch {torch.__version__}"

    def log(self, line: str) -> None:
        """Print a line with the seconds since the start."""
        sys.stderr.write(f"[{time.perf_counter() - self._started_s:6.1f} s] {line}\n")
        sys.stderr.flush()

    def section(self, name: str, call: Callable[[], dict[str, Any]]) -> None:
        """Record the result of a call, or its failure, and write the report so far."""
        if not name.startswith(tuple(self._options.only.split(","))):
            return
        try:
            self._sections[name] = call()
        except Exception as err:  # noqa: BLE001 - the other sections are still worth having
            self._sections[name] = {"failed": f"{type(err).__name__}: {err}"}
            self.log(traceback.format_exc())
        self.log(f"{name}: {self._sections[name]}")
        lines = ["# On a GPU", "", f"{self._header}; weights/mini, images of 128 px.", ""]
        for each, found in self._sections.items():
            lines += [f"## {each}", "", *section(found)]
        lines += ["![Images a second and time of a pass](gpu.png)"]
        write(self._options.out, "gpu", lines, {"header": self._header, "sections": self._sections})


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load")
    parser.add_argument("--only", default="", help="beginnings of sections' names, comma-separated")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # stopped from outside, it still stops its servers
    device, seconds = options.device, options.seconds
    plan = Plan() if device.startswith("cuda") else SMALL
    loads = LoadPlan(seconds=seconds, clients=plan.clients, factors=(0.8,))
    run = Run(options)
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 2))
    generators = Generators(192, processes=2)
    with closing(generators), service.started(device, plan.settings) as services:
        run.section("agreement", lambda: agreement.agreement(device, plan.precisions, plan.images))
        torch.set_num_threads(1)
        run.section("out of memory", lambda: engine.out_of_memory(device, *plan.flood))
        run.section("reproducible", lambda: engine.reproducible(device, plan.precisions[:2], plan.views))
        for number, (setting, each) in enumerate(zip(plan.settings, services, strict=True), 1):
            run.section(f"service {number}", partial(service.loaded, setting, each, generators, loads))
        run.section("drain", lambda: service.drain(services[0], generators))
        run.section("encoder", lambda: _encoder(options, plan))
    base = service.server_of(device, plan.settings[0])
    run.section("three tasks", lambda: three_tasks(plan.views, base))
    run.log(f"written to {options.out}")


def _encoder(options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    each_s = 9 * options.seconds / len(plan.precisions) / len(plan.sizes)
    found = profile(options.device, plan.precisions, plan.sizes, each_s)
    with plot(options.out / "gpu.png") as (rate, spent):
        for precision in plan.precisions:
            rows = [row for row in found if row["precision"] == precision.name]
            sizes = [row["batch"] for row in rows]
            rate.plot(sizes, [row["images_per_s"] for row in rows], marker="o", label=precision.name)
            (line,) = spent.plot(sizes, [row["launched_ms"] for row in rows], marker="o")
            spent.plot(sizes, [row["served"]["ms"] for row in rows], linestyle=":", marker=".", color=line.get_color())
        rate.set(xscale="log", xlabel="batch", ylabel="images/s", title="As served, with the copies there and back")
        spent.set(xscale="log", yscale="log", xlabel="batch", ylabel="ms", title="A pass, launched; dotted: as served")
        rate.legend()
    return {"rows": found}


if __name__ == "__main__":
    main()
