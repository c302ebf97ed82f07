"""Settings as commands read them: a line for every variable that is out of bounds."""

import typer
from pydantic import ValidationError

from app.settings import Settings

EXIT_BAD_SETTINGS = 2


def read_settings(**options: object) -> Settings:
    """Settings from the environment, and from the options that are not None.

    Raises:
        typer.Exit: a value is out of bounds; its variable was named.
    """
    try:
        given = {name: value for name, value in options.items() if value is not None}
        return Settings(**given)  # type: ignore[arg-type]  # a mapping of checked options
    except ValidationError as err:
        for entry in err.errors():
            name = "__".join(str(part) for part in entry["loc"]).upper()
            typer.echo(f"VERMOUTH_{name}: {entry['msg']}", err=True)
        raise typer.Exit(EXIT_BAD_SETTINGS) from err
