"""The `vermouth` command, and `vermouth serve`. Other groups are files, imported when used, so that help is quick."""

import importlib
import importlib.metadata
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from app.errors import ServiceError
from models.errors import ModelError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from app.settings import Settings

_ASK, _KEEP, _TRAIN = "Ask a running service", "Run a service", "Models"
_COMMANDS = {
    "retrieve": ("app.cli.tasks", _ASK, "Search a gallery by drawings, images or words."),
    "segment": ("app.cli.tasks", _ASK, "Find named classes in images."),
    "classify": ("app.cli.tasks", _ASK, "Classify images by an episode."),
    "embed": ("app.cli.tasks", _ASK, "Print vectors of images and words."),
    "gallery": ("app.cli.gallery", _ASK, "Fill, list, export and delete galleries."),
    "classset": ("app.cli.classset", _ASK, "Class names stored for `segment`."),
    "episode": ("app.cli.episode", _ASK, "Classes taught from a few examples."),
    "status": ("app.cli.status", _ASK, "Whether the service is ready, and what it serves."),
    "serve": ("app.cli.main", _KEEP, "Start the server."),
    "keys": ("app.cli.keys", _KEEP, "Create, list and revoke API keys."),
    "db": ("app.cli.db", _KEEP, "Check, rebuild and vacuum the state."),
    "backup": ("app.cli.db", _KEEP, "Copy the state into a folder while the service runs."),
    "restore": ("app.cli.db", _KEEP, "Restore a backup into an empty state."),
    "reembed": ("app.cli.db", _KEEP, "Switch to another bundle, or back."),
    "bundle": ("app.cli.bundle", _TRAIN, "Pull, list, write and check bundles."),
    "data": ("training.commands.train", _TRAIN, "Build the training data set."),
    "train": ("training.commands.train", _TRAIN, "Train the parts of a bundle."),
    "eval": ("training.commands.eval", _TRAIN, "Measure a bundle by protocol."),
}
_REMEDIES = {  # if an optional module is not installed
    "matplotlib": "pip install 'vermouth-perception[train]'",
    "sklearn": "pip install 'vermouth-perception[train]'",
    "faiss": "pip install 'vermouth-perception[cpu]'",
    "vermouth_client": "pip install --editable client, in the folder of this service",
    "training": "the container image has the server only, run this command in a checkout",
}
_EXIT_BAD_SETTINGS = 2  # as for a wrong option
EXIT_INTERRUPTED = 130  # as shells report Ctrl-C
_TICK_S = 0.5


class CommandError(Exception):
    """A command cannot go on, and its user can correct that; the message is a sentence."""


class LazyGroup(TyperGroup):
    """Imports a command when it is run or completed; errors that a user can correct end it with one line and exit 1."""

    # Any: the types of contexts and commands depend on typer's version.
    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)  # refuses unknown names
        if name is None:
            return name, listed, rest
        path, panel, _ = _COMMANDS[name]
        module = importlib.import_module(path)
        if panel is _ASK and not ctx.resilient_parsing:  # which a shell's completion is
            _tick(_TICK_S)
        return name, get_command(getattr(module, f"{name}_app")), rest  # e.g. `db_app` of app.cli.db

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (CommandError, ModelError, ServiceError) as err:
            refuse(str(err), err)
        except ModuleNotFoundError as err:
            module = (err.name or "").partition(".")[0]
            if module not in _REMEDIES:
                raise  # a defect, not a missing extra
            refuse(f"{module} is not installed: {_REMEDIES[module]}", err)
        except OSError as err:
            if err.filename is None:
                raise  # not about a file that the user named
            refuse(f"{err.filename}: {err.strerror}", err)
        except KeyboardInterrupt as err:
            typer.echo(str(err) or "interrupted", err=True)
            if _COMMANDS[ctx.invoked_subcommand][1] is _ASK:
                _end_at_once()
            raise typer.Exit(EXIT_INTERRUPTED) from err
        finally:
            _tick(0)


# Plain tracebacks: pretty ones may print local values, among them keys.
app = typer.Typer(name="vermouth", cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vermouth {importlib.metadata.version('vermouth-perception')}")
        raise typer.Exit


@app.callback()
def vermouth(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the release and exit.")
    ] = False,
) -> None:
    """Visual perception on a frozen diffusion backbone: search by drawing, masks by words, classes from examples.

    Exit codes: 0 done; 1 refused or failed, for the reason in the last line of stderr; 2 wrong arguments or settings;
    3 the service could not start; 70 its device was lost; 130 Ctrl-C.
    """


for _name, (_, _panel, _help) in _COMMANDS.items():
    app.command(_name, help=_help, rich_help_panel=_panel)(
        lambda: None
    )  # stands for the command in help until it is resolved


def refuse(sentence: str, err: Exception) -> NoReturn:
    """Ends a command with one line on stderr and exit code 1."""
    typer.secho(f"error: {sentence}", err=True, fg=typer.colors.RED)
    raise typer.Exit(1) from err


def _tick(every_s: float) -> None:
    """Interrupt waits of the main thread for an instant, or no more at 0: Python misses a Ctrl-C just before a wait."""
    signal.signal(signal.SIGALRM, lambda _number, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, every_s, every_s)


def _end_at_once() -> NoReturn:
    """Ends the process though threads wait for a service's answer; everything on the main thread is unwound."""
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h")  # a progress bar hides the cursor
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(EXIT_INTERRUPTED)


def progress(console: "Console", *, is_shown: bool = True) -> "Progress":
    """Returns a progress bar with counts and the remaining time."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not is_shown)


def read_settings(**options: object) -> "Settings":
    """Returns the settings of the environment, with the options that are not None on top.

    Raises typer.Exit if a value is out of bounds, after a line on stderr for each such variable.
    """
    from pydantic import ValidationError  # here: it takes longer to import than help takes to print

    from app.settings import Settings

    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # a mapping of checked options
    except ValidationError as err:
        for entry in err.errors():
            field = "__".join(str(part) for part in entry["loc"])
            option = f"--{field.replace('_', '-')} or " if field in given else ""  # an option hides the variable
            typer.echo(f"{option}VERMOUTH_{field.upper()}: {entry['msg']}", err=True)
        typer.echo("error: correct these settings, or unset them; docs/settings.md has all.", err=True)
        raise typer.Exit(_EXIT_BAD_SETTINGS) from err


serve_app = typer.Typer(add_completion=False)


@serve_app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Name or folder of the bundle.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the state.")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen beyond loopback without API keys.")
    ] = None,
) -> None:
    """Start the server; VERMOUTH_… variables set everything else (docs/settings.md)."""
    # Imports take seconds, in which the server does not handle signals yet. There is nothing to drain.
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))
    try:
        sys.exit(_serve(host=host, port=port, bundle=bundle, data_dir=data_dir, insecure=insecure))
    finally:
        signal.signal(signal.SIGTERM, before)


def _serve(**options: object) -> int:
    # OpenMP reads it when torch is loaded: threads that spin while they wait are 50 times slower on busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # serving never downloads; read when the client is imported
    from app.server import serve as run_server

    return run_server(read_settings(**options))
