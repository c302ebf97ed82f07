"""Galleries: their rows, and the search over their items."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.errors import Conflict, NotFound
from app.stores.blobs import Blobs, collect_garbage_later
from app.stores.filters import Filter, matches
from app.stores.index.delta import TIE, IndexState
from app.stores.index.follower import Indexes
from app.stores.records.facets import Facets, count_facets
from app.stores.records.filtered_rows import FilteredRows
from app.stores.sql import change_log, metadata
from app.stores.sql.checksums import sound_vector, verified
from app.stores.sql.database import Database, failpoint
from app.stores.sql.tables import IS_LIVE, batches, galleries, items, select_vectors

DEFAULT_GALLERY = "default"
ATTEMPTS = 4  # of a search whose candidates keep disappearing
MAX_SPARE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """A gallery and how many live items it holds."""

    name: str
    description: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One search result: the item's row and external id, its similarity and its metadata."""

    item_id: int
    external_id: str
    score: float
    metadata: Mapping[str, object]


class Galleries:
    """All galleries of one service; every method blocks, call them through `Database.run`.

    Args:
        indexes: they follow what is written here.
        fingerprint: of the bundle.
    """

    def __init__(self, database: Database, blobs: Blobs, indexes: Indexes, *, fingerprint: str) -> None:
        self._database = database
        self._blobs = blobs
        self._indexes = indexes
        self._fingerprint = fingerprint
        self._filtered = FilteredRows(database)
        # Built once: building a query takes as long as running it.
        live = sa.and_(items.c.id.in_(sa.bindparam("ids", expanding=True)), IS_LIVE)
        self._rows = sa.select(items.c.id, items.c.external_id, items.c.metadata).where(live)
        self._rows_with_vectors = select_vectors(fingerprint, items.c.metadata).where(live)

    def load(self) -> None:
        """Claim an empty database for the bundle, create `default` if absent, load every index."""
        with self._database.write() as connection:
            if metadata.read(connection, metadata.FINGERPRINT) is None:  # the first bundle to open it
                metadata.write(connection, metadata.FINGERPRINT, self._fingerprint)
            if _gallery_id(connection, DEFAULT_GALLERY) is None:
                _create(connection, DEFAULT_GALLERY, "")
        self._indexes.load()

    def put(self, name: str, description: str | None) -> tuple[int, bool]:
        """Create a gallery, or change an existing one's description (None leaves it as it is).

        Returns the write's `seq`, and whether the gallery was created.
        """
        with self._database.write() as connection:
            known = _gallery_id(connection, name)
            if known is None:
                seq = _create(connection, name, description or "")
            else:
                if description is not None:
                    change = sa.update(galleries).where(galleries.c.id == known)
                    connection.execute(change.values(description=description))
                seq = change_log.append(connection, "gallery.put", name)
        self._indexes.follow_write()
        return seq, known is None

    def get(self, name: str) -> Gallery:
        """Return one gallery. Raises NotFound."""
        found = self._list(galleries.c.name == name)
        if not found:
            raise _no_gallery(name)
        return found[0]

    def require(self, name: str) -> None:
        """Check that a gallery exists, without counting its items. Raises NotFound."""
        self._key(name)

    def all(self) -> Sequence[Gallery]:
        """Return every gallery, by name."""
        return self._list(sa.true())

    def index_state(self, name: str) -> IndexState:
        """Return the index of a gallery, and how far in the log this process is. Raises NotFound."""
        self._indexes.catch_up()
        return self._indexes.state(name)

    def head_seq(self) -> int:
        """Return the last `seq` of the change log."""
        with self._database.read() as connection:
            return change_log.head(connection)

    def delete(self, name: str, *, confirmed: bool) -> int:
        """Delete a gallery with all its items; returns the write's `seq`.

        Raises:
            NotFound: there is none.
            Conflict: it is `default`, or holds items and is not confirmed.
        """
        if name == DEFAULT_GALLERY:
            raise Conflict("The gallery 'default' cannot be deleted.")
        with self._database.write() as connection:
            key = gallery_id(connection, name)
            live = sa.select(items.c.sha256).where(items.c.gallery_id == key, IS_LIVE)
            digests = connection.execute(live).scalars().all()
            if digests and not confirmed:
                raise Conflict(f"The gallery holds {len(digests)} items: repeat with ?confirm={name}.")
            # Rows, not tombstones: the index goes.
            connection.execute(sa.delete(items).where(items.c.gallery_id == key))
            connection.execute(sa.delete(galleries).where(galleries.c.id == key))
            seq = change_log.append(connection, "gallery.delete", name)
        failpoint("rows.committed")
        self._indexes.follow_write()
        collect_garbage_later(self._database, self._blobs, set(digests))
        return seq

    def search(
        self,
        name: str,
        query: NDArray[np.float32],
        *,
        k: int,
        min_score: float | None,
        where: Filter | None = None,
        offset: int = 0,
    ) -> tuple[int, Sequence[Hit], int]:
        """Return the k nearest items after the first `offset`, best first, equal scores by id.

        Args:
            query: [D] float32, of weighted slices whose lengths sum to one (`VectorLayout`).
            min_score: least score of a result.
            where: only items whose metadata passes.

        Returns:
            A `seq` that the answer is not older than, the hits (fewer than k only where fewer exist), and how many
            items pass `where`.

        Raises:
            NotFound: there is no such gallery.
            FingerprintMismatch: another bundle's vectors are active.
        """
        wanted = first = offset + k
        for _ in range(ATTEMPTS):
            seq = self._indexes.applied_seq  # before the search: the answer may be newer, never older
            allowed = None if where is None else self._filtered.passing(self._key(name), where)
            ids, scores, are_approximate = self._indexes.search(name, query, wanted, allowed)
            found = self._hits(ids, scores, query if are_approximate else None)
            if where is not None:
                # Metadata may have changed since the filter was evaluated.
                found = [one for one in found if matches(where, one.metadata)]
            if len(found) == len(ids):
                break
            # Some rows were deleted or changed since the index chose them: catch up, and ask for spare ones.
            wanted = min(first + 2 * (len(ids) - len(found)), MAX_SPARE + first)
            self._indexes.catch_up()
        total = self._indexes.count(name) if allowed is None else len(allowed)
        return seq, _best(found, first, min_score)[offset:], total

    def matching(self, name: str, where: Filter | None) -> int:
        """Return how many items pass a filter. Raises NotFound."""
        if where is not None:
            return len(self._filtered.passing(self._key(name), where))
        with self._database.read() as connection:
            own = items.c.gallery_id == gallery_id(connection, name)
            return int(connection.execute(sa.select(sa.func.count()).where(own, IS_LIVE)).scalar_one())

    def facets(self, name: str, field: str, limit: int) -> Facets:
        """Return the values of a metadata field with their counts. Raises NotFound, DeadlineExceeded."""
        with self._database.read() as connection:
            return count_facets(connection, gallery_id(connection, name), field, limit)

    def vectors(self, name: str, item_ids: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """Return vectors [D] float32 of items by id.

        Raises:
            Damaged: one of them is not what was stored.
            NotFound: there is no such gallery, or one of the items is not in it.
        """
        self._indexes.require_active()
        with self._database.read() as connection:
            key = gallery_id(connection, name)
            query = select_vectors(self._fingerprint).where(items.c.gallery_id == key, IS_LIVE)
            rows = connection.execute(query.where(items.c.external_id.in_(item_ids)))
            found = {row.external_id: sound_vector(row) for row in rows}
        for item_id in item_ids:
            if item_id not in found:
                raise NotFound(f"There is no item {item_id!r} in gallery {name!r}.")
        return found

    def _key(self, name: str) -> int:
        with self._database.read() as connection:
            return gallery_id(connection, name)

    def _hits(
        self, ids: NDArray[np.int64], scores: NDArray[np.float32], query: NDArray[np.float32] | None
    ) -> list[Hit]:
        """Return candidates that still exist; they are scored again with `query` if it is given."""
        by_id = dict(zip(ids.tolist(), scores.tolist(), strict=True))
        found: list[Hit] = []
        rows = self._rows if query is None else self._rows_with_vectors
        with self._database.read() as connection:
            for part in batches(by_id):
                for row in connection.execute(rows, {"ids": part}):
                    score = by_id[row.id]
                    if query is not None:
                        vector = verified(row.external_id, row.vector, row.checksum, row.dtype)
                        if vector is None:  # damaged since the index read it
                            continue
                        score = float(vector @ query)
                    score = min(1.0, max(-1.0, score))  # rounding may leave the range of a cosine
                    found.append(Hit(item_id=row.id, external_id=row.external_id, score=score, metadata=row.metadata))
        return found

    def _list(self, condition: sa.ColumnElement[bool]) -> Sequence[Gallery]:
        live = sa.and_(items.c.gallery_id == galleries.c.id, IS_LIVE)
        query = (
            sa.select(galleries.c.name, galleries.c.description, sa.func.count(items.c.id).label("count"))
            .select_from(galleries.outerjoin(items, live))
            .where(condition)
            .group_by(galleries.c.id)
            .order_by(galleries.c.name)
        )
        with self._database.read() as connection:
            return [Gallery(**row) for row in connection.execute(query).mappings()]


def gallery_id(connection: sa.Connection, name: str) -> int:
    """Return the row of a gallery. Raises NotFound."""
    found = _gallery_id(connection, name)
    if found is None:
        raise _no_gallery(name)
    return found


def _best(found: list[Hit], k: int, min_score: float | None) -> list[Hit]:
    """Return the k best; scores within a tie are ordered by id, so that replicas agree."""
    found.sort(key=lambda one: (-round(one.score / TIE), one.external_id))
    return [one for one in found if min_score is None or one.score >= min_score][:k]


def _gallery_id(connection: sa.Connection, name: str) -> int | None:
    return connection.execute(sa.select(galleries.c.id).where(galleries.c.name == name)).scalar_one_or_none()


def _create(connection: sa.Connection, name: str, description: str) -> int:
    seqs = change_log.take(connection)
    # The change's number is the row's id: no gallery ever reuses the id of a deleted one.
    row = {"id": seqs[0], "name": name, "description": description, "created_at": time.time()}
    connection.execute(sa.insert(galleries), row)
    change_log.note(connection, seqs, "gallery.put", name)
    return seqs[0]


def _no_gallery(name: str) -> NotFound:
    return NotFound(f"There is no gallery {name!r}.")
