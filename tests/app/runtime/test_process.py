"""The process retains memory that passes free."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PASSES = """
import resource, threading, torch
from pathlib import Path
from app.runtime.process import keep_freed_memory
from models.bundle.build import load_bundle
from models.types import ImageBatch
assert keep_freed_memory()
torch.set_num_threads(1)
encoder = load_bundle(Path("weights/mini"), device="cpu").encoder
batch = ImageBatch(pixels=torch.zeros(8, 3, 128, 128), timesteps=torch.full((8,), 50), captions=[None] * 8)
def passes(count):
    for _ in range(count):
        encoder.encode_images(batch)
    print(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt)
def worker():
    passes(8)
    passes(8)
thread = threading.Thread(target=worker)
thread.start()
thread.join()
"""
_ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has these options")


def _faults_of_eight_passes(**variables: str) -> int:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD"))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PASSES],
        cwd=_ROOT,
        env={**inherited, "PYTHONPATH": str(_ROOT), **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(int, done.stdout.split())
    return after - before


def test_repeated_passes_of_a_worker_fault_almost_no_pages() -> None:
    # By default between none and 430,000, depending on where blocks lie.
    assert _faults_of_eight_passes() < 4_000


def test_options_of_the_environment_stay_as_they_are() -> None:
    variables = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_TOP_PAD_": "131072"}
    assert _faults_of_eight_passes(**variables) > 100_000
