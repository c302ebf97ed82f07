"""The guide lists every command but training's; `python -m tests.app.cli.test_reference` writes the list."""

from pathlib import Path

import pytest
from typer.core import TyperArgument, TyperOption

from app.cli.main import _COMMANDS
from tests.app.cli.test_mistakes import commands

GROUPS = [name for name, (module, *_) in _COMMANDS.items() if module.startswith("app.")]  # training's change too often
PAGE = Path(__file__).parents[3] / "docs" / "guides" / "command-line.md"
BEGIN = "<!-- Written by `python -m tests.app.cli.test_reference`; a test compares. -->\n"


def reference(group: str) -> str:
    """A table row for each command of a group, from its own help."""
    rows = []
    for path, command in commands(group):
        arguments = [one for one in command.params if isinstance(one, TyperArgument)]
        options = [one for one in command.params if isinstance(one, TyperOption)]
        words = [one.metavar or (one.name or "").upper() for one in arguments]
        names = " ".join(f"`{max(one.opts, key=len)}`" for one in options)
        first = (command.help or "").strip().split("\n\n")[0].replace("\n", " ")
        rows.append(f"| `{' '.join(['vermouth', *path, *words])}` | {first} | {names or '–'} |\n")
    return "".join(rows)


@pytest.mark.parametrize("group", GROUPS)
def test_the_reference_has_every_command_as_it_is(group: str) -> None:
    assert reference(group) in PAGE.read_text(encoding="utf-8"), "run `python -m tests.app.cli.test_reference`"


def main() -> None:
    """Write the reference."""
    head = PAGE.read_text(encoding="utf-8").partition(BEGIN)[0]
    table = "| command | does | options |\n|---|---|---|\n" + "".join(map(reference, GROUPS))
    PAGE.write_text(f"{head}{BEGIN}\n{table}", encoding="utf-8")


if __name__ == "__main__":
    main()
