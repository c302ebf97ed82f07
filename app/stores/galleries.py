"""Galleries and their items: SQL rows are the truth, one vector index a gallery follows them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.errors import Conflict, FingerprintMismatch, NotFound
from app.stores import change_log
from app.stores.blobs import Blobs
from app.stores.database import Database
from app.stores.gallery_records import Found, Gallery, Item, NewItem, item_of
from app.stores.tables import galleries, items
from app.stores.unreferenced import delete_unreferenced
from app.stores.vector_index import Entry, IndexState, VectorIndex

DEFAULT_GALLERY = "default"


class Galleries:
    """All galleries of one service; every method blocks, call them through `Database.run`.

    Args:
        database: the truth.
        blobs: where pictures lie.
        dimension: D of the bundle's vectors.
        fingerprint: of the bundle; items made by another are refused.
    """

    def __init__(self, database: Database, blobs: Blobs, *, dimension: int, fingerprint: str) -> None:
        self._database = database
        self._blobs = blobs
        self._dimension = dimension
        self._fingerprint = fingerprint
        self._indexes: dict[str, VectorIndex] = {}

    def load(self) -> None:
        """Make sure that `default` exists and build every index from SQL.

        Raises:
            FingerprintMismatch: a gallery holds vectors of another bundle.
        """
        with self._database.read() as connection:
            names = list(connection.execute(sa.select(galleries.c.name)).scalars())
        if DEFAULT_GALLERY not in names:
            self.put(DEFAULT_GALLERY, "")
            names.append(DEFAULT_GALLERY)
        for name in names:
            self._indexes[name] = self._rebuilt(name)

    def put(self, name: str, description: str | None) -> tuple[int, bool]:
        """Create a gallery, or change an existing one's description (None keeps it).

        Returns:
            The write's `seq`, and whether it was created.
        """
        with self._database.write_lock:
            with self._database.write() as connection:
                known = _gallery_id(connection, name)
                if known is None:
                    row = {"name": name, "description": description or "", "created_at": time.time()}
                    connection.execute(sa.insert(galleries), row)
                elif description is not None:
                    connection.execute(
                        sa.update(galleries).where(galleries.c.id == known).values(description=description)
                    )
                seq = change_log.append(connection, "gallery.put", name)
            self._indexes.setdefault(name, VectorIndex(self._dimension))
        return seq, known is None

    def get(self, name: str) -> Gallery:
        """One gallery. Raises NotFound."""
        found = self._list(galleries.c.name == name)
        if not found:
            raise NotFound(f"There is no gallery {name!r}.")
        return found[0]

    def all(self) -> Sequence[Gallery]:
        """Every gallery, by name."""
        return self._list(sa.true())

    def index_state(self, name: str) -> IndexState:
        """The index behind a gallery and the whole log's position it is at. Raises NotFound."""
        # With the lock held no committed write waits to be applied, whatever it was about.
        with self._database.write_lock:
            return replace(self._index(name).state(), applied_seq=self.head_seq())

    def vector_counts(self) -> Mapping[str, int]:
        """Searchable vectors of every gallery, read from memory; safe on the event loop."""
        return {name: len(index) for name, index in self._indexes.copy().items()}

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
        with self._database.write_lock:
            gallery = self.get(name)
            if name == DEFAULT_GALLERY:
                raise Conflict("The gallery 'default' cannot be deleted.")
            if gallery.count and not confirmed:
                raise Conflict(f"The gallery holds {gallery.count} items: repeat with ?confirm={name}.")
            with self._database.write() as connection:
                key = _gallery_id(connection, name)
                blobs = set(connection.execute(sa.select(items.c.sha256).where(items.c.gallery_id == key)).scalars())
                connection.execute(sa.delete(items).where(items.c.gallery_id == key))
                connection.execute(sa.delete(galleries).where(galleries.c.id == key))
                seq = change_log.append(connection, "gallery.delete", name)
            self._indexes.pop(name, None)
            delete_unreferenced(self._database, self._blobs, blobs)
        return seq

    def upsert(self, name: str, new: Sequence[NewItem]) -> tuple[int, Sequence[bool]]:
        """Write items, replacing those of the same id: blobs, then one transaction, then the index.

        Returns:
            The last write's `seq`, and for each item whether it replaced one.

        Raises:
            NotFound: there is no such gallery.
            DiskFull: nothing was written.
        """
        with self._database.write_lock:
            index = self._index(name)
            digests: list[str] = []
            replaced: list[int | None] = []
            entries: list[Entry] = []
            old_blobs: set[str] = set()
            try:
                digests.extend(self._blobs.put(item.data) for item in new)
                with self._database.write() as connection:
                    key = _gallery_id(connection, name)
                    if key is None:
                        raise NotFound(f"There is no gallery {name!r}.")
                    seq = change_log.head(connection)
                    for item, sha256 in zip(new, digests, strict=True):
                        seq, old = self._replace(connection, key, name, item.id)
                        replaced.append(old[0] if old else None)
                        if old:
                            old_blobs.add(old[1])
                        row_id = self._insert(connection, key, item, sha256, seq)
                        entries.append(Entry(item_id=row_id, external_id=item.id, vector=item.vector))
            except BaseException:
                delete_unreferenced(self._database, self._blobs, set(digests))
                raise
            index.apply(entries, [row for row in replaced if row is not None], seq)
            delete_unreferenced(self._database, self._blobs, old_blobs)
        return seq, [row is not None for row in replaced]

    def set_fields(self, name: str, item_id: str, *, metadata: Mapping[str, object] | None) -> tuple[int, Item]:
        """Change an item's metadata only (None keeps it). Raises NotFound."""
        with self._database.write() as connection:
            key = self._key(connection, name)
            row = _live_row(connection, key, item_id)
            if row is None:
                raise NotFound(f"There is no item {item_id!r} in gallery {name!r}.")
            seq = change_log.append(connection, "item.patch", name, row.id)
            values: dict[str, object] = {"seq": seq}
            if metadata is not None:
                values["metadata"] = dict(metadata)
            connection.execute(sa.update(items).where(items.c.id == row.id).values(values))
        return seq, self.item(name, item_id)

    def remove(self, name: str, item_id: str) -> int:
        """Delete one item. Returns the write's `seq`. Raises NotFound."""
        with self._database.write_lock:
            index = self._index(name)
            with self._database.write() as connection:
                key = self._key(connection, name)
                row = _live_row(connection, key, item_id)
                if row is None:
                    raise NotFound(f"There is no item {item_id!r} in gallery {name!r}.")
                seq = change_log.append(connection, "item.delete", name, row.id)
                connection.execute(sa.update(items).where(items.c.id == row.id).values(deleted_seq=seq))
            index.apply([], [row.id], seq)
            delete_unreferenced(self._database, self._blobs, {row.sha256})
        return seq

    def item(self, name: str, item_id: str) -> Item:
        """One live item. Raises NotFound for the gallery or the item."""
        with self._database.read() as connection:
            row = _live_row(connection, self._key(connection, name), item_id)
        if row is None:
            raise NotFound(f"There is no item {item_id!r} in gallery {name!r}.")
        return item_of(row)

    def items(self, name: str, *, after: str | None, limit: int) -> Sequence[Item]:
        """A page of live items by id, those that follow `after`. Raises NotFound."""
        with self._database.read() as connection:
            key = self._key(connection, name)
            query = sa.select(items).where(items.c.gallery_id == key, items.c.deleted_seq.is_(None))
            if after is not None:
                query = query.where(items.c.external_id > after)
            rows = connection.execute(query.order_by(items.c.external_id).limit(limit)).all()
        return [item_of(row) for row in rows]

    def picture(self, name: str, item_id: str) -> tuple[Item, bytes]:
        """One item and its stored bytes. Raises NotFound."""
        item = self.item(name, item_id)
        return item, self._blobs.get(item.sha256)

    def search(
        self, name: str, query: NDArray[np.float32], *, k: int, min_score: float | None
    ) -> tuple[int, Sequence[Found]]:
        """The k nearest items to `query` [D] float32, unit length, best first.

        Returns:
            The `seq` the answer is of, and the results.

        Raises:
            NotFound: there is no such gallery.
        """
        seq, hits = self._index(name).search(query, k, min_score)
        metadata: dict[int, Mapping[str, object]] = {}
        with self._database.read() as connection:
            for start in range(0, len(hits), 500):
                wanted = [hit.item_id for hit in hits[start : start + 500]]
                rows = connection.execute(sa.select(items.c.id, items.c.metadata).where(items.c.id.in_(wanted)))
                metadata.update({row.id: row.metadata for row in rows})
        found = [Found(hit=h, metadata=metadata[h.item_id]) for h in hits if h.item_id in metadata]
        return seq, found

    def _index(self, name: str) -> VectorIndex:
        index = self._indexes.get(name)
        if index is None:
            raise NotFound(f"There is no gallery {name!r}.")
        return index

    def _rebuilt(self, name: str) -> VectorIndex:
        index = VectorIndex(self._dimension)
        with self._database.read() as connection:
            key = self._key(connection, name)
            columns = (items.c.id, items.c.external_id, items.c.vector, items.c.fingerprint)
            query = sa.select(*columns).where(items.c.gallery_id == key, items.c.deleted_seq.is_(None))
            entries = []
            for row in connection.execute(query.order_by(items.c.id)):
                if row.fingerprint != self._fingerprint:
                    raise FingerprintMismatch(f"The gallery {name!r} was embedded by another bundle.")
                vector = np.frombuffer(row.vector, np.float32)
                entries.append(Entry(item_id=row.id, external_id=row.external_id, vector=vector))
            index.load(entries, change_log.head(connection))
        return index

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

    def _key(self, connection: sa.Connection, name: str) -> int:
        key = _gallery_id(connection, name)
        if key is None:
            raise NotFound(f"There is no gallery {name!r}.")
        return key

    def _replace(
        self, connection: sa.Connection, key: int, name: str, item_id: str
    ) -> tuple[int, tuple[int, str] | None]:
        """Log one write and bury the live row it replaces: the `seq` and that row's id and blob."""
        row = _live_row(connection, key, item_id)
        seq = change_log.append(connection, "item.put", name, row.id if row else None)
        if row is None:
            return seq, None
        connection.execute(sa.update(items).where(items.c.id == row.id).values(deleted_seq=seq))
        return seq, (row.id, row.sha256)

    def _insert(self, connection: sa.Connection, key: int, item: NewItem, sha256: str, seq: int) -> int:
        row_id: int = connection.execute(
            sa.insert(items).returning(items.c.id),
            {
                "gallery_id": key,
                "external_id": item.id,
                "sha256": sha256,
                "media_type": item.media_type,
                "width": item.width,
                "height": item.height,
                "metadata": dict(item.metadata),
                "caption": item.caption,
                "vector": item.vector.astype(np.float32).tobytes(),
                "fingerprint": self._fingerprint,
                "created_at": time.time(),
                "seq": seq,
            },
        ).scalar_one()
        return row_id


def _gallery_id(connection: sa.Connection, name: str) -> int | None:
    return connection.execute(sa.select(galleries.c.id).where(galleries.c.name == name)).scalar_one_or_none()


def _live_row(connection: sa.Connection, key: int, item_id: str) -> sa.Row[tuple[object, ...]] | None:
    query = sa.select(items).where(
        items.c.gallery_id == key, items.c.external_id == item_id, items.c.deleted_seq.is_(None)
    )
    return connection.execute(query).one_or_none()
