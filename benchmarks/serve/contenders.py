"""Who takes part, each with the settings that did best for it here, and why."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A server as a command; `{port}` is filled in.

    Attributes:
        settings: each with its reason, for the report.
        needs_peers: run by the interpreter that has the peers' packages.
    """

    name: str
    command: Sequence[str]
    variables: Mapping[str, str]
    settings: Mapping[str, str]
    needs_peers: bool = True

    def start(self, port: int, peers: str) -> "subprocess.Popen[bytes]":
        """The server's process, in a process group of its own."""
        data = tempfile.mkdtemp(prefix="bench-serve-")
        python = peers if self.needs_peers else sys.executable
        filled = [part.format(port=port) for part in self.command]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("VERMOUTH_")}
        variables = {name: value.format(port=port, data=data) for name, value in self.variables.items()}
        return subprocess.Popen(
            [python, *filled],
            cwd=ROOT,
            env={**kept, **_COMMON, **(KEPT_MEMORY if self.needs_peers else {}), "PYTHONPATH": _path(), **variables},
            stdout=subprocess.DEVNULL,
            stderr=Path(data, "stderr.txt").open("wb"),
            start_new_session=True,
        )


KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""What our server tells glibc by itself (docs/adr/0029), for everybody else."""
_COMMON = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _path() -> str:
    """This checkout before what else Python was told to look in."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


_KEPT = {"MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_, MALLOC_TOP_PAD_": "fewer page faults, as ours sets by itself"}
_ONE_THREAD = "the other core decodes and serves; two OpenMP threads on a busy core stall each other"

CONTENDERS = (
    Contender(
        name="vermouth",
        command=("-c", "from app.cli.main import app; app(['serve'])"),
        variables={
            "VERMOUTH_PORT": "{port}",
            "VERMOUTH_BUNDLE": os.environ.get("BENCH_BUNDLE") or "weights/mini",
            "VERMOUTH_DATA_DIR": "{data}/state",
            "VERMOUTH_FEATURE_CACHE_BYTES": "0",
            "VERMOUTH_PICTURE_CACHE_BYTES": "0",
            "VERMOUTH_LANES": "2",
            "VERMOUTH_THREADS": "1",
            "VERMOUTH_DECODE_WORKERS": "1",
            "VERMOUTH_MAX_BATCH": "8",
            "VERMOUTH_MAX_IN_FLIGHT": "48",
            "VERMOUTH_LOG_LEVEL": "warning",
        },
        settings={
            "feature_cache_bytes=0, picture_cache_bytes=0": "every request must cost a decoding and a pass here",
            "lanes=2, threads=1, decode_workers=1 (what it chooses on two cores)": "two passes of one thread do twice "
            "the work of one pass of two; they take what the loop and the decoder leave",
            "max_batch=8 (what it chooses on a CPU)": "half of it in bursts (ADR 39); eight always: p99 at 0.8× "
            "639 ms instead of 423",
            "max_in_flight=48": "about a second of work: passes, one batch behind them, and what is decoded meanwhile",
        },
        needs_peers=False,
    ),
    Contender(
        name="LitServe",
        command=("-m", "benchmarks.serve.servers.lit", "{port}"),
        variables={"BENCH_THREADS": "1", "BENCH_ENCODERS": "2"},
        settings={
            **_KEPT,
            "workers_per_device=2": "one decodes while the other encodes: 32 a second, 19 with one",
            "max_batch_size=8, batch_timeout=10 ms": "full batches under load, little wait without",
            "two decoding threads, torch threads=1": _ONE_THREAD,
        },
    ),
    Contender(
        name="mosec",
        command=("-m", "benchmarks.serve.servers.mosec_server", "--port", "{port}", "--timeout", "30000"),
        variables={"BENCH_THREADS": "1", "BENCH_DECODERS": "1", "BENCH_ENCODERS": "1"},
        settings={
            **_KEPT,
            "one decoding and one encoding process": "two that encode take smaller batches: 34 a second with either",
            "max_batch_size=8, max_wait_time=10 ms": "as LitServe",
        },
    ),
    Contender(
        name="Ray Serve",
        command=("-m", "benchmarks.serve.servers.ray_serve", "{port}"),
        variables={"BENCH_THREADS": "1", "BENCH_ENCODERS": "2", "RAY_DEDUP_LOGS": "0"},
        settings={
            **_KEPT,
            "two replicas": "18 a second, 17 with one",
            "max_ongoing_requests=256": "the queue stays in the replicas, where it is batched",
            "@serve.batch(8, 10 ms), decoding in two threads": "as LitServe",
        },
    ),
    Contender(
        name="FastAPI",
        command=("-m", "benchmarks.serve.servers.fastapi_pool", "{port}"),
        variables={"BENCH_POOL_THREADS": "2"},
        settings={
            **_KEPT,
            "two pool threads, torch threads=1": "one image a pass on each core; 40 threads only queue",
        },
    ),
)
