"""`vermouth data`: the data set behind the embedded default."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.data.build import build
from training.data.dataset import DEFAULT_FOLDER
from training.data.packages import fetch_packages

data_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Build the data set the embedded default is trained on."
)


@data_app.callback()
def main() -> None:
    """Keeps `build` a sub-command while it is the only one."""


@data_app.command("build")
def build_command(
    out: Annotated[Path, typer.Option(help="Target folder.")] = DEFAULT_FOLDER,
    drawings: Annotated[Path, typer.Option(help="Folder of drawings, splits and concepts.")] = Path("../shared/data"),
    packages: Annotated[Path | None, typer.Option(help="An existing node_modules folder.")] = None,
) -> None:
    """Fetches the allowed packages, renders them at 128 px and writes one compact data set."""
    console = Console(stderr=True)
    out = out.expanduser()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with console.status("fetching packages"):
        found = fetch_packages(out.parent / "packages", npm=packages)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("rendering", total=None)
        counts = build(found, drawings, out, lambda done, total: bar.update(task, completed=done, total=total))
    for source, count in counts.items():
        console.print(f"{source:18} {count:6}")
