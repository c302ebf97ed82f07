"""Finds what is damaged in the rows of a store; every function yields one sentence per fault."""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app.errors import ServiceError
from app.stores.maintenance.reembed import count_lacking
from app.stores.sql import change_log, metadata
from app.stores.sql.checksums import ROW_CHECKSUM, row_expression, verified
from app.stores.sql.database import sql_errors
from app.stores.sql.engines import migrate, sqlite_engine
from app.stores.sql.tables import (
    IS_LIVE,
    changes,
    class_set_vectors,
    galleries,
    item_vectors,
    items,
    schema,
    select_vectors,
    support_vectors,
    supports,
)

ROWS_AT_ONCE = 1000
SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_schema"
REPAIR = "run `vermouth db repair`"
_Row = sa.Row[*tuple[Any, ...]]


def sql_faults(connection: sa.Connection) -> Iterator[str]:
    """Faults that the database finds itself."""
    if connection.dialect.name != "sqlite":
        return
    for row in connection.exec_driver_sql("PRAGMA integrity_check"):
        if row[0] != "ok":
            yield f"SQLite: {row[0]}"
    for row in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        yield f"A row of {row[0]} names a row of {row[2]} that does not exist."


def schema_faults(connection: sa.Connection) -> Iterator[str]:
    """Tables, indexes and triggers of SQLite that are not as the migrations make them."""
    if connection.dialect.name != "sqlite":
        return
    present = {tuple(row) for row in connection.exec_driver_sql(SCHEMA)}
    for kind, name, *_ in _expected_schema() ^ present:
        yield f"The {kind} {name!r} is not as this release makes it: restore a backup."


@cache
def _expected_schema() -> frozenset[tuple[Any, ...]]:
    fresh = sqlite_engine(Path(":memory:"))
    migrate(fresh)
    with fresh.connect() as connection:
        expected = frozenset(tuple(row) for row in connection.exec_driver_sql(SCHEMA))
    fresh.dispose()
    return expected


def log_faults(connection: sa.Connection) -> Iterator[str]:
    """Changes that are missing in the log."""
    head = change_log.head(connection)
    vacuumed = change_log.vacuumed(connection)
    count = connection.execute(sa.select(sa.func.count()).select_from(changes)).scalar_one()
    if count != head - vacuumed:  # numbers without gaps, so the count proves that none is missing
        yield f"The change log holds {count} changes between {vacuumed} and {head}."


def row_faults(connection: sa.Connection) -> Iterator[str]:
    """Rows of SQLite that are not what was written."""
    if connection.dialect.name != "sqlite":
        return
    for table in schema.sorted_tables:
        present = {row[1] for row in connection.exec_driver_sql(f'PRAGMA table_info("{table.name}")')}
        if ROW_CHECKSUM not in present:
            continue
        condition = f"{ROW_CHECKSUM} IS NOT {row_expression([column.name for column in table.columns])}"
        # As bytes: damaged text may not decode.
        keys = ", ".join(f"CAST({name} AS BLOB)" for name in _naming(table))
        for row in connection.exec_driver_sql(f'SELECT {keys} FROM "{table.name}" WHERE {condition}'):
            name = " / ".join("null" if key is None else key.decode(errors="replace") for key in row)
            yield (
                f"The row {name!r} of {table.name} is damaged: restore a backup, or take it as it is with"
                " `vermouth db repair --accept`."
            )


