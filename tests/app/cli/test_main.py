import subprocess
import sys

import pytest
from typer.testing import CliRunner

from app.api.auth import Scope, parse_keys
from app.cli.main import app

GROUPS = ("serve", "keys", "bundle", "data", "train", "eval", "gallery")


def test_help_lists_every_group_and_imports_no_torch() -> None:
    code = (
        "import sys\nfrom app.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(9 if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for group in GROUPS:
        assert group in done.stdout


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_its_own_help(group: str) -> None:
    done = CliRunner().invoke(app, [group, "--help"])
    assert done.exit_code == 0
    assert f"vermouth {group}" in done.output


def test_a_new_key_is_shown_once_and_its_line_lets_it_in() -> None:
    done = CliRunner().invoke(app, ["keys", "new", "ci", "--scope", "read", "--scope", "write"])
    assert done.exit_code == 0
    (key,) = parse_keys(done.stdout)
    assert key.name == "ci"
    assert key.scopes == {Scope.READ, Scope.WRITE}
    assert done.stderr.strip() not in done.stdout


def test_settings_out_of_bounds_are_named() -> None:
    done = CliRunner().invoke(app, ["serve", "--port", "70000"])
    assert done.exit_code == 2
    assert "VERMOUTH_PORT" in done.output
