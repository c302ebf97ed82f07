"""Servers under test: start, wait until ready, read CPU and memory from /proc, stop with all child processes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from benchmarks.report import ROOT, git

START_LIMIT_S = 240.0
_COMMON = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server as a Python command; `{port}` and `{data}` are filled in at its start."""

    name: str
    command: Sequence[str]
    variables: Mapping[str, str]
    python: str = sys.executable  # that of a peer has the peer's package
    root: Path = ROOT  # source tree that the server is imported from


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that was started, and its first process."""

    server: Server
    process: "subprocess.Popen[bytes]"
    port: int
    errors: Path
    started_s: float

    def client(self) -> httpx.Client:
        """Return a client of this server."""
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120)

    def wait_until_ready(self, path: str = "/readyz", *, limit_s: float = START_LIMIT_S, **body: Any) -> None:
        """Return once a GET, or a POST of `body`, is answered with 200.

        Raises:
            RuntimeError: the server has exited, or has not answered within `limit_s` of its start.
        """
        with self.client() as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if client.request("POST" if body else "GET", path, **body).status_code == 200:
                        return
                code = self.process.poll()
                if code is not None or time.perf_counter() - self.started_s > limit_s:
                    errors = self.errors.read_text(errors="replace")[-1000:]
                    raise RuntimeError(f"{self.server.name} did not start (exit code {code}): {errors}")
                time.sleep(0.2)

    def family(self) -> dict[int, list[str]]:
        """Map the process and its living descendants to their fields of /proc/PID/stat, from the state on."""
        stats = {int(folder.name): _stat(int(folder.name)) for folder in Path("/proc").glob("[0-9]*")}
        found, size = {self.process.pid}, 0
        while len(found) > size:
            size = len(found)
            found |= {pid for pid, fields in stats.items() if fields and int(fields[1]) in found}
        return {pid: stats[pid] for pid in found if stats.get(pid)}

    def cpu_s(self) -> float:
        """Return user and system time of the family, including children that have exited."""
        return sum(sum(map(int, fields[11:15])) for fields in self.family().values()) * _TICK_S

    def rss_mib(self) -> float:
        """Return resident memory of the family; a shared page counts once for each process."""
        return sum(int(fields[21]) for fields in self.family().values()) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def running(server: Server) -> Iterator[Running]:
    """Start a server on a free port with an empty data folder; on exit, stop it and its descendants."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as data:
        errors = Path(data, "stderr.txt")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("VERMOUTH_")}
        variables = {name: value.format(port=port, data=data) for name, value in server.variables.items()}
        # The server's own tree first: an editable install would import another checkout.
        path = os.pathsep.join([str(server.root), *filter(None, [os.environ.get("PYTHONPATH")])])
        started_s = time.perf_counter()
        process = subprocess.Popen(
            [server.python, *(part.format(port=port) for part in server.command)],
            cwd=server.root,
            env={**inherited, **_COMMON, "PYTHONPATH": path, **variables},
            stdout=subprocess.DEVNULL,
            stderr=errors.open("wb"),
            start_new_session=True,
        )
        service = Running(server=server, process=process, port=port, errors=errors, started_s=started_s)
        try:
            yield service
        finally:
            children = service.family().keys() - {process.pid}
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pid in children:  # workers of a peer that outlive their parent
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def polled(call: Callable[[], Any], every_s: float) -> Iterator[list[Any]]:
    """Yield the results of a call that a thread repeats until the block ends; a failed connection ends it earlier."""
    found: list[Any] = []
    has_ended = threading.Event()

    def poll() -> None:
        with contextlib.suppress(httpx.TransportError):
            while not has_ended.wait(every_s):
                found.append(call())

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield found
    finally:
        has_ended.set()
        thread.join()


@contextlib.contextmanager
def health(service: Running, every_s: float) -> Iterator[list[float]]:
    """Yield the latencies of `/livez` in seconds, measured until the block ends."""
    with service.client() as client, polled(lambda: client.get("/livez").elapsed.total_seconds(), every_s) as found:
        yield found


@contextlib.contextmanager
def ready(server: Server) -> Iterator[tuple[Running, httpx.Client]]:
    """Start this service, wait until it is ready, and yield it with a client."""
    with running(server) as service, service.client() as client:
        service.wait_until_ready()
        yield service, client


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # the process has exited meanwhile
        return []


VERMOUTH = Server(
    name="vermouth",
    command=("-c", "from app.cli.main import app; app(['serve'])"),
    variables={
        "VERMOUTH_PORT": "{port}",
        "VERMOUTH_BUNDLE": os.environ.get("BENCH_BUNDLE") or "weights/mini",
        "VERMOUTH_DATA_DIR": "{data}/state",
        # Every request must cost a decoding and a pass.
        "VERMOUTH_FEATURE_CACHE_BYTES": "0",
        "VERMOUTH_PICTURE_CACHE_BYTES": "0",
        # The defaults on two cores: two passes of one thread do twice the work of one pass of two.
        "VERMOUTH_LANES": "2",
        "VERMOUTH_THREADS": "1",
        "VERMOUTH_DECODE_WORKERS": "1",
        "VERMOUTH_MAX_BATCH": "8",  # the default on a CPU, half of it in bursts (ADR 39)
        "VERMOUTH_MAX_IN_FLIGHT": "48",  # about a second of work: passes, one batch behind them, decoding
        "VERMOUTH_LOG_LEVEL": "warning",
    },
)
"""This service on two cores, with its caches off."""


@contextlib.contextmanager
def server_of(revision: str) -> Iterator[Server]:
    """Yield this service as it was at a revision; its worktree is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-revision-") as folder:
        tree = Path(folder, "tree")
        git("worktree", "add", "--quiet", "--detach", str(tree), revision)
        try:
            yield replace(VERMOUTH, name=revision, root=tree)
        finally:
            git("worktree", "remove", "--force", str(tree))
