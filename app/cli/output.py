"""Results on stdout: aligned columns for people, tabs for programs, CSV, or a JSON object a line; and images."""

import csv
import io
import json
import logging
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.importing.files import printable

AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object a line, with all fields.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")]
Show = Annotated[bool, typer.Option("--show", help="Show images here: as such if the terminal can, else as blocks.")]
_MAX_NUMBERS = 4


class Rows:
    """Prints records of equal fields as they come; on a terminal together with images, when all are there."""

    def __init__(self, *, as_json: bool = False, as_csv: bool = False, show: bool = False) -> None:
        if as_json and as_csv:
            raise typer.BadParameter("--json and --csv exclude each other: choose one.")
        if show and (as_json or as_csv or not (sys.stdin.isatty() and sys.stdout.isatty())):
            raise typer.BadParameter(
                "--show needs a terminal on stdin and stdout, without --json and --csv: write a file instead."
            )
        self._as_json, self._as_csv = as_json, as_csv
        self._console = Console()
        self._table: Table | None = None
        self._images: list[tuple[str, bytes]] = []
        self._is_first = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._table is not None:
            self._console.print(self._table)
        for name, png in self._images:
            _show(self._console, name, png)

    def add(self, record: Mapping[str, Any], **more: Any) -> None:
        """Print one record; `more` is what only JSON shows."""
        if self._as_json:
            typer.echo(_json({**record, **more}))
        elif self._as_csv:
            rows = csv.writer(sys.stdout, lineterminator="\n")
            if self._is_first:
                rows.writerow(record)
            rows.writerow(_json(value) if isinstance(value, dict | list) else value for value in record.values())
        elif self._console.is_terminal:
            self._add_to_table(record)
        else:
            typer.echo("\t".join(_json(v) if isinstance(v, list) else _text(v) for v in record.values()))
        self._is_first = False

    def add_image(self, name: str, png: bytes) -> None:
        """Show a PNG under its name after all records."""
        self._images.append((name, png))

    def _add_to_table(self, record: Mapping[str, Any]) -> None:
        if self._table is None:
            self._table = Table(box=None, header_style="bold", pad_edge=False)
            for name, value in record.items():
                is_number = isinstance(value, int | float)
                # What wraps is what a narrow terminal shortens; a cell stays one line.
                self._table.add_column(name, no_wrap=is_number, justify="right" if is_number else "left")
        self._table.add_row(*(Text(_text(v), no_wrap=True, overflow="ellipsis") for v in record.values()))


def _show(console: Console, name: str, png: bytes) -> None:
    logging.getLogger("textual_image").setLevel(logging.ERROR)  # it warns of terminals that do not know their size
    from textual_image.renderable import Image  # here: it asks the terminal what it can

    console.print(Text(printable(name), style="bold"))
    console.print(Image(io.BytesIO(png), width="auto", height="auto"))


def print_record(record: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints one record: a line a field, or a JSON object."""
    if as_json:
        typer.echo(_json(record))
        return
    width = max(map(len, record))
    for name, value in record.items():
        typer.echo(f"{name:<{width}}  {_text(value)}")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text(value: Any) -> str:
    """A value in one line without control characters, which would steer the terminal."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return " ".join(f"{printable(str(name))}={_text(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        shown = ", ".join(map(_text, value[:_MAX_NUMBERS] if _is_vector(value) else value))
        return f"{shown}, … ({len(value)} numbers)" if _is_vector(value) else shown
    return printable(str(value))


def _is_vector(value: list[Any] | tuple[Any, ...]) -> bool:
    return len(value) > _MAX_NUMBERS and isinstance(value[0], float)
