"""Serving on a GPU, measured and checked: `python -m benchmarks.gpu --out FOLDER`. Writes `gpu.json`, `.md`, `.png`.

With `--device cpu` what needs no GPU runs at a small size; the rest says that it was left out.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu import agreement, encoder, engine, pictures, report, service
from benchmarks.gpu.generator import Generators
from benchmarks.header import header
from benchmarks.serve.contenders import ROOT
from benchmarks.serve.shared_pass import three_tasks

PORT = 8731
NO_GPU = "Left out: this needs a GPU."
NO_FAISS = "Left out: the FAISS build for GPUs is not installed; exact search ran on the CPU (ADR 35)."


class Run:
    """Sections one after another; one that fails or comes too late loses itself alone."""

    def __init__(self, folder: Path, device: str, limit_s: float, only: str) -> None:
        self._folder, self._limit_s, self._begun_s = folder, limit_s, time.perf_counter()
        self._only = [name for name in only.split(",") if name]
        name = torch.cuda.get_device_name() if device.startswith("cuda") else "no GPU"
        self.found = {
            "header": header(f"python -m benchmarks.gpu --device {device}"),
            "machine": f"{name}, torch {torch.__version__}",
            "sections": {},
        }

    def note(self, line: str) -> None:
        """A line with the seconds since the start."""
        sys.stderr.write(f"[{time.perf_counter() - self._begun_s:6.1f} s] {line}\n")
        sys.stderr.flush()

    def section(self, name: str, call: Callable[[], object], *, needs_s: float) -> None:
        """Its result, or why there is none; then everything is written."""
        sections: dict[str, object] = self.found["sections"]  # type: ignore[assignment]  # made above
        if self._only and not any(name.startswith(each) for each in self._only):
            return
        self.note(name)
        left_s = self._limit_s - (time.perf_counter() - self._begun_s)
        if left_s < needs_s:
            sections[name] = f"Left out: {left_s:.0f} s were left, and it takes about {needs_s:.0f}."
        else:
            try:
                sections[name] = call()
            except Exception as err:  # noqa: BLE001 - the others are still worth having
                sections[name] = f"Failed: {type(err).__name__}: {err}"
                self.note(traceback.format_exc())
        self.note(f"{name}: {sections[name]}")
        report.write(self._folder, self.found)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for everything")
    parser.add_argument("--only", default="", help="beginnings of sections' names, comma-separated")
    parser.add_argument("--pictures", type=Path, default=Path(tempfile.gettempdir()) / "bench-gpu-pictures.npz")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    options = parser.parse_args()
    # Ended from outside, it ends its servers all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    is_cuda = options.device.startswith("cuda")
    device, seconds = options.device, options.seconds
    run = Run(options.out, device, options.limit, options.only)
    if not options.pictures.exists():
        pictures.render(options.pictures, 256)
    if is_cuda:
        sizes, count, threads = [1, 4, 8, 32, 64, 256], 256, max(1, (os.cpu_count() or 2) - 2)
        pairs = [(8, 32, True), (8, 32, False), (14, 64, True), (4, 32, True)]
    else:
        sizes, count, threads, pairs = [1, 4], 12, 1, [(1, 8, False)]
    torch.set_num_threads(threads)
    settings = [
        service.Setting(decode_workers=workers, max_batch=batch, has_graphs=graphs, port=PORT + number)
        for number, (workers, batch, graphs) in enumerate(pairs)
    ]
    clients = 128 if is_cuda else 4
    generators = Generators(2 if is_cuda else 1, 192 if is_cuda else 16)
    try:
        with service.started(device, settings) as processes:
            run.section("agreement", lambda: agreement.agreement(device, options.pictures, count, run.note), needs_s=5)
            torch.set_num_threads(1)
            flood = (512, 64) if is_cuda else (12, 4)
            run.section("out of memory", lambda: engine.out_of_memory(device, *flood), needs_s=5)
            dtypes = ("fp16", "fp32") if is_cuda else ("fp32",)
            views = 32 if is_cuda else 2
            run.section("reproducible", lambda: engine.reproducible(device, views, dtypes), needs_s=5)
            for setting, process in zip(settings, processes, strict=True):
                measured = partial(service.measure, setting, process, generators, clients=clients, seconds=seconds)
                run.section(f"service {setting.port - PORT + 1}", measured, needs_s=2 * seconds + 4)
            run.section("drain", lambda: service.drained(settings[0], processes[0], generators), needs_s=8)
            run.section("encoder", lambda: encoder.speed(device, sizes, 9 * seconds, run.note), needs_s=10 * seconds)
    finally:
        generators.close()
    base = service.contender(device, settings[0])
    run.section("three tasks", lambda: three_tasks(32 if is_cuda else 2, port=PORT + 50, base=base), needs_s=60)
    run.section("FAISS on the GPU", lambda: NO_FAISS if is_cuda else NO_GPU, needs_s=0)
    run.note(f"written to {options.out}")


if __name__ == "__main__":
    main()
