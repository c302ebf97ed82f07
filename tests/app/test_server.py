"""The process as an operator sees it: what it answers while it loads, how it drains, how it exits."""

import contextlib
import gc
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from app.api.auth import Scope as AuthScope
from app.api.auth import new_key
from app.api.deps import Platform, Services
from app.runtime.process import EXIT_FATAL, EXIT_START_FAILED, Lifecycle
from app.server import Server, serve
from app.settings import Settings
from models.bundle.pack import write_random
from tests.app.api.wire import connect

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[2]
FAKE = (sys.executable, "-m", "tests.app.server_process")
COMMAND = (sys.executable, "-c", "from app.cli.main import app; app(['serve'])")
WAIT_S = 60


class Process:
    """A server process and its structured log; reading the log is how a test waits, never a clock."""

    def __init__(
        self, mode: str, data_dir: Path, command: Sequence[str], limit_s: float, variables: Mapping[str, str]
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("VERMOUTH_")}
        settings = {"DATA_DIR": str(data_dir), "PORT": "0", "LOG_JSON": "1", "DRAIN_DELAY_S": "0.5", **variables}
        self._process = subprocess.Popen(
            [*command, *([mode] if mode else [])],
            cwd=ROOT,
            env={
                **inherited,
                "OMP_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "PASSIVE",
                **{f"VERMOUTH_{name}": value for name, value in settings.items()},
            },
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._limit = threading.Timer(limit_s, self._process.kill)
        self._limit.start()
        self.events: list[str] = []
        self.last_words: list[str] = []
        self.is_read = threading.Event()
        self.is_read.set()
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, text: str) -> str:
        """The first log event from here on that starts with `text`."""
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(ValueError):
                self.events.append(json.loads(line)["event"])
                if self.events[-1].startswith(text):
                    return self.events[-1]
        raise AssertionError(f"{text!r} was never logged, but {self.events}")

    def connect(self) -> httpx.Client:
        """A client of the server, once it listens."""
        address = self.wait_for("Uvicorn running on ").split()[3]
        return httpx.Client(base_url=address, timeout=WAIT_S)

    def release(self) -> None:
        """Let a held load go on."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    @property
    def pid(self) -> int:
        return self._process.pid

    def handles(self, number: signal.Signals) -> bool:
        """Whether the process has a handler of the signal (Linux)."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (number - 1) & 1)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def exit_code(self) -> int:
        """Wait for the end."""
        while (line := self._lines.get()) is not None:
            if line.startswith("{"):
                self.events.append(json.loads(line)["event"])
            else:
                self.last_words.append(line)
        return self._process.wait(timeout=WAIT_S)

    def close(self) -> None:
        self._limit.cancel()
        if self._process.poll() is None:
            self._process.kill()
        self.is_read.set()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.put(line)
            self.is_read.wait()
        self._lines.put(None)


@contextlib.contextmanager
def started(
    mode: str, data_dir: Path, command: Sequence[str] = FAKE, *, limit_s: float = WAIT_S, **variables: str
) -> Iterator[Process]:
    """A process, killed after `limit_s` whatever happens; `variables` are settings without their prefix."""
    process = Process(mode, data_dir, command, limit_s, variables)
    try:
        yield process
    finally:
        process.close()


def test_it_answers_while_it_loads_serves_and_drains_to_zero(tmp_path: Path) -> None:
    with started("held", tmp_path) as process, process.connect() as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/startupz").status_code == 503
        loading = client.post("/embed", json={"texts": ["cat"]})
        assert (loading.status_code, loading.json()["code"]) == (503, "unavailable")
        process.release()
        process.wait_for("ready")
        assert client.get("/startupz").status_code == 200
        assert client.get("/readyz").status_code == 200
        strokes = {"strokes": [[[0, 9], [0, 9]]], "width": 10, "height": 10}
        answer = client.post("/embed", json={"texts": ["cat"], "images": [strokes]})
        assert answer.status_code == 200
        assert len(answer.json()["images"][0]) == 8
        process.signal(signal.SIGTERM)
        process.wait_for("draining")
        # New connections are still taken: a load balancer needs time to hear of it.
        base = str(client.base_url)
        assert httpx.get(f"{base}/readyz").status_code == 503
        assert httpx.post(f"{base}/embed", json={"texts": ["dog"]}).status_code == 200
        client.close()
        assert process.exit_code() == 0


def test_what_is_loaded_is_out_of_the_garbage_collectors_rounds() -> None:
    lifecycle = Lifecycle()
    Server(uvicorn.Config(FastAPI()), lifecycle=lifecycle, drain_delay_s=0)
    try:
        lifecycle.ready()
        assert gc.get_freeze_count() > 10_000
        started_s = time.perf_counter()
        gc.collect()
        assert time.perf_counter() - started_s < 0.05
    finally:
        gc.unfreeze()


def test_a_log_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    with started("free", tmp_path) as process, process.connect() as client:
        process.wait_for("ready")
        process.is_read.clear()
        # 3,000 lines are several times what a pipe holds.
        assert {client.get("/galleries/none").status_code for _ in range(3000)} == {404}
        process.signal(signal.SIGTERM)
        client.close()
        process.is_read.set()
        assert process.exit_code() == 0
        assert process.events.count("request") >= 3000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_does_not_wait_for_the_load(tmp_path: Path, number: signal.Signals) -> None:
    with started("held", tmp_path, DRAIN_DELAY_S="0") as process, process.connect():
        process.signal(number)
        assert process.exit_code() == 0


