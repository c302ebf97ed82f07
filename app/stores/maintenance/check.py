"""Looking after a store: is it sound, what can be thrown away, how are indexes made anew."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import sqlalchemy as sa

from app.errors import ServiceError
from app.stores.blobs import BLOBS_AT_ONCE, Blobs, collect_garbage
from app.stores.index.base import IndexOptions
from app.stores.index.follower import Indexes
from app.stores.index.snapshots import IndexSnapshots
from app.stores.sql import change_log, metadata, tables
from app.stores.sql.database import Database
from app.stores.sql.tables import (
    changes,
    class_set_vectors,
    class_sets,
    counters,
    episodes,
    idempotency_keys,
    item_vectors,
    items,
    jobs,
    support_vectors,
    supports,
    unpack,
)

JOBS_KEPT_S = 30 * 24 * 3600.0
LOG_KEPT_S = 3600.0
"""The last hour of the log outlives a vacuum, for exports that run and replicas that are behind."""
ROWS_AT_ONCE = 1000
# Read in each transaction: the active bundle may be switched during a vacuum.
_KEPT_FINGERPRINTS = sa.select(tables.database_metadata.c.value).where(
    tables.database_metadata.c.name.in_([metadata.FINGERPRINT, metadata.PREVIOUS_FINGERPRINT])
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vacuumed:
    """What a vacuum threw away."""

    items: int
    changes: int
    episodes: int
    pictures: int


class Maintenance:
    """Checks and cleans one store; every method blocks.

    Args:
        snapshots: of the indexes.
        options: which kind of index `rebuild` makes.
    """

    def __init__(
        self, database: Database, blobs: Blobs, snapshots: IndexSnapshots, *, options: IndexOptions | None = None
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._snapshots = snapshots
        self._options = options or IndexOptions()

    def check(self, *, deep: bool = False) -> Sequence[str]:
        """A sentence for every fault found; none for a sound store.

        Args:
            deep: read every picture and compare it with its name.
        """
        with self._database.read(limit_s=None) as connection:
            found = [*_sql_faults(connection), *_log_faults(connection), *_vector_faults(connection)]
        found.extend(self._picture_faults(deep))
        if not found:
            found.extend(self._index_faults())
        return found

    def true_digests(self) -> Mapping[str, str]:
        """The digest that every gallery's index must have."""
        indexes = self._indexes()
        try:
            return indexes.true_digests()
        finally:
            indexes.discard()

    def rebuild(self) -> int:
        """Throw the indexes away and make them from SQL; returns how many vectors they hold."""
        self._snapshots.clear()
        indexes = self._indexes()
        indexes.load()
        indexes.settle()
        count = sum(indexes.counts().values())
        indexes.close()
        return count

    def vacuum(self, *, log_kept_s: float = LOG_KEPT_S) -> Vacuumed:
        """Throw away what nobody needs: dead rows, the log behind them, expired episodes, unnamed pictures.

        A transaction for every thousand rows, so that no writer waits long. Replicas that are behind the log's new
        beginning read their indexes anew from SQL.

        Args:
            log_kept_s: how much of the log stays, with the rows that died in it.
        """
        now = time.time()
        horizon, logged = self._cut_log(now - log_kept_s)
        dead = self._delete(items.c.id, items.c.deleted_seq <= horizon)
        gone = self._delete(episodes.c.id, episodes.c.expires_at <= now)
        self._delete(idempotency_keys.c.key, idempotency_keys.c.expires_at <= now)
        self._delete(jobs.c.id, jobs.c.updated_at <= now - JOBS_KEPT_S)
        for key in (item_vectors.c.item_id, support_vectors.c.support_id, class_set_vectors.c.name):
            self._delete(key, key.table.c.fingerprint.not_in(_KEPT_FINGERPRINTS))
        pictures = 0
        names = self._blobs.names()
        while part := set(islice(names, BLOBS_AT_ONCE)):
            pictures += collect_garbage(self._database, self._blobs, part)
        self._blobs.remove_temporary()
        self._database.compact()
        return Vacuumed(items=dead, changes=logged, episodes=gone, pictures=pictures)

    def _cut_log(self, until: float) -> tuple[int, int]:
        """Delete the changes before a time. Returns the last `seq` that is gone, and how many went now.

        The log says how far it is cut before any row it names goes: exports and replicas look there.
        """
        count = 0
        while True:
            with self._database.write() as connection:
                first_kept = connection.execute(sa.select(sa.func.min(changes.c.seq)).where(changes.c.at > until))
                last = (first_kept.scalar_one() or change_log.head(connection) + 1) - 1
                begin = change_log.vacuumed(connection)
                end = min(begin + ROWS_AT_ONCE, last)
                if end <= begin:
                    return begin, count
                count += connection.execute(sa.delete(changes).where(changes.c.seq <= end)).rowcount
                note = sa.update(counters).where(counters.c.name == "vacuumed")
                connection.execute(note.values(value=end))

    def _delete(self, key: sa.Column[Any], condition: sa.ColumnElement[bool]) -> int:
        """Delete the rows of a condition, some in a transaction; returns how many."""
        some = sa.select(key).where(condition).limit(ROWS_AT_ONCE)
        count = 0
        while True:
            with self._database.write() as connection:
                gone = connection.execute(sa.delete(key.table).where(key.in_(some), condition)).rowcount
            if gone == 0:
                return count
            count += gone

    def _picture_faults(self, deep: bool) -> Iterator[str]:
        live = sa.select(items.c.sha256).where(items.c.deleted_seq.is_(None))
        with self._database.read(limit_s=None) as connection:
            named = list(connection.execute(live.union(sa.select(supports.c.sha256))).scalars())
        for sha256 in named:
            if not self._blobs.has(sha256):
                yield f"The picture {sha256} is named but not stored."
            elif deep:
                try:
                    self._blobs.get(sha256)
                except ServiceError:
                    yield f"The picture {sha256} is damaged."

    def _index_faults(self) -> Iterator[str]:
        indexes = self._indexes()
        indexes.load()
        differing = set(indexes.differing())
        for name, digest in indexes.true_digests().items():
            if name in differing or indexes.state(name).digest != digest:
                yield f"The index of gallery {name!r} differs from what is stored: run `vermouth db rebuild`."
        indexes.discard()

    def _indexes(self) -> Indexes:
        with self._database.read(limit_s=None) as connection:
            fingerprint = metadata.read(connection, metadata.FINGERPRINT) or ""
            own = item_vectors.c.fingerprint == fingerprint
            row = connection.execute(sa.select(item_vectors).where(own).limit(1)).one_or_none()
        dimension = 1 if row is None else len(unpack(row.vector, row.dtype))
        return Indexes(
            self._database,
            dimension=dimension,
            fingerprint=fingerprint,
            options=self._options,
            snapshots=self._snapshots,
        )


