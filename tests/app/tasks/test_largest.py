"""The largest segmentation of api.md stays within its memory, measured in a process of its own."""

import subprocess
import sys

import pytest

LIMIT_MIB = 800
SCRIPT = """
from pathlib import Path
import numpy as np
from app.tasks.masks import palette_png, regions
from models.heads.stitching import ViewProbabilities, stitch
from models.transforms import plan_views

side, classes = 8000, 255
generator = np.random.default_rng(0)
views = []
for box in plan_views(side, side, 128):
    values = generator.random((classes + 1, 32, 32)).astype(np.float32)
    views.append(ViewProbabilities(box=box, values=values / values.sum(axis=0)))
stitched = stitch(views, height=side, width=side, has_background=True, threshold=0.0, max_bytes=1 << 28)
assert stitched.labels.shape == (side, side)
assert len(regions(stitched.labels, classes)) == classes
palette_png(stitched.labels, ["x"] * classes)
# Not ru_maxrss: it takes over the peak of the process that started this one.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc (getrusage inherits the parent's)")
def test_64_megapixels_of_255_classes_fit_in_memory() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < LIMIT_MIB
