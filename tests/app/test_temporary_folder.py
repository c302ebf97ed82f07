"""The server finds a folder for temporary files where everything but its data is read-only."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNSHARE = shutil.which("unshare")
SCRIPT = """
set -e
mount --make-rprivate / && mount --bind "$DATA" "$DATA" && mount -o remount,ro,bind /
for folder in /tmp /var/tmp /usr/tmp; do ! touch "$folder/x" 2> /dev/null || exit 77; done
exec "$PYTHON" -B -c "
import os, pathlib, tempfile
from app.server import _ensure_temporary_folder
_ensure_temporary_folder(pathlib.Path(os.environ['DATA']))
print(tempfile.gettempdir(), os.environ['TMPDIR'])"
"""


def test_temporary_files_go_to_the_data_where_the_root_is_read_only(tmp_path: Path) -> None:
    if UNSHARE is None or subprocess.run([UNSHARE, "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DATA": str(tmp_path), "PYTHON": sys.executable}
    command = [UNSHARE, "-m", "sh", "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this machine has a file system of its own for temporary files")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "tmp")] * 2
