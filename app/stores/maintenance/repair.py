"""The SQL of a repair: damaged and missing vectors are made again from the stored images."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.stores.maintenance.faults import damaged_class_sets, damaged_items, damaged_supports
from app.stores.maintenance.reembed import LackingImage, Reembedding
from app.stores.records.class_sets import ClassSet
from app.stores.sql import change_log, metadata
from app.stores.sql.checksums import ROW_CHECKSUM, row_expression, sealed
from app.stores.sql.database import Database
from app.stores.sql.tables import (
    IS_LIVE,
    VectorDtype,
    batches,
    class_set_vectors,
    galleries,
    item_vectors,
    items,
    schema,
    support_vectors,
)

_Finder = Callable[..., Iterator[sa.Row[*tuple[Any, ...]]]]


class Repairing:
    """What one store lacks of its active bundle's vectors; every method blocks.

    Args:
        reembedding: of the same bundle.
        fingerprint: of the bundle.
        dtype: how its vectors are stored.
    """

    def __init__(
        self, database: Database, reembedding: Reembedding, *, fingerprint: str, dtype: VectorDtype = "fp32"
    ) -> None:
        self._database = database
        self._reembedding = reembedding
        self._fingerprint = fingerprint
        self._dtype: VectorDtype = dtype
        self._damaged: set[int] = set()

    def begin(self) -> None:
        """Find damaged vectors, and remove all but those of items of the active bundle.

        Raises:
            FingerprintMismatch: another bundle is active.
        """
        is_own = item_vectors.c.fingerprint == self._fingerprint
        with self._database.read(limit_s=None) as connection:
            metadata.require_fingerprint(connection, self._fingerprint)
            # Each stays until its item's row is replaced: indexes learn from it that the old vector goes.
            self._damaged = {row.id for row in damaged_items(connection, is_own)}
        # A rollback is refused until those of other bundles are embedded again.
        self._remove(damaged_items, item_vectors.c.item_id, ~is_own)
        self._remove(damaged_supports, support_vectors.c.support_id)
        self._remove(damaged_class_sets, class_set_vectors.c.name)

    def items(self, limit: int, after: int = 0) -> Sequence[LackingImage]:
        """Return live items whose vectors are damaged or missing, those after a row."""
        lacking = list(self._reembedding.items(limit, after))
        chosen = sorted(one for one in self._damaged if one > after)[:limit]
        query = sa.select(items.c.id.label("owner"), items.c.external_id.label("name"), items.c.sha256, items.c.caption)
        with self._database.read(limit_s=None) as connection:
            rows = connection.execute(query.where(items.c.id.in_(chosen), IS_LIVE)).mappings()
            damaged = [LackingImage(**row) for row in rows]
        return sorted([*lacking, *damaged], key=lambda one: int(one.owner))[:limit]

    def supports(self, limit: int, after: str = "") -> Sequence[LackingImage]:
        """Return examples that lack a feature, those after an id."""
        return self._reembedding.supports(limit, after)

    def class_sets(self) -> Sequence[ClassSet]:
        """Return class sets that lack their embeddings."""
        return self._reembedding.class_sets()

    def store_class_vectors(self, one: ClassSet, vectors: NDArray[np.float32]) -> None:
        """Store embeddings [N, D] of a class set, unless it changed meanwhile."""
        self._reembedding.store_class_vectors(one, vectors)

    def store_vectors(self, found: Sequence[tuple[LackingImage, NDArray[np.float32]]]) -> None:
        """Store vectors [D]: an item gets a new row, so that every index follows; its `seq`, its ETag, stays."""
        self._reembedding.store_vectors([(one, vector) for one, vector in found if isinstance(one.owner, str)])
        with self._database.write() as connection:
            for one, vector in found:
                if isinstance(one.owner, int):
                    self._replace(connection, one.owner, one.name, vector)
                    self._damaged.discard(one.owner)

    def _remove(self, damaged: _Finder, key: sa.Column[Any], *among: sa.ColumnElement[bool]) -> None:
        """Remove damaged vectors: all are read while others write, and those found again when they are removed."""
        with self._database.read(limit_s=None) as connection:
            owners = {row[0] for row in damaged(connection, *among)}
        for part in batches(owners):
            with self._database.write() as connection:
                metadata.require_fingerprint(connection, self._fingerprint)
                for row in list(damaged(connection, *among, key.in_(part))):
                    one = sa.and_(key == row[0], key.table.c.fingerprint == row.fingerprint)
                    connection.execute(sa.delete(key.table).where(one))

    def _replace(self, connection: sa.Connection, old: int, name: str, vector: NDArray[np.float32]) -> None:
        query = sa.select(galleries.c.name).join_from(items, galleries).where(items.c.id == old, IS_LIVE)
        gallery = connection.execute(query).scalar_one_or_none()
        if gallery is None:  # deleted or replaced meanwhile
            return
        (seq,) = change_log.take(connection)
        connection.execute(sa.update(items).where(items.c.id == old).values(deleted_seq=seq))
        columns = [column for column in items.columns if column.name not in {"id", "added_seq", "deleted_seq"}]
        row = sa.select(*columns, sa.literal(seq, items.c.added_seq.type)).where(items.c.id == old)
        inserted = sa.insert(items).from_select([*columns, items.c.added_seq], row).returning(items.c.id)
        new: int = connection.execute(inserted).scalar_one()
        if not self._database.is_shared:
            _carry_damage(connection, old, new)
        own = {"item_id": new, "fingerprint": self._fingerprint, "dtype": self._dtype}
        connection.execute(sa.insert(item_vectors), {**own, **sealed(name, vector, self._dtype)})
        # Those of the bundle to roll back to.
        others = sa.update(item_vectors).where(
            item_vectors.c.item_id == old, item_vectors.c.fingerprint != self._fingerprint
        )
        connection.execute(others.values(item_id=new))
        change_log.note(connection, [seq], "item.repair", gallery, [new])


def accept_rows(database: Database) -> int:
    """Give all damaged rows of SQLite the checksums of what they hold now; returns how many there were."""
    count = 0
    if database.is_shared:
        return count
    with database.write() as connection:
        for table in schema.sorted_tables:
            present = {row[1] for row in connection.exec_driver_sql(f'PRAGMA table_info("{table.name}")')}
            if ROW_CHECKSUM in present:
                true = row_expression([column.name for column in table.columns])
                change = f'UPDATE "{table.name}" SET {ROW_CHECKSUM} = {true} WHERE {ROW_CHECKSUM} IS NOT {true}'
                count += connection.exec_driver_sql(change).rowcount
    return count


def _carry_damage(connection: sa.Connection, old: int, new: int) -> None:
    """Make the checksum of a copied row as wrong as its original's: the trigger took what was copied for sound."""
    true = row_expression([column.name for column in items.columns])
    wrong = f"(SELECT {ROW_CHECKSUM} - {true} FROM items WHERE id = :old)"
    change = sa.text(f"UPDATE items SET {ROW_CHECKSUM} = {ROW_CHECKSUM} + {wrong} WHERE id = :new")
    connection.execute(change, {"old": old, "new": new})