def vector_faults(connection: sa.Connection) -> Iterator[str]:
    """Vectors that are missing or not what was stored."""
    yield from damage(connection)
    active = metadata.read(connection, metadata.FINGERPRINT) or ""
    for kind, count in count_lacking(connection, active).items():
        if count:
            yield f"{count} {kind} have no vector of the active bundle: {REPAIR}."
    sizes = sa.select(sa.func.length(item_vectors.c.vector), item_vectors.c.dtype).join_from(item_vectors, items)
    sizes = sizes.where(item_vectors.c.fingerprint == active, IS_LIVE)
    found = {size // (2 if dtype == "fp16" else 4) for size, dtype in connection.execute(sizes.distinct())}
    if len(found) > 1:
        yield f"Vectors of the active bundle have {len(found)} different lengths."


def damage(connection: sa.Connection) -> Iterator[str]:
    """Vectors that are not what was stored."""
    for row in damaged_items(connection):
        yield f"The vector of item {row.external_id!r} in gallery {row.gallery!r} is damaged: {REPAIR}."
    for row in damaged_supports(connection):
        yield f"The feature of example {row.owner!r} of episode {row.episode_id!r} is damaged: {REPAIR}."
    for row in damaged_class_sets(connection):
        yield f"The embeddings of class set {row.name!r} are damaged: {REPAIR}."


def damaged_items(connection: sa.Connection, *among: sa.ColumnElement[bool]) -> Iterator[_Row]:
    """Rows (`id`, `external_id`, `gallery`, `fingerprint`) of live items whose vectors are not what was stored."""
    query = select_vectors(None, item_vectors.c.fingerprint, galleries.c.name.label("gallery"))
    query = query.join(galleries, galleries.c.id == items.c.gallery_id).where(IS_LIVE, *among)
    query = query.order_by(items.c.id)
    for row in connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}):
        if verified(row.external_id, row.vector, row.checksum, row.dtype) is None:
            yield row


def damaged_supports(connection: sa.Connection, *among: sa.ColumnElement[bool]) -> Iterator[_Row]:
    """Rows (`owner`, `episode_id`, `fingerprint`) of examples whose features are not what was stored."""
    query = sa.select(
        support_vectors.c.support_id.label("owner"),
        supports.c.episode_id,
        support_vectors.c.fingerprint,
        support_vectors.c.vector,
        support_vectors.c.checksum,
    ).join_from(support_vectors, supports)
    for row in connection.execute(query.where(*among), execution_options={"yield_per": ROWS_AT_ONCE}):
        if verified(row.owner, row.vector, row.checksum) is None:
            yield row


def damaged_class_sets(connection: sa.Connection, *among: sa.ColumnElement[bool]) -> Iterator[_Row]:
    """Rows (`name`, `fingerprint`) of class sets whose embeddings are not what was stored."""
    for row in connection.execute(sa.select(class_set_vectors).where(*among)):
        if verified(row.name, row.vectors, row.checksum) is None:
            yield row


def text_faults(connection: sa.Connection) -> Iterator[str]:
    """Text with NUL characters, which older releases accepted on SQLite and PostgreSQL cannot hold."""
    if connection.dialect.name != "sqlite":
        return
    for table in schema.sorted_tables:
        for column in table.columns:
            if not isinstance(column.type, sa.String | sa.JSON):
                continue
            keys = ", ".join(_naming(table))
            name = f'"{column.name}"'
            suspects = f"instr(CAST({name} AS BLOB), x'00') OR instr({name}, '\\u0000')"
            for *key, text in connection.exec_driver_sql(f'SELECT {keys}, {name} FROM "{table.name}" WHERE {suspects}'):
                if "\0" in text or (isinstance(column.type, sa.JSON) and _holds_nul(json.loads(text))):
                    yield (
                        f"The {column.name} of {' / '.join(map(repr, key))} in {table.name} holds a NUL character:"
                        " write it again without."
                    )


def guarded(name: str, found: Iterator[str]) -> Sequence[str]:
    """Return all faults; damage that stops the search for them is a fault too."""
    faults: list[str] = []
    try:
        with sql_errors():
            faults.extend(found)
    except (ServiceError, sa.exc.SQLAlchemyError, ValueError, TypeError) as err:
        cause = err.__cause__ or err
        faults.append(f"The {name} cannot be read: {getattr(cause, 'orig', None) or cause}.")
    return faults


def _naming(table: sa.Table) -> Sequence[str]:
    """SQL of what tells an operator which row is meant."""
    if table is items:
        return ["(SELECT name FROM galleries WHERE galleries.id = gallery_id)", "external_id"]
    return ["name"] if table is galleries else [f'"{column.name}"' for column in table.primary_key.columns]


def _holds_nul(value: object) -> bool:
    if isinstance(value, dict):
        return any(_holds_nul(one) for pair in value.items() for one in pair)
    if isinstance(value, list):
        return any(map(_holds_nul, value))
    return isinstance(value, str) and "\0" in value
