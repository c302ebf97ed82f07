"""The SQL schema, in SQLAlchemy Core, and the encoding of vectors; `migrations/` upgrades a database to it."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal, TypeVar

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

T = TypeVar("T")
VectorDtype = Literal["fp32", "fp16"]
_TYPES: dict[str, np.dtype[np.floating]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}

schema = sa.MetaData()
_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _name(length: int) -> sa.types.TypeEngine[str]:
    """Text in the order of its code points, as Python and SQLite sort it."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


counters = sa.Table(
    "counters",
    schema,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

# Single values of the whole database, see `metadata.py`.
database_metadata = sa.Table(
    "facts", schema, sa.Column("name", sa.String(64), primary_key=True), sa.Column("value", sa.Text, nullable=False)
)

changes = sa.Table(
    "changes",
    schema,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("subject", sa.String(255), nullable=False),
    sa.Column("item_id", sa.BigInteger),
    sa.Column("at", sa.Float, nullable=False),
)

galleries = sa.Table(
    "galleries",
    schema,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("name", _name(64), nullable=False, unique=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

items = sa.Table(
    "items",
    schema,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("gallery_id", sa.ForeignKey("galleries.id", ondelete="CASCADE"), nullable=False),
    sa.Column("external_id", _name(128), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False, index=True),
    sa.Column("media_type", sa.String(64), nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("caption", sa.Text),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("added_seq", sa.BigInteger, nullable=False, index=True),
    sa.Column("deleted_seq", sa.BigInteger, index=True),
    sqlite_autoincrement=True,
)
IS_LIVE = items.c.deleted_seq.is_(None)
# One live row per external id; replaced and deleted rows stay until a vacuum.
sa.Index(
    "items_live", items.c.gallery_id, items.c.external_id, unique=True, sqlite_where=IS_LIVE, postgresql_where=IS_LIVE
)

# One vector per item and bundle, so that a new bundle's are made beside the old ones; `dtype` is fp32 or fp16,
# `checksum` is `checksums.checksum_of`.
item_vectors = sa.Table(
    "item_vectors",
    schema,
    sa.Column("item_id", sa.ForeignKey("items.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("fingerprint", sa.String(64), primary_key=True),
    sa.Column("dtype", sa.String(8), nullable=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),
    sa.Column("checksum", sa.LargeBinary),
)

episodes = sa.Table(
    "episodes",
    schema,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(128)),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("method", sa.String(32), nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, index=True),
)

supports = sa.Table(
    "supports",
    schema,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("episode_id", sa.ForeignKey("episodes.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("way", sa.Integer, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False, index=True),
    sa.Column("media_type", sa.String(64), nullable=False),
)

support_vectors = sa.Table(
    "support_vectors",
    schema,
    sa.Column("support_id", sa.ForeignKey("supports.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("fingerprint", sa.String(64), primary_key=True),
    sa.Column("vector", sa.LargeBinary, nullable=False),
    sa.Column("checksum", sa.LargeBinary),
)

class_sets = sa.Table(
    "class_sets",
    schema,
    sa.Column("name", _name(64), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("classes", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
)

# [N, D] float32 of a class set's N classes, one row per bundle.
class_set_vectors = sa.Table(
    "class_set_vectors",
    schema,
    sa.Column("name", sa.ForeignKey("class_sets.name", ondelete="CASCADE"), primary_key=True),
    sa.Column("fingerprint", sa.String(64), primary_key=True),
    sa.Column("vectors", sa.LargeBinary, nullable=False),
    sa.Column("checksum", sa.LargeBinary),
)

# `status` is null while the key's request is processed; `done_seq` is set in its write's own transaction.
idempotency_keys = sa.Table(
    "idempotency_keys",
    schema,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("request", sa.String(64), nullable=False),
    sa.Column("token", sa.String(64), nullable=False, index=True),
    sa.Column("held_until", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False, index=True),
    sa.Column("status", sa.Integer),
    sa.Column("headers", sa.JSON),
    sa.Column("body", sa.LargeBinary),
    sa.Column("done_seq", sa.BigInteger),
)

jobs = sa.Table(
    "jobs",
    schema,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("done", sa.BigInteger, nullable=False),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("report", sa.JSON, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
)


def select_vectors(fingerprint: str | None, *columns: sa.ColumnElement[Any]) -> sa.Select[*tuple[Any, ...]]:
    """Return the query for external ids and vectors of a bundle, with checksums, and for more columns; None for all."""
    stored = (item_vectors.c.dtype, item_vectors.c.vector, item_vectors.c.checksum)
    query = sa.select(items.c.id, items.c.external_id, *stored, *columns)
    joined = query.join_from(items, item_vectors)
    return joined if fingerprint is None else joined.where(item_vectors.c.fingerprint == fingerprint)


def batches(values: Iterable[T], size: int = 500) -> Iterator[list[T]]:
    """Split values into lists of at most `size`; the default suits the bound parameters of one statement."""
    rest = iter(values)
    while part := list(islice(rest, size)):
        yield part


def pack(vector: NDArray[np.float32], dtype: VectorDtype = "fp32") -> bytes:
    """The bytes of a vector, or of [N, D] of them."""
    return np.ascontiguousarray(vector, _TYPES[dtype]).tobytes()


def unpack(data: bytes, dtype: str = "fp32") -> NDArray[np.float32]:
    """The vector of `pack`, [D] float32; of [N, D] the rows follow each other."""
    return np.frombuffer(data, _TYPES[dtype]).astype(np.float32)
