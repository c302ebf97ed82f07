"""`vermouth serve`: settings from the environment, a few of them from options."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

serve_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_EXIT_BAD_SETTINGS = 2


@serve_app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the state.")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen beyond loopback without API keys.")
    ] = None,
) -> None:
    """Start the server; everything else is set by VERMOUTH_… variables (docs/settings.md)."""
    # Read by OpenMP when torch is loaded: threads that spin while they wait ran 50 times slower on busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from app.server import serve as run_server
    from app.settings import Settings

    options = {"host": host, "port": port, "bundle": bundle, "data_dir": data_dir, "insecure": insecure}
    said = {name: value for name, value in options.items() if value is not None}
    try:
        settings = Settings(**said)  # type: ignore[arg-type]  # a mapping of checked options
    except ValidationError as err:
        for entry in err.errors():
            name = "__".join(str(part) for part in entry["loc"]).upper()
            typer.echo(f"VERMOUTH_{name}: {entry['msg']}", err=True)
        raise typer.Exit(_EXIT_BAD_SETTINGS) from err
    sys.exit(run_server(settings))
