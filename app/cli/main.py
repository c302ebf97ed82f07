"""The `vermouth` command: one file a group, imported when the group is used, so that help stays quick."""

import importlib
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from app.errors import ServiceError
from models.errors import ModelError

_COMMANDS = {
    "serve": ("app.cli.serve", "Start the server."),
    "keys": ("app.cli.keys", "Make API keys."),
    "data": ("training.commands.data", "Build the training data set."),
    "bundle": ("app.cli.bundle", "Write and check bundles."),
    "train": ("training.commands.train", "Train the parts of a bundle."),
    "eval": ("training.commands.eval", "Measure a bundle by protocol."),
    "gallery": ("app.cli.gallery", "Fill galleries of a running service."),
    "db": ("app.cli.db", "Check, rebuild and vacuum the state."),
    "backup": ("app.cli.db", "Copy the state into a folder, while the service runs."),
    "restore": ("app.cli.db", "Bring a copy of the state into an empty one."),
    "reembed": ("app.cli.reembed", "Go over to another bundle, or back."),
}
_EXTRAS = {"matplotlib": "train", "sklearn": "train", "faiss": "cpu"}
"""Extras that bring modules which the commands need."""


class LazyGroup(TyperGroup):
    """Imports a command once its name is resolved, to run it or to complete its arguments; help needs names alone.

    Errors that a user can mend end as one line and exit code 1, for all commands.
    """

    # Any: typer's contexts and commands are click's or its own, by its version.
    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        if name is None:
            return name, listed, rest
        module = importlib.import_module(_COMMANDS[name][0])
        return name, get_command(getattr(module, f"{name}_app")), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ModelError, ServiceError) as err:
            _refuse(str(err), err)
        except ModuleNotFoundError as err:
            module = (err.name or "").partition(".")[0]
            if module not in _EXTRAS:
                raise
            _refuse(f"{module} is not installed: pip install 'vermouth-perception[{_EXTRAS[module]}]'", err)
        except OSError as err:
            if err.filename is None:
                raise
            _refuse(f"{err.filename}: {err.strerror}", err)


app = typer.Typer(name="vermouth", cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def vermouth() -> None:
    """Visual perception on a frozen diffusion backbone: the server, its bundles, training and evaluation."""


def _listed() -> None:
    """Stands for a command in help, until it is resolved."""


for _name, (_, _help) in _COMMANDS.items():
    app.command(_name, help=_help)(_listed)


def _refuse(sentence: str, err: Exception) -> NoReturn:
    typer.secho(f"error: {sentence}", err=True, fg=typer.colors.RED)
    raise typer.Exit(1) from err