@pytest.mark.parametrize("later_s", [0, 0.5, 1.5])
def test_a_signal_while_modules_are_imported_ends_with_zero(tmp_path: Path, later_s: float) -> None:
    with started("", tmp_path, COMMAND, DRAIN_DELAY_S="0") as process:
        while not process.handles(signal.SIGTERM):
            time.sleep(0.005)
        time.sleep(later_s)
        process.signal(signal.SIGTERM)
        assert process.exit_code() == 0


def test_a_drain_does_not_wait_for_clients_that_do_not_read(tmp_path: Path) -> None:
    limits = {"DRAIN_DELAY_S": "0", "DRAIN_TIMEOUT_S": "1", "LIMITS__MAX_METADATA_BYTES": "1000000"}
    with (
        started("free", tmp_path, FAKE, limit_s=WAIT_S, **limits) as process,
        process.connect() as client,
        contextlib.ExitStack() as stack,
    ):
        process.wait_for("ready")
        strokes = {"strokes": [[[0, 9], [0, 9]]], "width": 10, "height": 10}
        items = [{"id": f"i{n}", "image": strokes, "metadata": {"a": "x" * 100_000}} for n in range(100)]
        assert client.post("/galleries/default/items", json=items).status_code == 200
        for _ in range(3):
            held = stack.enter_context(connect(int(client.base_url.port or 0), receive_bytes=4096))
            held.sendall(b"GET /galleries/default/export HTTP/1.1\r\nHost: test\r\n\r\n")
            assert held.recv(12) == b"HTTP/1.1 200"
        client.close()
        process.signal(signal.SIGTERM)
        started_s = time.monotonic()
        assert process.exit_code() == 0
        assert time.monotonic() - started_s < 15


@pytest.mark.parametrize("mode", ["bad-load", "bad-warm-up"])
def test_a_failed_start_ends_the_process(tmp_path: Path, mode: str) -> None:
    with started(mode, tmp_path) as process:
        process.wait_for("start_failed")
        assert process.exit_code() == EXIT_START_FAILED
        assert "ready" not in process.events
        assert process.last_words[-1].startswith("error: the service did not start: ")


def test_a_dead_device_answers_what_is_in_flight_and_ends_the_process(tmp_path: Path) -> None:
    strokes = {"strokes": [[[0, 9], [0, 9]]], "width": 10, "height": 10}
    with started("fatal", tmp_path) as process, process.connect() as client:
        process.wait_for("ready")
        answer = client.post("/embed", json={"images": [strokes]})
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        client.close()
        assert process.exit_code() == EXIT_FATAL


def test_a_busy_port_ends_the_process(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with started("held", tmp_path, PORT=port) as process:
            assert process.exit_code() == EXIT_START_FAILED
            assert process.last_words[-1].endswith(f"at 127.0.0.1:{port}: choose another --port or --host.\n")


def test_a_data_folder_in_use_ends_the_second_process(tmp_path: Path) -> None:
    with started("held", tmp_path) as first, first.connect():
        first.release()
        first.wait_for("ready")
        with started("held", tmp_path) as second:
            second.release()
            second.wait_for("start_failed")
            assert second.exit_code() == EXIT_START_FAILED
            assert second.last_words[-1].endswith("stop that, or set VERMOUTH_DATA_DIR to another folder.\n")


@pytest.mark.parametrize(
    "keys",
    [{}, {"metrics_token": "m" * 16}, {"api_keys": new_key("scraper", [AuthScope.METRICS])[1]}],
    ids=["none", "metrics-token", "metrics-key"],
)
def test_beyond_loopback_without_keys_for_the_other_routes_is_refused(
    keys: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    loads: list[Settings] = []

    def note(settings: Settings, platform: Platform) -> Services:
        del platform
        loads.append(settings)
        raise ValueError("not refused")

    assert serve(Settings.model_validate({"host": "0.0.0.0", "port": 0, **keys}), note) == EXIT_START_FAILED
    assert not loads
    assert "`vermouth keys create NAME`" in capsys.readouterr().err.splitlines()[-1]


def test_malformed_keys_are_refused() -> None:
    assert serve(Settings.model_validate({"api_keys": "nonsense"})) == EXIT_START_FAILED


def test_a_bundle_is_served_and_a_damaged_one_ends_the_process(tmp_path: Path) -> None:
    """The shipped command over a real bundle of random weights."""
    bundle = tmp_path / "bundle"
    write_random(bundle, arch="tiny", seed=0)
    with started("", tmp_path / "data", COMMAND, BUNDLE=str(bundle), FEATURE_CACHE_BYTES="0") as process:
        with process.connect() as client:
            assert client.get("/startupz").status_code == 503
            process.wait_for("ready")
            manifest = client.get("/bundle").json()
            assert (manifest["name"], manifest["device"]) == ("random-tiny", "cpu")
            drawings = [{"strokes": [[[0, 9 + n, 4], [0, 9, n]]], "width": 40, "height": 40} for n in range(8)]
            together = client.post("/embed", json={"images": drawings}).json()["images"]
            alone = [client.post("/embed", json={"images": [one]}).json()["images"][0] for one in drawings]
            np.testing.assert_allclose(alone, together, rtol=0, atol=1e-4)
        process.signal(signal.SIGTERM)
        assert process.exit_code() == 0
        assert not process.last_words, "what ends says so in its log, and nothing else"

    weights = bundle / "heads" / "uhead.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with started("", tmp_path / "data", COMMAND, BUNDLE=str(bundle)) as process:
        process.wait_for("start_failed")
        assert process.exit_code() == EXIT_START_FAILED
