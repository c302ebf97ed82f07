"""The commands over a state of their own."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from app.cli.main import app
from app.stores.blobs import Blobs
from app.stores.sql.database import open_database
from app.stores.sql.engines import migrate, sqlite_engine
from tests.app.stores.stores import new_item, open_stores, unit


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    database, blobs = open_database(data_dir=folder), Blobs(str(folder / "blobs"))
    stores = open_stores(database, blobs, snapshots=folder / "indexes")
    stores.items.upsert("default", [new_item(f"i{n}", unit(1, n)) for n in range(5)])
    stores.items.remove("default", "i1")
    stores.indexes.close()
    database.close()
    monkeypatch.setenv("VERMOUTH_DATA_DIR", str(folder))
    return folder


@pytest.mark.usefixtures("state")
def test_check_rebuild_and_vacuum() -> None:
    assert run("db", "check", "--deep") == (0, "sound\n")
    assert run("db", "rebuild") == (0, "4 vectors indexed\n")
    assert run("db", "vacuum") == (0, "0 items, 0 changes, 0 episodes, 0 images removed\n")
    assert run("db", "vacuum", "--log-kept", "0") == (0, "1 items, 7 changes, 0 episodes, 0 images removed\n")
    assert run("db", "check") == (0, "sound\n")


def test_a_fault_is_reported_and_exits_with_one(state: Path) -> None:
    image = next(path for path in (state / "blobs").rglob("*") if path.is_file())
    image.write_bytes(b"x")
    assert run("db", "check")[0] == 0
    code, output = run("db", "check", "--deep")
    error = "error: The state has faults (1): docs/scale.md says how to repair each kind."
    assert (code, output) == (1, f"The image {image.name} is damaged.\n{error}\n")


def test_a_state_in_use_is_reported_in_a_line(state: Path) -> None:
    database = open_database(data_dir=state)
    answers = [run("db", "check"), run("reembed", "--rollback")]
    database.close()
    for code, output in answers:
        assert code == 1
        assert "in use by another process" in " ".join(output.split())


@pytest.mark.parametrize(
    "command",
    [
        ["db", "check"],
        ["db", "check", "--deep"],
        ["db", "rebuild"],
        ["db", "vacuum"],
        ["backup", "copy"],
        ["reembed"],
        ["reembed", "--rollback"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("name", ["gone", "empty"])
def test_without_a_database_nothing_is_made_and_nothing_called_sound(
    command: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VERMOUTH_DATA_DIR", name)
    error = f"error: There is no database in {name}: set VERMOUTH_DATA_DIR to the service's.\n"
    assert run(*command) == (1, error)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_is_no_database_is_reported(state: Path) -> None:
    (state / "vermouth.sqlite3").write_bytes(b"no database" * 1000)
    assert run("db", "check") == (1, "error: The database is damaged.\n")
    assert run("backup", str(state / "copy")) == (1, "error: The database is damaged.\n")


def test_backup_and_restore(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serving = open_database(data_dir=state)
    code, output = run("backup", str(tmp_path / "copy"))
    assert code == 0
    assert "4 items and 4 images" in output
    serving.close()
    assert run("restore", str(tmp_path / "copy"))[0] == 1
    monkeypatch.setenv("VERMOUTH_DATA_DIR", str(tmp_path / "new"))
    code, output = run("restore", str(tmp_path / "copy"))
    assert code == 0
    assert "restored" in output
    assert run("db", "check", "--deep")[1] == "sound\n"


def test_a_restore_of_a_folder_without_a_backup_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("VERMOUTH_DATA_DIR", str(tmp_path / "new"))
    code, output = run("restore", str(tmp_path / "nothing"))
    assert code == 1
    assert "holds no backup" in " ".join(output.split())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", [["db", "check"], ["backup", "copy"]], ids=" ".join)
@pytest.mark.parametrize("schema", ["empty", "0002", "9999"])
def test_reading_changes_nothing_and_says_whose_schema_it_is(
    command: list[str], schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    if schema == "empty":
        (folder / "vermouth.sqlite3").touch()
    else:
        engine = sqlite_engine(folder / "vermouth.sqlite3")
        migrate(engine, min(schema, "0002"))
        with engine.connect() as connection, connection.execution_options(vermouth_writes=True).begin():
            connection.execute(sa.text("UPDATE alembic_version SET version_num = :to"), {"to": schema})
        engine.dispose()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VERMOUTH_DATA_DIR", str(folder))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, output = run(*command)
    assert code == 1
    words = {"empty": "is empty", "0002": "schema 0002 of an older release", "9999": "schema 9999 of a newer release"}
    assert words[schema] in " ".join(output.split())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
