"""The file of API keys, which commands edit and the server reads."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.api.auth import Scope, parse_keys, sha256_hex
from app.cli.main import app


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, ["keys", *arguments])
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VERMOUTH_API_KEYS_FILE", str(tmp_path / "keys"))
    return tmp_path / "keys"


def test_keys_are_created_listed_and_revoked(file: Path) -> None:
    key, note = run("create", "shop", "--scope", "read", "--scope", "write")
    run("create", "ops", "--scope", "admin")
    assert "Restart the service" in note
    assert file.stat().st_mode & 0o777 == 0o600
    shop, ops = parse_keys(file.read_text())
    assert (shop.name, shop.sha256) == ("shop", sha256_hex(key.strip()))
    assert shop.scopes == {Scope.READ, Scope.WRITE}
    assert key.strip() not in file.read_text()
    assert [line.split("\t")[0] for line in run("list")[0].splitlines()] == ["shop", "ops"]
    run("revoke", "shop")
    assert parse_keys(file.read_text()) == [ops]


def test_what_else_is_in_the_file_stays(file: Path) -> None:
    lines = [f"{name}:read:{'0' * 63}{at}" for at, name in enumerate(["a", "b", "c"])]
    file.write_text(f"# ours\n{lines[0]},{lines[1]}  # two\n\n{lines[2]}")
    file.chmod(0o640)
    run("revoke", "a")
    assert file.read_text() == f"# ours\n{lines[1]}  # two\n\n{lines[2]}\n"
    run("create", "d")
    assert [key.name for key in parse_keys(file.read_text())] == ["b", "c", "d"]
    assert file.stat().st_mode & 0o777 == 0o640
    assert list(file.parent.iterdir()) == [file]


def test_mistakes_are_reported_and_change_nothing(file: Path) -> None:
    assert "No such file" in run("list", code=1)[1]
    run("create", "shop")
    before = file.read_text()
    assert "has a key of the name shop already" in run("create", "shop", code=1)[1]
    assert "is no name of a key" in run("create", "a b", code=1)[1]
    assert "has no key of the name ops" in run("revoke", "ops", code=1)[1]
    assert file.read_text() == before
    file.write_text("nonsense")
    assert "API key entry 1 is not of the form" in run("list", code=1)[1]
