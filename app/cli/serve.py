"""`vermouth serve`: settings from the environment, a few of them from options."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

serve_app = typer.Typer(add_completion=False)


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
    from app.cli.read_settings import read_settings
    from app.server import serve as run_server

    settings = read_settings(host=host, port=port, bundle=bundle, data_dir=data_dir, insecure=insecure)
    sys.exit(run_server(settings))
