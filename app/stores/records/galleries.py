"""Galleries: their rows, and the search over their items."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.errors import Conflict, NotFound
from app.stores.blobs import Blobs, collect_garbage_later
from app.stores.filters.sql import FilteredRows
from app.stores.filters.tree import Filter, matches
from app.stores.index.delta import TIE, IndexState
from app.stores.index.follower import Indexes
from app.stores.sql import change_log, metadata
from app.stores.sql.database import Database
from app.stores.sql.failpoints import failpoint
from app.stores.sql.tables import galleries, item_vectors, items, unpack

DEFAULT_GALLERY = "default"
ATTEMPTS = 4
MAX_SPARE = 1000
IDS_AT_ONCE = 500
FEW_NUMBERS = 1 << 20
"""Of all vectors of a gallery that is searched in a fifth of a millisecond: a thread's turn would take longer."""
FEW_FOUND = 100
"""Results that are put together as soon."""
KEPT_ROWS = 2048
"""Most rows kept in memory; the largest there may be take 32 MiB (16 KiB of metadata each)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """A gallery and how many live items it holds."""

    name: str
    description: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One search result: the item's row and external id, its cosine similarity and its metadata."""

    item_id: int
    external_id: str
    score: float
    metadata: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ItemRow:
    """What a search tells of an item besides its score; never write into it."""

    external_id: str
    metadata: Mapping[str, object]


class CachedRows:
    """Rows as of one `Database.written`; used by several threads.

    Args:
        max_rows: once there are more, none is left.
    """

    def __init__(self, *, max_rows: int) -> None:
        self._max_rows = max_rows
        self._lock = threading.Lock()
        self._rows: dict[int, ItemRow] = {}
        self._read_at = -1

    def get(self, ids: Sequence[int], written: int | None) -> dict[int, ItemRow] | None:
        """The rows of all of them, where they were read and nothing was written since; else None.

        Args:
            written: `Database.written` now.
        """
        with self._lock:
            if written != self._read_at:
                return None
            found = {item_id: self._rows[item_id] for item_id in ids if item_id in self._rows}
        return found if len(found) == len(ids) else None

    def keep(self, rows: Mapping[int, ItemRow], read_at: int | None) -> None:
        """Keep rows.

        Args:
            read_at: `Database.written` before they were read; None keeps nothing.
        """
        with self._lock:
            if read_at is None or read_at < self._read_at:
                return
            if read_at != self._read_at or len(self._rows) + len(rows) > self._max_rows:
                self._rows, self._read_at = {}, read_at
            self._rows.update(rows)


