"""Pulls that are killed, and pulls that run at the same time, as processes of their own."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest

from models.bundle.build import LoadedBundle, load_bundle
from models.bundle.files import read_lock
from tests.models.bundle.conftest import REPO, WEIGHTS
from tests.models.bundle.hub import LocalHub
from tests.models.bundle.test_pull import run

KILLS = 5
IN_FLIGHT_BYTES = 250_000  # sent by the hub, not yet written by the client that was killed


def start(bundle: Path, profile: str | None = None) -> ForkProcess:
    """A pull in a process of its own; forked, since importing the libraries again takes longer than the pull."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(bundle, profile))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: the hub's use no locks of ours
        process.start()
    return process


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)  # another process works


def total(hub: LocalHub) -> int:
    folder = hub.repositories[REPO]
    return sum(file.stat().st_size for name in ("vae", "unet") for file in (folder / name).iterdir())


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("seed", [0, 1])
def test_a_pull_killed_at_five_random_points_downloads_no_byte_twice(
    hub_bundle: Path, hub: LocalHub, tiny: LoadedBundle, seed: int
) -> None:
    hub.failures.bytes_per_second = 3_000_000
    size = total(hub)
    for point in sorted(random.Random(seed).randrange(size) for _ in range(KILLS)):
        process = start(hub_bundle)
        wait_for(lambda point=point: sum(hub.sent.values()) >= point)  # type: ignore[misc]  # the loop's own point
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was still at work"
        assert not (hub_bundle / "bundle.lock.json").exists()
    hub.failures.bytes_per_second = None
    last = start(hub_bundle)
    last.join()
    assert last.exitcode == 0
    assert sum(hub.sent.values()) - size < KILLS * IN_FLIGHT_BYTES
    assert load_bundle(hub_bundle, device="cpu").info.fingerprint == tiny.info.fingerprint


def test_two_pulls_at_once_download_each_byte_once(hub_bundle: Path, hub: LocalHub, cache: Path) -> None:
    hub.failures.bytes_per_second = 4_000_000
    pulls = [start(hub_bundle), start(hub_bundle, "other"), start(hub_bundle)]
    for process in pulls:
        process.join()
    assert [process.exitcode for process in pulls] == [0, 0, 0]
    assert hub.sent[WEIGHTS] == sum(
        (hub.repositories[REPO] / name / WEIGHTS).stat().st_size for name in ("vae", "unet")
    )
    assert set(read_lock(hub_bundle).root) == {"vae", "unet", "other/vae"}
    assert not list(cache.rglob("*.incomplete"))
    load_bundle(hub_bundle, device="cpu", profile="other")


def test_the_command_is_killed_run_again_and_then_needs_no_network(
    hub_bundle: Path, hub: LocalHub, tmp_path: Path
) -> None:
    hub.failures.bytes_per_second = 1_000_000
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", "from app.cli.main import app; app()", "bundle", "pull", str(hub_bundle)]
    killed = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: hub.sent.get(WEIGHTS, 0) > 500_000)
    killed.kill()
    _, shown = killed.communicate()
    size_mb = f"{total(hub) / 1e6:.1f} MB"
    assert f"{size_mb} to download" in shown
    assert "licence Apache-2.0" in shown
    assert "are free in" in shown
    hub.failures.bytes_per_second = None
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"wrote {hub_bundle / 'bundle.lock.json'}" in done.stderr.replace("\n", "")
    assert sum(hub.sent.values()) - total(hub) < IN_FLIGHT_BYTES
    offline = environment | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    again = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "is complete: nothing to download" in again.stderr.replace("\n", " ")
