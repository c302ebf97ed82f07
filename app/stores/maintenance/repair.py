"""The SQL of a repair: damaged and missing vectors are made again from the stored images."""

from collections.abc import Sequence

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
    class_set_vectors,
    galleries,
    item_vectors,
    items,
    schema,
    support_vectors,
)


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
        with self._database.write() as connection:
            metadata.require_fingerprint(connection, self._fingerprint)
            found = list(damaged_items(connection))
            # It stays until the item's row is replaced: indexes learn from it that the old vector goes.
            self._damaged = {row.id for row in found if row.fingerprint == self._fingerprint}
            for row in found:
                if row.fingerprint != self._fingerprint:  # a rollback is refused until they are embedded again
                    _remove(connection, item_vectors.c.item_id, row.id, row.fingerprint)
            for row in list(damaged_supports(connection)):
                _remove(connection, support_vectors.c.support_id, row.owner, row.fingerprint)
            for row in list(damaged_class_sets(connection)):
                _remove(connection, class_set_vectors.c.name, row.name, row.fingerprint)

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

    def _replace(self, connection: sa.Connection, old: int, name: str, vector: NDArray[np.float32]) -> None:
        query = sa.select(items, galleries.c.name.label("gallery")).join_from(items, galleries)
        row = connection.execute(query.where(items.c.id == old, IS_LIVE)).mappings().one_or_none()
        if row is None:  # deleted or replaced meanwhile
            return
        (seq,) = change_log.take(connection)
        connection.execute(sa.update(items).where(items.c.id == old).values(deleted_seq=seq))
        values = {column.name: row[column.name] for column in items.columns if column.name not in {"id", "deleted_seq"}}
        inserted = sa.insert(items).values({**values, "added_seq": seq}).returning(items.c.id)
        new: int = connection.execute(inserted).scalar_one()
        own = {"item_id": new, "fingerprint": self._fingerprint, "dtype": self._dtype}
        connection.execute(sa.insert(item_vectors), {**own, **sealed(name, vector, self._dtype)})
        # Those of the bundle to roll back to.
        others = sa.update(item_vectors).where(
            item_vectors.c.item_id == old, item_vectors.c.fingerprint != self._fingerprint
        )
        connection.execute(others.values(item_id=new))
        change_log.note(connection, [seq], "item.repair", row["gallery"], [new])


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


def _remove(connection: sa.Connection, key: sa.Column[int] | sa.Column[str], owner: object, fingerprint: str) -> None:
    connection.execute(sa.delete(key.table).where(key == owner, key.table.c.fingerprint == fingerprint))
