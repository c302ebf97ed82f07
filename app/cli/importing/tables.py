"""Images that a table names: dialect and encoding of the table, and types of its columns."""

import codecs
import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.cli.importing.files import (
    Importable,
    Skip,
    SourceOptions,
    UnreadableSource,
    id_fault,
    printable,
    read_beside,
    status_of,
)
from vermouth_client.bulk import item_id

_SEPARATORS = ",;\t|"
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # spreadsheets write it before the header
_RESERVED = frozenset({"path", "id", "caption"})
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")  # no leading zeros: 00123 is a code, not a number
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_MAX_HEADER_LETTERS = 1 << 16
_MAX_CELL_LETTERS = 32 << 20
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_table(path: Path, options: SourceOptions) -> Iterator[Importable]:
    """Yields one importable for each row: column `path`, optional `id` and `caption`; all others are metadata.

    Raises:
        UnreadableSource: the table has no column `path`, a quote is not closed, or two columns have one name.
    """
    table = _Table.open(path, options)
    types = table.column_types(options)
    for number, cells in table.rows():
        if not any(cell.strip() for cell in cells):
            yield Importable(id="", name=f"{printable(path.name)} (row {number})", skip=Skip.BLANK)
        else:
            yield _importable(table, number, cells, types, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A table's file and dialect; `columns` are its stripped names, those with a meaning in lower case."""

    path: Path
    encoding: str
    separator: str
    has_separator_line: bool
    columns: tuple[str, ...]

    @classmethod
    def open(cls, path: Path, options: SourceOptions) -> "_Table":
        encoding = _encoding(path, options)
        with path.open(newline="", encoding=encoding) as file:
            line = file.readline(_MAX_HEADER_LETTERS)
            declared = _SEPARATOR_LINE.fullmatch(line)
            if declared:
                line = file.readline(_MAX_HEADER_LETTERS)
            while line and not line.strip(f" \r\n{_SEPARATORS}"):
                line = file.readline(_MAX_HEADER_LETTERS)
        candidates = [declared[1]] if declared else [*_SEPARATORS]
        headers = [(separator, _header(line, separator)) for separator in candidates]
        separator, columns = max(headers, key=lambda one: ("path" in one[1], len(one[1])))
        if "path" not in columns:
            found = ", ".join(map(repr, map(printable, columns[:20])))
            read = f"its first line has {found}" if found else "it is empty"
            raise UnreadableSource(f"{path} has no column 'path'; {read}.")
        twice = [name for name in columns if name and columns.count(name) > 1]
        if twice:
            raise UnreadableSource(f"{path} has two columns {printable(twice[0])!r}: rename one.")
        if "" in columns:
            options.note(f"{printable(path.name)}: a column without a name is not imported")
        return cls(
            path=path, encoding=encoding, separator=separator, has_separator_line=bool(declared), columns=columns
        )

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The rows below the header with their numbers as a spreadsheet counts them."""
        csv.field_size_limit(_MAX_CELL_LETTERS)  # of the whole process; by default a longer cell ends the table
        with self.path.open(newline="", encoding=self.encoding) as file:
            # Strict: a quote that is never closed would make one cell of all rows that follow.
            rows = csv.reader(file, delimiter=self.separator, skipinitialspace=True, strict=True)
            number, is_below = 0, False
            first = 2 if self.has_separator_line else 1
            if self.has_separator_line:
                file.readline()
            try:
                for number, cells in enumerate(rows, start=first):
                    if is_below:
                        yield number, cells
                    is_below = is_below or any(cell.strip() for cell in cells)
            except csv.Error as err:
                raise UnreadableSource(f"{self.path} cannot be read after row {number}: {err}.") from err

    def column_types(self, options: SourceOptions) -> dict[str, str]:
        """`integer`, `number`, `boolean` or `text` of each metadata column; notes them."""
        chosen = {name.strip().lower() for name in options.text}
        if unknown := chosen - {name.lower() for name in self.columns}:
            raise UnreadableSource(f"{self.path} has no column {printable(min(unknown))!r} that could be text.")
        found: dict[str, str] = {}
        for _, cells in self.rows():
            for name, cell in zip(self.columns, cells, strict=False):
                if cell.strip() and found.get(name) != "text":
                    found[name] = _joined(found.get(name), _type_of(cell.strip()))
        types = {
            name: "text" if name.lower() in chosen else found.get(name, "empty")
            for name in self.columns
            if name and name not in _RESERVED
        }
        if types:
            named = ", ".join(f"{printable(name)}: {kind}" for name, kind in types.items())
            options.note(f"{printable(self.path.name)}: columns {named}")
        return types


def _importable(
    table: _Table, number: int, cells: list[str], types: dict[str, str], options: SourceOptions
) -> Importable:
    row = dict(zip(table.columns, cells, strict=False))
    path = row["path"].strip() if "path" in row else ""
    if status_of(table.path.parent / path) is None:
        path = path.replace("\\", "/")  # a table from Windows
    path = path.removeprefix("./")
    chosen = row.get("id", "").strip() or item_id(options.prefix + path)
    data, fault = read_beside(table.path, path)
    extra = any(cell.strip() for cell in cells[len(table.columns) :])
    if extra:  # most likely a separator that is not quoted, which shifts the cells after it
        fault = f"has {len(cells)} cells for {len(table.columns)} columns"
    elif not path:
        fault = "names no file"
    elif path.lower().startswith(("http://", "https://")):
        fault = "is a URL; only files beside the table are imported"
    metadata: dict[str, object] = {
        name: _value(row[name], kind) for name, kind in types.items() if row.get(name, "").strip()
    }
    return Importable(
        id=chosen,
        name=f"{printable(path)} (row {number})",
        data=data,
        metadata=metadata,
        caption=row.get("caption", "").strip() or None,
        fault=fault or id_fault(chosen),
    )


def _encoding(path: Path, options: SourceOptions) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    if len(head) == 4 and head[1::2] == b"\0\0":
        return "utf-16-le"
    if len(head) == 4 and head[::2] == b"\0\0":
        return "utf-16-be"
    if _decodes(path, "utf-8"):
        return "utf-8"
    if not _decodes(path, "cp1252"):
        raise UnreadableSource(f"{path} is neither UTF-8, UTF-16 nor Windows-1252: save it as UTF-8.")
    options.note(f"{printable(path.name)}: not UTF-8, read as Windows-1252; save it as UTF-8 if letters are wrong")
    return "cp1252"


def _decodes(path: Path, encoding: str) -> bool:
    try:
        with path.open(encoding=encoding, newline="") as file:
            while file.read(1 << 20):
                pass
    except UnicodeDecodeError:
        return False
    return True


def _header(line: str, separator: str) -> tuple[str, ...]:
    names = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    stripped = (name.strip() for name in names)
    return tuple(name.lower() if name.lower() in _RESERVED else name for name in stripped)


def _type_of(cell: str) -> str:
    if _INTEGER.fullmatch(cell):
        return "integer" if -(2**63) <= int(cell[:40]) < 2**63 else "text"  # as the service keeps them: exact or not
    if _NUMBER.fullmatch(cell):
        return "number" if math.isfinite(float(cell)) else "text"
    return "boolean" if cell.lower() in {"true", "false"} else "text"


def _joined(first: str | None, second: str) -> str:
    if first is None or first == second:
        return second
    return "number" if {first, second} == {"integer", "number"} else "text"


def _value(cell: str, kind: str) -> object:
    plain = cell.strip()
    if kind == "boolean":
        return plain.lower() == "true"
    if kind in {"integer", "number"}:
        return int(plain) if _INTEGER.fullmatch(plain) else float(plain)
    return cell
