"""`vermouth serve`: starts the server."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli.main import read_settings

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
    """Start the server; VERMOUTH_… variables set everything else (docs/settings.md)."""
    # OpenMP reads it when torch is loaded: threads that spin while they wait are 50 times slower on busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from app.server import serve as run_server

    settings = read_settings(host=host, port=port, bundle=bundle, data_dir=data_dir, insecure=insecure)
    sys.exit(run_server(settings))
