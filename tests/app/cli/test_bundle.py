"""`vermouth bundle` writes where nothing is lost."""

from pathlib import Path

from typer.testing import CliRunner

from app.cli.main import app


def test_random_weights_go_into_a_new_or_an_empty_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    held = tmp_path / "held" / "thesis.txt"
    held.parent.mkdir()
    held.write_text("years of work")
    for name in ("new", "empty"):
        done = CliRunner().invoke(app, ["bundle", "random", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        assert (tmp_path / name / "bundle.json").is_file()
    for name in ("held", "new"):
        done = CliRunner().invoke(app, ["bundle", "random", str(tmp_path / name), "--seed", "1"])
        assert done.exit_code == 1
        assert done.stderr == f"error: {tmp_path / name} exists already and is not an empty folder: name a new one\n"
    assert list(held.parent.iterdir()) == [held]
