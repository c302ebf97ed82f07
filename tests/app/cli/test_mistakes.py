"""Every command answers typical mistakes with a sentence and an exit code, and never with a traceback."""

import importlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from typer.core import TyperArgument, TyperOption
from typer.main import get_command
from typer.testing import CliRunner

from app.cli.main import _COMMANDS, app

Mistake = tuple[list[str], str]


def commands(name: str) -> Iterator[tuple[list[str], Any]]:
    """The words of each command of a group, or of a lone command, and the command."""
    found = get_command(getattr(importlib.import_module(_COMMANDS[name][0]), f"{name}_app"))
    inner = getattr(found, "commands", None)
    yield from [([name], found)] if inner is None else [([name, one], command) for one, command in inner.items()]


def mistakes(command: Any) -> Iterator[Mistake]:
    """Arguments that the command must refuse, and a pattern of the sentence."""
    options = [one for one in command.params if isinstance(one, TyperOption)]
    arguments = [one for one in command.params if isinstance(one, TyperArgument)]
    yield ["--no-such-option"], "No such option"
    for option in options:
        if not option.is_flag:
            yield [option.opts[0]], "requires an argument"
        if option.type_descriptor.annotation in (int, float):
            yield [option.opts[0], "seven"], "Invalid value for"
    if any(one.required for one in arguments):
        yield [], "Missing (argument|option)"
    if all(one.nargs != -1 for one in arguments):
        yield ["x"] * (1 + len(arguments)), "extra argument|Missing option|does not exist"


@pytest.mark.parametrize("group", _COMMANDS)
def test_every_command_refuses_wrong_arguments(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    walked = list(commands(group))
    assert walked
    for path, command in walked:
        for arguments, words in mistakes(command):
            assert_refused([*path, *arguments], words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rettrieve"], "No such command"),
        (["gallery", "exprot"], "No such command"),
        (["retrieve"], "Give a source"),
        (["retrieve", "x.png", "--filter", "{"], "is no JSON"),
        (["retrieve", "x.png", "--filter", "[]"], "no JSON object"),
        (["retrieve", "x.png", "-k", "0"], "greater than or equal to 1"),
        (["retrieve", "--text", "x", "--json", "--csv"], "exclude each other"),
        (["segment", "x.png"], "Give class names"),
        (["segment", "x.png", "--class", "cat", "--class-set", "x"], "Give class names"),
        (["segment", "x.png", "--class", "cat", "--threshold", "2"], "--threshold"),
        (["embed"], "Give a source"),
        (["gallery", "export", "x", "x.zip"], "must end in .tar"),
        (["gallery", "import", "x", "--zip-names", "klingon"], "no encoding of text"),
        (["keys", "create", "x", "--scope", "all"], "--scope"),
        (["episode", "create", "x", "--method", "best"], "--method"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_value_is_named(arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert_refused(arguments, words)


def assert_refused(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, SystemExit), (arguments, done.exception)
    assert done.exit_code == 2, (arguments, done.output)
    assert re.search(words, done.stderr), (arguments, done.stderr)
    assert "Traceback" not in done.output