class Galleries:
    """All galleries of one service; every method blocks, call them through `Database.run`.

    Args:
        database: the truth.
        blobs: where pictures lie.
        indexes: follow what is written here.
        fingerprint: of the bundle.
    """

    def __init__(self, database: Database, blobs: Blobs, indexes: Indexes, *, fingerprint: str) -> None:
        self._database = database
        self._blobs = blobs
        self._indexes = indexes
        self._fingerprint = fingerprint
        self._filtered = FilteredRows(database)
        self._kept = CachedRows(max_rows=KEPT_ROWS)
        # Made once: to make them takes as long as to run them.
        live = sa.and_(items.c.id.in_(sa.bindparam("ids", expanding=True)), items.c.deleted_seq.is_(None))
        own = sa.and_(item_vectors.c.item_id == items.c.id, item_vectors.c.fingerprint == fingerprint)
        columns = (items.c.id, items.c.external_id, items.c.metadata)
        self._rows = sa.select(*columns).where(live)
        self._rows_with_vectors = (
            sa.select(*columns, item_vectors.c.dtype, item_vectors.c.vector)
            .select_from(items.join(item_vectors, own))
            .where(live)
        )

    def load(self) -> None:
        """Claim an empty database for the bundle, make sure that `default` exists, bring up every index."""
        with self._database.write() as connection:
            if metadata.read(connection, metadata.FINGERPRINT) is None:
                metadata.write(connection, metadata.FINGERPRINT, self._fingerprint)
            if _gallery_id(connection, DEFAULT_GALLERY) is None:
                _create(connection, DEFAULT_GALLERY, "")
        self._indexes.load()

    def put(self, name: str, description: str | None) -> tuple[int, bool]:
        """Create a gallery, or change an existing one's description (None keeps it).

        Returns:
            The write's `seq`, and whether it was created.
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
        self._indexes.catch_up()
        return seq, known is None

    def get(self, name: str) -> Gallery:
        """One gallery. Raises NotFound."""
        found = self._list(galleries.c.name == name)
        if not found:
            raise _no_gallery(name)
        return found[0]

    def require(self, name: str) -> None:
        """Raises NotFound where there is no such gallery; nothing is counted."""
        with self._database.read() as connection:
            gallery_id(connection, name)

    def all(self) -> Sequence[Gallery]:
        """Every gallery, by name."""
        return self._list(sa.true())

    def index_state(self, name: str) -> IndexState:
        """The index behind a gallery, and how far in the log this process is. Raises NotFound."""
        self._indexes.catch_up()
        return self._indexes.state(name)

    def vector_counts(self) -> Mapping[str, int]:
        """Searchable vectors of every gallery, read from memory; safe on the event loop."""
        return self._indexes.counts()

    def head_seq(self) -> int:
        """The last `seq` of the change log."""
        with self._database.read() as connection:
            return change_log.head(connection)

    def delete(self, name: str, *, confirmed: bool) -> int:
        """Delete a gallery and all in it.

        Returns:
            The write's `seq`.

        Raises:
            NotFound: there is none.
            Conflict: it is `default`, or holds items and is not confirmed.
        """
        if name == DEFAULT_GALLERY:
            raise Conflict("The gallery 'default' cannot be deleted.")
        with self._database.write() as connection:
            key = gallery_id(connection, name)
            live = sa.select(sa.func.count()).where(items.c.gallery_id == key, items.c.deleted_seq.is_(None))
            count = connection.execute(live).scalar_one()
            if count and not confirmed:
                raise Conflict(f"The gallery holds {count} items: repeat with ?confirm={name}.")
            named = sa.select(items.c.sha256).where(items.c.gallery_id == key, items.c.deleted_seq.is_(None))
            blobs = set(connection.execute(named).scalars())
            connection.execute(sa.delete(items).where(items.c.gallery_id == key))
            connection.execute(sa.delete(galleries).where(galleries.c.id == key))
            seq = change_log.append(connection, "gallery.delete", name)
        failpoint("rows.committed")
        self._indexes.catch_up()
        collect_garbage_later(self._database, self._blobs, blobs)
        return seq

    def search(
        self,
        name: str,
        query: NDArray[np.float32],
        *,
        k: int,
        min_score: float | None,
        where: Filter | None = None,
    ) -> tuple[int, Sequence[Hit]]:
        """The k nearest items to `query` [D] float32, unit length, best first, equal scores by id.

        Args:
            where: only items whose metadata passes.

        Returns:
            A `seq` that the answer is not older than, and the results: all there are where fewer than k exist.

        Raises:
            NotFound: there is no such gallery.
            FingerprintMismatch: another bundle's vectors are the active ones.
        """
        wanted = k
        for _ in range(ATTEMPTS):
            seq = self._indexes.applied_seq
            allowed = None if where is None else self._matching(name, where)
            ids, scores, are_near = self._indexes.search(name, query, wanted, allowed)
            found = self._found(ids, scores, query if are_near else None)
            if where is not None:
                found = [one for one in found if matches(where, one.metadata)]
            if len(found) == len(ids):
                break
            # Rows went away, or changed, since they were chosen: follow, and look again with as many to spare.
            wanted = min(k + 2 * (len(ids) - len(found)), MAX_SPARE + k)
            self._indexes.catch_up()
        return seq, _best(found, k, min_score)

    def search_cached(
        self, name: str, query: NDArray[np.float32], *, k: int, min_score: float | None
    ) -> tuple[int, Sequence[Hit]] | None:
        """What `search` would answer, where that is soon told and asks the database nothing; else None.

        Does not block: a few vectors, of which all that are near were found since the last write. Raises as `search`.
        """
        seq, written = self._indexes.applied_seq, self._database.written
        if written is None or k > FEW_FOUND or not self._indexes.is_small(name, FEW_NUMBERS):
            return None
        ids, scores, are_near = self._indexes.search(name, query, k, None)
        by_id = dict(zip(ids.tolist(), scores.tolist(), strict=True))
        rows = None if are_near else self._kept.get(list(by_id), written)
        if rows is None:
            return None
        return seq, _best([_with_score(item_id, row, by_id[item_id]) for item_id, row in rows.items()], k, min_score)

    def vectors(self, name: str, item_ids: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """Vectors [D] float32 of items by id.

        Raises:
            NotFound: there is no such gallery, or one of the items is not in it.
        """
        self._indexes.require_active()
        found: dict[str, NDArray[np.float32]] = {}
        with self._database.read() as connection:
            key = gallery_id(connection, name)
            query = (
                sa.select(items.c.external_id, item_vectors.c.dtype, item_vectors.c.vector)
                .join(item_vectors, item_vectors.c.item_id == items.c.id)
                .where(items.c.gallery_id == key, items.c.deleted_seq.is_(None))
                .where(item_vectors.c.fingerprint == self._fingerprint, items.c.external_id.in_(item_ids))
            )
            for row in connection.execute(query):
                found[row.external_id] = unpack(row.vector, row.dtype)
        for item_id in item_ids:
            if item_id not in found:
                raise NotFound(f"There is no item {item_id!r} in gallery {name!r}.")
        return found

    def _matching(self, name: str, where: Filter) -> NDArray[np.int64]:
        """Rows of the live items that pass, ascending, see `FilteredRows`."""
        with self._database.read() as connection:
            key = gallery_id(connection, name)
        return self._filtered.passing(key, where)

    def _found(
        self, ids: NDArray[np.int64], scores: NDArray[np.float32], query: NDArray[np.float32] | None
    ) -> list[Hit]:
        """Candidates that are still there; scored again with `query` where it is given."""
        by_id = dict(zip(ids.tolist(), scores.tolist(), strict=True))
        found: list[Hit] = []
        read: dict[int, ItemRow] = {}
        # Before the snapshot: what is written meanwhile is asked for again.
        read_at = self._database.written
        rows = self._rows if query is None else self._rows_with_vectors
        wanted = list(by_id)
        with self._database.read() as connection:
            for start in range(0, len(wanted), IDS_AT_ONCE):
                for row in connection.execute(rows, {"ids": wanted[start : start + IDS_AT_ONCE]}):
                    score = by_id[row.id] if query is None else float(unpack(row.vector, row.dtype) @ query)
                    read[row.id] = ItemRow(row.external_id, row.metadata)
                    found.append(_with_score(row.id, read[row.id], score))
        self._kept.keep(read, read_at)
        return found

    def _list(self, condition: sa.ColumnElement[bool]) -> Sequence[Gallery]:
        live = sa.and_(items.c.gallery_id == galleries.c.id, items.c.deleted_seq.is_(None))
        query = (
            sa.select(galleries.c.name, galleries.c.description, sa.func.count(items.c.id).label("live"))
            .select_from(galleries.outerjoin(items, live))
            .where(condition)
            .group_by(galleries.c.id)
            .order_by(galleries.c.name)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [Gallery(name=row.name, description=row.description, count=row.live) for row in rows]


def _with_score(item_id: int, row: ItemRow, score: float) -> Hit:
    score = min(1.0, max(-1.0, score))
    return Hit(item_id=item_id, external_id=row.external_id, score=score, metadata=row.metadata)


def _best(found: list[Hit], k: int, min_score: float | None) -> list[Hit]:
    """The k best, equal scores by id."""
    found.sort(key=lambda one: (-round(one.score / TIE), one.external_id))
    return [one for one in found if min_score is None or one.score >= min_score][:k]


def gallery_id(connection: sa.Connection, name: str) -> int:
    """The row of a gallery. Raises NotFound."""
    found = _gallery_id(connection, name)
    if found is None:
        raise _no_gallery(name)
    return found


def _gallery_id(connection: sa.Connection, name: str) -> int | None:
    return connection.execute(sa.select(galleries.c.id).where(galleries.c.name == name)).scalar_one_or_none()


def _create(connection: sa.Connection, name: str, description: str) -> int:
    seqs = change_log.take(connection)
    # The change's number is the row's, so that no gallery ever takes the place of a deleted one.
    row = {"id": seqs[0], "name": name, "description": description, "created_at": time.time()}
    connection.execute(sa.insert(galleries), row)
    change_log.note(connection, seqs, "gallery.put", name)
    return seqs[0]


def _no_gallery(name: str) -> NotFound:
    return NotFound(f"There is no gallery {name!r}.")
