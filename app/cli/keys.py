"""`vermouth keys`: API keys in the file that the server reads, which holds only their digests."""

import os
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.main import CommandError
from app.cli.output import AsCsv, AsJson, Rows

if TYPE_CHECKING:
    from app.api.auth import ApiKey

keys_app = typer.Typer(no_args_is_help=True, add_completion=False)
_FileHelp = "The file of keys; the server reads it when it starts."
_File = Annotated[Path, typer.Option(envvar="VERMOUTH_API_KEYS_FILE", help=_FileHelp)]
_RESTART = "Restart the service: it reads the file when it starts."


class KeyScope(StrEnum):
    """Values of `--scope`; typer takes no list of literals, and `app.api.auth.Scope` would load the API."""

    read = "read"
    write = "write"
    admin = "admin"
    metrics = "metrics"


@keys_app.callback()
def keys() -> None:
    """API keys."""


@keys_app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who will hold the key.")],
    scope: Annotated[list[KeyScope] | None, typer.Option(help="May be given more than once.")] = None,
    file: Annotated[Path | None, typer.Option(envvar="VERMOUTH_API_KEYS_FILE", help=_FileHelp)] = None,
) -> None:
    """Add a key to the file and print it, once. Without a file, print the key to stderr and its line to stdout."""
    from app.api.auth import Scope, new_key, parse_keys

    key, line = new_key(name, [Scope(wanted.value) for wanted in scope or [KeyScope.read]])
    try:
        parse_keys(line)
    except ValueError as err:
        raise CommandError(f"{name!r} is no name of a key: use up to 64 letters, digits, and _.-") from err
    if file is None:
        typer.echo(key, err=True)
        typer.echo(line)
        return
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if any(known.name == name for known in _parsed(file, text)):
        raise CommandError(f"{file} has a key of the name {name} already: revoke it first, or choose another name.")
    _write(file, text + ("\n" if text and not text.endswith("\n") else "") + line + "\n")
    typer.echo(key)
    typer.echo(_RESTART, err=True)


@keys_app.command("list")
def list_command(file: _File, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """List the names and scopes of the keys in the file."""
    with Rows(as_json=as_json, as_csv=as_csv) as rows:
        for key in _parsed(file, file.read_text(encoding="utf-8")):
            rows.add({"name": key.name, "scopes": sorted(scope.value for scope in key.scopes)})


@keys_app.command()
def revoke(name: Annotated[str, typer.Argument(help="Name of the key.")], file: _File) -> None:
    """Take a key out of the file."""
    text = file.read_text(encoding="utf-8")
    if all(key.name != name for key in _parsed(file, text)):
        raise CommandError(f"{file} has no key of the name {name}: `vermouth keys list` shows all.")
    remaining = []
    for line in text.splitlines():
        entries, _, comment = line.partition("#")
        others = [entry for entry in entries.split(",") if entry.strip().partition(":")[0] != name]
        if others or not entries:
            remaining.append(",".join(others) + (f"#{comment}" if comment else ""))
    _write(file, "".join(f"{line}\n" for line in remaining))
    typer.echo(_RESTART, err=True)


def _parsed(file: Path, text: str) -> list["ApiKey"]:
    from app.api.auth import parse_keys

    try:
        return parse_keys(text)
    except ValueError as err:
        raise CommandError(f"{file}: {err}.") from err


def _write(file: Path, text: str) -> None:
    """Replaces the file at once; a new one is readable by its owner alone."""
    mode = file.stat().st_mode & 0o777 if file.exists() else 0o600
    descriptor, temporary = tempfile.mkstemp(dir=file.resolve().parent, prefix=file.name)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text)
    Path(temporary).chmod(mode)
    Path(temporary).replace(file.resolve())
