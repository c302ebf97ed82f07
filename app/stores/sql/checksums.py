"""Checksums of what is stored: of vectors on both databases, and of all other rows on SQLite.

A vector's checksum is computed by the writer and verified by every reader. The checksums of other rows are written by
SQLite's own triggers, so that no writer can forget them, and are verified by `vermouth db check`. PostgreSQL
has checksums of its own.
"""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.errors import Damaged
from app.stores.sql.tables import VectorDtype, pack, unpack

ROW_CHECKSUM = "row_checksum"  # the column that triggers keep; unknown to the schema in `tables.py`


def checksum_of(owner: str, vector: NDArray[np.float32]) -> bytes:
    """Return the 128-bit checksum of vectors and of the external id, support or class set that they belong to."""
    digest = hashlib.blake2b(owner.encode() + b"\0", digest_size=16)
    digest.update(np.ascontiguousarray(vector, np.float32).tobytes())
    return digest.digest()


def sealed(owner: str, vector: NDArray[np.float32], dtype: VectorDtype = "fp32") -> Mapping[str, Any]:
    """Return the columns `vector` and `checksum` of a row."""
    data = pack(np.asarray(vector, np.float32), dtype)
    # Of what a reader unpacks: fp16 rounds.
    return {"vector": data, "checksum": checksum_of(owner, unpack(data, dtype))}


def sealed_rows(name: str, vectors: NDArray[np.float32]) -> Mapping[str, Any]:
    """Return the columns `vectors`, [N, D], and `checksum` of a class set's row."""
    return {"vectors": pack(vectors), "checksum": checksum_of(name, vectors)}


def verified(owner: str, data: bytes, checksum: bytes, dtype: str = "fp32") -> NDArray[np.float32] | None:
    """Return the vectors of `sealed`, or None if they are not what was stored."""
    try:
        vector = unpack(data, dtype)
    except (KeyError, ValueError, TypeError):  # another type, or half of a number
        return None
    return vector if checksum_of(owner, vector) == checksum else None


def sound_vector(row: sa.Row[*tuple[Any, ...]]) -> NDArray[np.float32]:
    """Return the vector of a row of `select_vectors`. Raises Damaged."""
    vector = verified(row.external_id, row.vector, row.checksum, row.dtype)
    if vector is None:
        raise Damaged(f"The vector of item {row.external_id!r} is damaged: run `vermouth db repair`.")
    return vector


def checksum_of_row(*values: object) -> int:
    """The CRC-32 of a row's columns, which finds every change of up to 32 neighbouring bits; a function in SQLite."""
    parts = [value if type(value) is bytes else repr(value).encode() for value in values]
    return zlib.crc32(b"\0".join(parts))


def row_expression(columns: Sequence[str], of: str = "") -> str:
    """Return SQLite's expression for the checksum of a row; `of` is `NEW`, `OLD` or nothing."""
    names = [f'{of}."{column}"' if of else f'"{column}"' for column in columns]
    # Text as bytes, for damaged text may not decode; the types tell it from bytes.
    values = [f"CASE typeof({name}) WHEN 'text' THEN CAST({name} AS BLOB) ELSE {name} END" for name in names]
    return f"checksum_of_row({' || '.join(f'typeof({name})' for name in names)}, {', '.join(values)})"


def row_triggers(table: str, columns: Sequence[str]) -> Sequence[str]:
    """Return the statements that create the triggers of a table of SQLite."""
    old, new = row_expression(columns, "OLD"), row_expression(columns, "NEW")
    keep = f'UPDATE "{table}" SET {ROW_CHECKSUM} ='
    named = ", ".join(f'"{column}"' for column in columns)
    return (
        f'CREATE TRIGGER {table}_sealed AFTER INSERT ON "{table}" BEGIN {keep} {new} WHERE rowid = NEW.rowid; END',
        # By the difference: the checksum of a damaged row stays wrong, a write does not make it look sound.
        f'CREATE TRIGGER {table}_resealed AFTER UPDATE OF {named} ON "{table}" BEGIN'
        f" {keep} OLD.{ROW_CHECKSUM} - {old} + {new} WHERE rowid = NEW.rowid; END",
    )