def _sql_faults(connection: sa.Connection) -> Iterator[str]:
    if connection.dialect.name != "sqlite":
        return
    for row in connection.exec_driver_sql("PRAGMA integrity_check"):
        if row[0] != "ok":
            yield f"SQLite: {row[0]}"
    for row in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        yield f"A row of {row[0]} names a row of {row[2]} that is not there."


def _log_faults(connection: sa.Connection) -> Iterator[str]:
    head = change_log.head(connection)
    vacuumed = change_log.vacuumed(connection)
    count = connection.execute(sa.select(sa.func.count()).select_from(changes)).scalar_one()
    if count != head - vacuumed:
        yield f"The change log holds {count} changes between {vacuumed} and {head}."


def _vector_faults(connection: sa.Connection) -> Iterator[str]:
    active = metadata.read(connection, metadata.FINGERPRINT) or ""
    lacking = {
        "items": _lacking(items.c.id, item_vectors.c.item_id, item_vectors.c.fingerprint == active).where(
            items.c.deleted_seq.is_(None)
        ),
        "supports": _lacking(supports.c.id, support_vectors.c.support_id, support_vectors.c.fingerprint == active),
        "class sets": _lacking(class_sets.c.name, class_set_vectors.c.name, class_set_vectors.c.fingerprint == active),
    }
    for kind, query in lacking.items():
        count = connection.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar_one()
        if count:
            yield f"{count} {kind} have no vector of the active bundle."
    sizes = sa.select(sa.func.length(item_vectors.c.vector), item_vectors.c.dtype).where(
        item_vectors.c.fingerprint == active
    )
    found = {size // (2 if dtype == "fp16" else 4) for size, dtype in connection.execute(sizes.distinct())}
    if len(found) > 1:
        yield f"Vectors of the active bundle have {len(found)} different lengths."


def _lacking(owner: sa.Column[object], key: sa.Column[object], own: sa.ColumnElement[bool]) -> sa.Select[object]:
    """Owners without a vector of their own."""
    return (
        sa.select(owner).select_from(owner.table.outerjoin(key.table, sa.and_(key == owner, own))).where(key.is_(None))
    )
