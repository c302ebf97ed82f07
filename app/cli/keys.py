"""`vermouth keys`: makes API keys; the server stores only their digests."""

from enum import StrEnum
from typing import Annotated

import typer

keys_app = typer.Typer(no_args_is_help=True, add_completion=False)


class KeyScope(StrEnum):
    """Values of `--scope`; typer takes no list of literals, and `app.api.auth.Scope` would load the API."""

    read = "read"
    write = "write"
    admin = "admin"


@keys_app.callback()
def keys() -> None:
    """API keys."""


@keys_app.command()
def new(
    name: Annotated[str, typer.Argument(help="Who will hold the key.")],
    scope: Annotated[list[KeyScope] | None, typer.Option(help="May be given more than once.")] = None,
) -> None:
    """Print a new key to stderr (shown once) and the line for VERMOUTH_API_KEYS_FILE to stdout."""
    from app.api.auth import Scope, new_key

    key, line = new_key(name, [Scope(wanted.value) for wanted in scope or [KeyScope.read]])
    typer.echo(key, err=True)
    typer.echo(line)
