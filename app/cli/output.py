"""Results on stdout: aligned columns for people, tabs for programs, CSV, or a JSON object a line."""

import csv
import json
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
_MAX_NUMBERS = 4


class Rows:
    """Prints records of equal fields as they come; on a terminal together, when all are there."""

    def __init__(self, *, as_json: bool = False, as_csv: bool = False) -> None:
        if as_json and as_csv:
            raise typer.BadParameter("--json and --csv exclude each other: choose one.")
        self._as_json, self._as_csv = as_json, as_csv
        self._console = Console()
        self._table: Table | None = None
        self._is_first = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._table is not None:
            self._console.print(self._table)

    def add(self, record: Mapping[str, Any], **more: Any) -> None:
        """Print one record; `more` is what only JSON shows."""
        if self._as_json:
            typer.echo(json.dumps({**record, **more}, ensure_ascii=False))
        elif self._as_csv:
            rows = csv.writer(sys.stdout, lineterminator="\n")
            if self._is_first:
                rows.writerow(record)
            rows.writerow(json.dumps(value) if isinstance(value, dict | list) else value for value in record.values())
        elif self._console.is_terminal:
            self._add_to_table(record)
        else:
            typer.echo("\t".join(json.dumps(v) if isinstance(v, list) else _text(v) for v in record.values()))
        self._is_first = False

    def _add_to_table(self, record: Mapping[str, Any]) -> None:
        if self._table is None:
            self._table = Table(box=None, header_style="bold", pad_edge=False)
            for name, value in record.items():
                is_number = isinstance(value, int | float)
                self._table.add_column(name, no_wrap=True, justify="right" if is_number else "left")
        self._table.add_row(*(Text(_text(value)) for value in record.values()))


def print_record(record: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints one record: a line a field, or a JSON object."""
    if as_json:
        typer.echo(json.dumps(record, ensure_ascii=False))
        return
    width = max(map(len, record))
    for name, value in record.items():
        typer.echo(f"{name:<{width}}  {_text(value)}")


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
