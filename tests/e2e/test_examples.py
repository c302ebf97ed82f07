"""Every file in examples/ runs as it stands, against the real server where it calls one."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[2]
FILES = sorted(file.name for file in (ROOT / "examples").iterdir() if file.suffix in (".py", ".sh"))
MAX_LINES, MAX_LIBRARY_LINES = 10, 15


@pytest.mark.parametrize("name", FILES)
def test_an_example_runs(name: str, client: httpx.Client, tmp_path: Path) -> None:
    command = [sys.executable] if name.endswith(".py") else ["sh"]
    environment = {**os.environ, "VERMOUTH_URL": str(client.base_url), "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, f"examples/{name}"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("name", FILES)
def test_an_example_is_short(name: str) -> None:
    text = (ROOT / "examples" / name).read_text(encoding="utf-8").split('"""')[-1]
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("import", "from", "#"))]
    assert len(lines) <= (MAX_LIBRARY_LINES if name == "library.py" else MAX_LINES)
