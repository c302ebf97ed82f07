import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from app.api.auth import Scope, parse_keys
from app.cli.main import _COMMANDS, app
from app.settings import Settings
from models.bundle.files import find_bundle

VERMOUTH = str(Path(sys.executable).with_name("vermouth"))
MINI = Path(__file__).parents[3] / "weights" / "mini"
HIDING = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == {name!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, attribute):
        return getattr(self.finder, attribute)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""


def vermouth(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed command, as a process of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VERMOUTH_")}
    return subprocess.run(
        [VERMOUTH, *arguments],
        cwd=cwd,
        env={**inherited, "HOME": str(cwd), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder, a home and no settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in list(os.environ):
        if name.startswith("VERMOUTH_"):
            monkeypatch.delenv(name)


@pytest.fixture
def threads() -> Iterator[None]:
    """Commands choose how many threads torch has; the tests after them have as many as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def completions(line: str, cwd: Path) -> list[str]:
    """What bash offers for the last word of a line."""
    place = str(len(line.split(" ")) - 1)
    done = vermouth(cwd=cwd, _VERMOUTH_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=place)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_help_lists_every_group_and_imports_no_torch() -> None:
    code = (
        "import sys\nfrom app.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(9 if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for group in _COMMANDS:
        assert group in done.stdout


@pytest.mark.parametrize("group", _COMMANDS)
def test_every_group_has_its_own_help(group: str) -> None:
    done = CliRunner().invoke(app, [group, "--help"])
    assert done.exit_code == 0
    assert f"vermouth {group}" in done.output


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("vermouth gal", ["gallery"]),
        ("vermouth gallery ", ["demo", "import", "list", "show", "export", "delete"]),
        ("vermouth db c", ["check"]),
        ("vermouth bundle random --s", ["--seed"]),
        ("vermouth backup --h", ["--help"]),
    ],
    ids=["group", "sub-commands", "sub-command", "option", "option of a lone command"],
)
def test_the_shell_completes(line: str, offered: list[str], tmp_path: Path) -> None:
    assert completions(line, tmp_path) == offered


def test_the_completion_script_is_shown(tmp_path: Path) -> None:
    for options, environment in ((["--show-completion", "bash"], {}), ([], {"_VERMOUTH_COMPLETE": "source_bash"})):
        command = ["bash", "-c", '"$0" "$@"; exit $?', VERMOUTH, *options]
        done = subprocess.run(
            command, env={**os.environ, **environment}, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "_VERMOUTH_COMPLETE=complete_bash" in done.stdout


@pytest.mark.parametrize("hidden", ["matplotlib", "sklearn"])
def test_evaluation_without_the_train_extra_says_what_to_install(hidden: str, tmp_path: Path) -> None:
    # Python runs it at its start, before anything of ours.
    (tmp_path / "sitecustomize.py").write_text(HIDING.format(name=hidden))
    command = {"matplotlib": "retrieval", "sklearn": "prior"}[hidden]
    done = vermouth("eval", command, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"error: {hidden} is not installed: pip install 'vermouth-perception[train]'\n"


@pytest.mark.parametrize("group", ["train", "eval", "data"])
def test_without_the_training_package_its_commands_say_so(group: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDING.format(name="training"))
    hidden = f"{tmp_path}{os.pathsep}{MINI.parents[1]}"
    done = vermouth(group, "--help", cwd=tmp_path, PYTHONPATH=hidden)
    sentence = "training is not installed: the container image has the server only, run this command in a checkout"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {sentence}\n")
    assert vermouth("--help", cwd=tmp_path, PYTHONPATH=hidden).returncode == 0


NO_DATABASE = "There is no database in data: set VERMOUTH_DATA_DIR to the service's."
BUNDLES = "give a folder with bundle.json, or a name of mini, mini-zeroshot, sd15, sd21"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bundle", "pack", "gone"], "gone/heads/uhead.safetensors is missing"),
        (["bundle", "pack", "file"], "file/heads/uhead.safetensors is missing"),
        (["bundle", "verify", "gone"], f"no bundle 'gone': {BUNDLES}"),
        (["bundle", "verify", "file"], f"no bundle 'file': {BUNDLES}"),
        (["bundle", "pull", "gone"], f"no bundle 'gone': {BUNDLES}"),
        (["bundle", "random", "file"], "file exists already and is not an empty folder: name a new one"),
        (["reembed", "--bundle", "gone"], NO_DATABASE),
        (["reembed", "--rollback"], NO_DATABASE),
        (["backup", "copy"], NO_DATABASE),
        (["restore", "empty"], "empty holds no backup."),
        (["eval", "retrieval", "--bundle", "gone"], "no bundle.json in gone"),
        (["eval", "retrieval", "--bundle", str(MINI), "--release-bundle", "gone"], "no bundle.json in gone"),
        (["eval", "fewshot", "--bundle", "empty"], "no bundle.json in empty"),
        (["eval", "segment", "--bundle", "gone"], "no bundle.json in gone"),
        (["eval", "robustness", "--release-bundle", "gone"], "no bundle.json in gone"),
        (["eval", "invariance", "--bundle", "gone"], "no bundle.json in gone"),
        (
            ["eval", "all", "--bundle", str(MINI), "--release-bundle", str(MINI), "--data-set", "gone"],
            "no finished data set in gone: run `vermouth data build`",
        ),
        (["eval", "prior", "--data-set", "gone"], "no finished data set in gone: run `vermouth data build`"),
        (["eval", "ablation", "x", "--data-set", "gone"], "no finished data set in gone: run `vermouth data build`"),
        (["eval", "pictures", "--data-set", "gone"], "no finished data set in gone: run `vermouth data build`"),
        (["train", "export", "--runs", "gone"], "no vae in gone/vae: run `vermouth train vae`"),
        (["train", "vae", "--data-set", "gone"], "no finished data set in gone: run `vermouth data build`"),
        (["train", "unet", "--runs", "file"], "file/unet: Not a directory"),
        (["train", "heads", "out", "--data-set", "gone"], "no finished data set in gone: run `vermouth data build`"),
        (["data", "build", "--packages", "gone", "--out", "out"], "gone is no folder: name an existing node_modules"),
    ],
    ids=lambda value: "-".join(value).replace(str(MINI), "mini") if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("alone", "threads")
def test_a_wrong_folder_is_reported_in_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, SystemExit), done.exception
    error = done.stderr.splitlines()[-1]
    assert (done.exit_code, error) == (1, f"error: {sentence}")


@pytest.mark.usefixtures("alone")
def test_settings_out_of_bounds_are_named_by_every_command_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERMOUTH_PORT", "70000")
    for command in (["db", "check"], ["backup", "copy"], ["restore", "."], ["reembed"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2
        assert done.stderr.startswith("VERMOUTH_PORT: ")


def test_a_new_key_is_shown_once_and_its_line_lets_it_in() -> None:
    done = CliRunner().invoke(app, ["keys", "create", "ci", "--scope", "read", "--scope", "write"])
    assert done.exit_code == 0
    (key,) = parse_keys(done.stdout)
    assert key.name == "ci"
    assert key.scopes == {Scope.READ, Scope.WRITE}
    assert done.stderr.strip() not in done.stdout


@pytest.mark.usefixtures("alone")
def test_the_default_bundle_is_found_from_any_folder() -> None:
    assert find_bundle(Settings().bundle) == MINI


def test_the_release_is_printed() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"vermouth {version('vermouth-perception')}\n")


def test_settings_out_of_bounds_are_named() -> None:
    done = CliRunner().invoke(app, ["serve", "--port", "70000"])
    assert done.exit_code == 2
    assert done.stderr.startswith("--port or VERMOUTH_PORT: ")
    assert done.stderr.splitlines()[-1].startswith("error: correct these settings")
