"""Checks a store for faults, removes what nothing needs, rebuilds indexes."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from app.errors import ServiceError
from app.stores.blobs import NAMED_IMAGES, Blobs, collect_garbage
from app.stores.index.base import IndexOptions
from app.stores.index.follower import Indexes
from app.stores.index.snapshots import IndexSnapshots
from app.stores.maintenance.faults import (
    guarded,
    log_faults,
    row_faults,
    schema_faults,
    sql_faults,
    text_faults,
    vector_faults,
)
from app.stores.sql import change_log, metadata
from app.stores.sql.checksums import verified
from app.stores.sql.database import Database
from app.stores.sql.tables import (
    IS_LIVE,
    batches,
    changes,
    class_set_vectors,
    counters,
    database_metadata,
    episodes,
    idempotency_keys,
    item_vectors,
    items,
    jobs,
    select_vectors,
    support_vectors,
)

FINDERS = {
    "tables": sql_faults,
    "schema": schema_faults,
    "change log": log_faults,
    "rows": row_faults,
    "vectors": vector_faults,
    "texts": text_faults,
}
JOBS_RETAINED_S = 30 * 24 * 3600.0
LOG_RETAINED_S = 3600.0  # the last hour of the log outlives a vacuum, for running exports and replicas that are behind
ROWS_AT_ONCE = 1000
SAMPLED = 100  # vectors among which a sound one is looked for
# A subquery, read again in each transaction: the active bundle may be switched during a vacuum.
_RETAINED_FINGERPRINTS = sa.select(database_metadata.c.value).where(
    database_metadata.c.name.in_([metadata.FINGERPRINT, metadata.PREVIOUS_FINGERPRINT])
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vacuumed:
    """How many rows and images a vacuum removed."""

    items: int
    changes: int
    episodes: int
    images: int


class Maintenance:
    """Checks and cleans one store; every method blocks. `options`: which kind of index `rebuild` builds."""

    def __init__(
        self, database: Database, blobs: Blobs, snapshots: IndexSnapshots, *, options: IndexOptions | None = None
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._snapshots = snapshots
        self._options = options or IndexOptions()

    def check(self, *, deep: bool = False) -> Sequence[str]:
        """Return one sentence per fault; none for a sound store.

        Args:
            deep: read every image and compare it with its SHA-256.
        """
        found: list[str] = []
        with self._database.read(limit_s=None) as connection:
            for name, finder in FINDERS.items():
                found.extend(guarded(name, finder(connection)))
        found.extend(guarded("images", self._image_faults(deep)))
        damaged = self._snapshots.damaged()
        found.extend(f"The index saved in {path} is damaged: run `vermouth db rebuild`." for path in damaged)
        if not found:  # indexes built from faulty rows would only repeat the faults
            found.extend(self._index_faults())
        return found

    def rebuild(self) -> int:
        """Remove the saved indexes and build them from SQL; returns how many vectors they hold."""
        self._snapshots.clear()
        indexes = self._indexes(self._snapshots)
        indexes.load()
        indexes.settle()  # graphs are built now, not after the next start
        count = sum(indexes.counts().values())
        indexes.close()
        return count

    def vacuum(self, *, log_retained_s: float = LOG_RETAINED_S) -> Vacuumed:
        """Remove deleted items' rows, old log entries, expired episodes and unreferenced images.

        Each transaction deletes a thousand rows, so that no writer waits long. Replicas that are behind the new
        beginning of the log read their indexes from SQL.

        Args:
            log_retained_s: how much of the log stays, with the rows that died in it.
        """
        now = time.time()
        horizon, logged = self._cut_log(now - log_retained_s)
        dead = self._delete(items.c.id, items.c.deleted_seq <= horizon)
        expired = self._delete(episodes.c.id, episodes.c.expires_at <= now)
        self._delete(idempotency_keys.c.key, idempotency_keys.c.expires_at <= now)
        self._delete(jobs.c.id, jobs.c.updated_at <= now - JOBS_RETAINED_S)
        # Vectors of bundles before the previous one; that one's stay for `vermouth reembed --rollback`.
        for key in (item_vectors.c.item_id, support_vectors.c.support_id, class_set_vectors.c.name):
            self._delete(key, key.table.c.fingerprint.not_in(_RETAINED_FINGERPRINTS))
        images = sum(collect_garbage(self._database, self._blobs, part) for part in batches(self._blobs.names()))
        self._blobs.remove_temporary()
        self._database.compact()  # last, when most space is free
        return Vacuumed(items=dead, changes=logged, episodes=expired, images=images)

    def _cut_log(self, until: float) -> tuple[int, int]:
        """Delete the changes before a time; returns the last deleted `seq`, and how many were deleted now."""
        count = 0
        while True:
            with self._database.write() as connection:
                first_retained = connection.execute(sa.select(sa.func.min(changes.c.seq)).where(changes.c.at > until))
                last = (first_retained.scalar_one() or change_log.head(connection) + 1) - 1
                begin = change_log.vacuumed(connection)
                end = min(begin + ROWS_AT_ONCE, last)
                if end <= begin:
                    return begin, count
                count += connection.execute(sa.delete(changes).where(changes.c.seq <= end)).rowcount
                # Recorded before any row that the log named is deleted: exports and replicas rely on it.
                note = sa.update(counters).where(counters.c.name == "vacuumed")
                connection.execute(note.values(value=end))

    def _delete(self, key: sa.Column[Any], condition: sa.ColumnElement[bool]) -> int:
        """Delete the rows of a condition, a limited number per transaction; returns how many."""
        some = sa.select(key).where(condition).limit(ROWS_AT_ONCE)  # DELETE has no LIMIT in PostgreSQL
        count = 0
        while True:
            with self._database.write() as connection:
                deleted = connection.execute(sa.delete(key.table).where(key.in_(some), condition)).rowcount
            if deleted == 0:
                return count
            count += deleted

    def _image_faults(self, deep: bool) -> Iterator[str]:
        with self._database.read(limit_s=None) as connection:
            named = connection.execute(NAMED_IMAGES).scalars().all()
        for sha256 in named:
            if not self._blobs.has(sha256):
                yield f"The image {sha256} is named but not stored."
            elif deep:
                try:
                    self._blobs.get(sha256)
                except ServiceError:
                    yield f"The image {sha256} is damaged."

    def _index_faults(self) -> Iterator[str]:
        indexes = self._indexes(self._snapshots.read_only())
        indexes.load()
        differing = set(indexes.differing())
        for name, digest in indexes.true_digests().items():
            if name in differing or indexes.state(name).digest != digest:
                yield f"The index of gallery {name!r} differs from what is stored: run `vermouth db rebuild`."
        indexes.discard()

    def _indexes(self, snapshots: IndexSnapshots) -> Indexes:
        with self._database.read(limit_s=None) as connection:
            fingerprint = metadata.read(connection, metadata.FINGERPRINT) or ""
            rows = connection.execute(select_vectors(fingerprint).where(IS_LIVE).limit(SAMPLED)).all()
        # The bundle is not loaded here: its dimension is that of any sound vector.
        sound = (verified(row.external_id, row.vector, row.checksum, row.dtype) for row in rows)
        dimension = next((len(vector) for vector in sound if vector is not None), 1)
        return Indexes(
            self._database, dimension=dimension, fingerprint=fingerprint, options=self._options, snapshots=snapshots
        )
