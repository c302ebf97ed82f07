"""Items of galleries: rows are the source of truth, images are stored before them, indexes follow."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.domain import exact_metadata
from app.errors import NotFound, PreconditionFailed
from app.stores.blobs import Blobs, OpenBlob, collect_garbage_later, stored_images
from app.stores.filters import Filter, filter_condition
from app.stores.index.follower import Indexes
from app.stores.records.galleries import gallery_id
from app.stores.records.idempotency import note_done, require_undone
from app.stores.sql import change_log, metadata
from app.stores.sql.checksums import sealed
from app.stores.sql.database import Database, failpoint
from app.stores.sql.tables import IS_LIVE, VectorDtype, batches, item_vectors, items

PAGE_BYTES, PAGE_ROWS = 2 << 20, 64  # of metadata on a page; rows read at once
T = TypeVar("T")

Change = Callable[[Mapping[str, object]], Mapping[str, object]]
_Live = sa.Row[int, str, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One stored image: `id` is the caller's, `sha256` names its blob, `seq` its last write."""

    id: str
    sha256: str
    media_type: str
    width: int
    height: int
    metadata: Mapping[str, object]
    caption: str | None
    created_at: float
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewItem:
    """An item to write: the image's bytes, and `vector` [D] float32, unit slices (`VectorLayout`)."""

    id: str
    data: bytes
    media_type: str
    width: int
    height: int
    metadata: Mapping[str, object]
    caption: str | None
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The result of a write: the last `seq`, the items as written, and whether each replaced one."""

    seq: int
    items: Sequence[Item]
    replaced: Sequence[bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """The result of a bulk delete; `missing` are ids that did not exist."""

    seq: int
    count: int
    missing: Sequence[str]


class Items:
    """All items of one service; every method blocks, call them through `Database.run`.

    Args:
        indexes: they follow what is written here.
        fingerprint: of the bundle that made the vectors.
        dtype: how vectors are stored.
    """

    def __init__(
        self, database: Database, blobs: Blobs, indexes: Indexes, *, fingerprint: str, dtype: VectorDtype = "fp32"
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._indexes = indexes
        self._fingerprint = fingerprint
        self._dtype = dtype

    def upsert(
        self,
        name: str,
        new: Sequence[NewItem],
        *,
        wait: bool = True,
        if_match: Sequence[int] | None = None,
        token: str | None = None,
    ) -> Written:
        """Write items of distinct ids, replacing existing ones: images, then one transaction, then the index.

        Args:
            wait: until they are searchable in this process, not only durable.
            if_match: every item must exist at one of these `seq`.
            token: of the request's idempotency key.

        Raises:
            NotFound: there is no such gallery.
            ResponseLost: the token's write was done before.
            FingerprintMismatch: another bundle's vectors are active.
            PreconditionFailed: `if_match` does not hold.
            DiskFull: nothing was written.
        """
        failpoint("blobs.before")
        with stored_images(self._database, self._blobs, (item.data for item in new)) as digests:
            failpoint("rows.before")
            with self._database.write() as connection:
                require_undone(connection, token)
                metadata.require_fingerprint(connection, self._fingerprint)
                key = gallery_id(connection, name)
                # Put again inside the transaction: another process may have collected them since.
                for item in new:
                    self._blobs.put(item.data, was_just_put=True)
                old = {row.external_id: row for row in self._candidates(connection, key, [one.id for one in new], None)}
                if if_match is not None and any(one.id not in old or old[one.id].seq not in if_match for one in new):
                    raise PreconditionFailed("The item is at another version.")
                written = self._write_rows(connection, key, name, new=new, digests=digests, old=old)
                note_done(connection, token, written[-1].seq)
                failpoint("rows.written")
        self._after_commit({row.sha256 for row in old.values()} - set(digests), wait=wait)
        return Written(seq=written[-1].seq, items=written, replaced=[item.id in old for item in new])

    def change(
        self, name: str, item_id: str, change: Change | None, *, if_match: Sequence[int] | None = None
    ) -> tuple[int, Item]:
        """Change an item's metadata only; returns the write's `seq` and the item.

        Args:
            change: a function from the present metadata to the next, called in the transaction; None changes nothing.
            if_match: the item's `seq` must be one of these.

        Raises:
            NotFound: no such gallery or item.
            PreconditionFailed: the item is at another `seq`.
            Whatever `change` raises; nothing was written then.
        """
        with self._database.write() as connection:
            row = _required(connection, name, item_id, if_match)
            seq = change_log.append(connection, "item.patch", name, row.id)
            values: dict[str, object] = {"seq": seq}  # `added_seq` stays: the vector did not change
            if change is not None:
                values["metadata"] = exact_metadata(change(row.metadata))
            updated = sa.update(items).where(items.c.id == row.id).values(values).returning(items)
            item = _item(connection.execute(updated).one())
            failpoint("rows.written")
        failpoint("rows.committed")
        return seq, item

    def remove(self, name: str, item_id: str, *, wait: bool = True, if_match: Sequence[int] | None = None) -> int:
        """Delete one item. Returns the write's `seq`. Raises as `change`."""
        with self._database.write() as connection:
            row = _required(connection, name, item_id, if_match)
            seq = change_log.append(connection, "item.delete", name, row.id)
            connection.execute(sa.update(items).where(items.c.id == row.id).values(deleted_seq=seq))
        self._after_commit({row.sha256}, wait=wait)
        return seq

    def remove_many(
        self,
        name: str,
        *,
        ids: Sequence[str] | None = None,
        where: Filter | None = None,
        wait: bool = True,
        token: str | None = None,
    ) -> Removed:
        """Delete the items of `ids`, or all whose metadata passes `where`, in one transaction under one `seq`.

        Raises:
            NotFound: there is no such gallery; missing ids are reported in the result.
            ResponseLost: the token's write was done before.
        """
        with self._database.write() as connection:
            require_undone(connection, token)
            key = gallery_id(connection, name)
            found = {row.id: row for row in self._candidates(connection, key, ids, where)}
            seq = change_log.head(connection)  # reported if nothing is deleted
            if found:
                seq = change_log.append(connection, "items.delete", name)
                for part in batches(found):
                    connection.execute(sa.update(items).where(items.c.id.in_(part)).values(deleted_seq=seq))
            note_done(connection, token, seq)
        self._after_commit({row.sha256 for row in found.values()}, wait=wait)
        removed = {row.external_id for row in found.values()}
        return Removed(seq=seq, count=len(found), missing=[one for one in ids or () if one not in removed])

    def item(self, name: str, item_id: str) -> Item:
        """Return one live item. Raises NotFound for the gallery or the item."""
        with self._database.read() as connection:
            return _item(_required(connection, name, item_id, None))

    def page(
        self, name: str, *, after: str | None, limit: int, where: Filter | None = None
    ) -> tuple[Sequence[Item], bool]:
        """Return a page of live items by id, those that follow `after`, and whether more follow.

        It ends before `limit` items where their metadata holds `PAGE_BYTES`. Raises NotFound.
        """
        found: list[Item] = []
        n_bytes = 0
        with self._database.read() as connection:
            query = _live(gallery_id(connection, name))
            if where is not None:
                query = query.where(filter_condition(where, items.c.metadata, connection.dialect.name))
            if after is not None:
                query = query.where(items.c.external_id > after)
            query = query.add_columns(sa.func.length(sa.cast(items.c.metadata, sa.Text)).label("n_bytes"))
            rows = connection.execution_options(yield_per=PAGE_ROWS).execute(
                query.order_by(items.c.external_id).limit(limit + 1)
            )
            for row in rows:
                if len(found) == limit or n_bytes >= PAGE_BYTES:
                    rows.close()
                    return found, True
                found.append(_item(row))
                n_bytes += row.n_bytes
        return found, False

    def image(self, name: str, item_id: str) -> tuple[Item, bytes]:
        """Return one item and its image's bytes. Raises NotFound."""
        return self._with_image(name, item_id, self._blobs.get)

    def open_image(self, name: str, item_id: str) -> tuple[Item, OpenBlob]:
        """Return one item and its image, which the caller closes. Raises NotFound."""
        return self._with_image(name, item_id, self._blobs.open)

    def _with_image(self, name: str, item_id: str, read: Callable[[str], T]) -> tuple[Item, T]:
        item = self.item(name, item_id)
        while True:
            try:
                return item, read(item.sha256)
            except NotFound:
                # Replaced and collected since the row was read: read the row again, it names another image now.
                before, item = item, self.item(name, item_id)
                if item.sha256 == before.sha256:
                    raise

    def _after_commit(self, unused: set[str], *, wait: bool) -> None:
        failpoint("rows.committed")
        self._indexes.follow_write(wait=wait)
        if wait:
            failpoint("index.applied")
        collect_garbage_later(self._database, self._blobs, unused)

    def _candidates(
        self, connection: sa.Connection, key: int, ids: Sequence[str] | None, where: Filter | None
    ) -> Iterator[_Live]:
        live = _live(key).with_only_columns(items.c.id, items.c.external_id, items.c.sha256, items.c.seq)
        if ids is None and where is not None:
            passing = filter_condition(where, items.c.metadata, connection.dialect.name)
            yield from connection.execute(live.where(passing))
        for part in batches(ids or ()):
            yield from connection.execute(live.where(items.c.external_id.in_(part)))

    def _write_rows(
        self,
        connection: sa.Connection,
        key: int,
        name: str,
        *,
        new: Sequence[NewItem],
        digests: Sequence[str],
        old: Mapping[str, _Live],
    ) -> Sequence[Item]:
        seqs = change_log.take(connection, len(new))
        # A replaced row dies at the seq of its successor.
        by_id = {item.id: seq for item, seq in zip(new, seqs, strict=True)}
        for external_id, row in old.items():
            replaced = sa.update(items).where(items.c.id == row.id)
            connection.execute(replaced.values(deleted_seq=by_id[external_id]))
        now = time.time()
        rows = [
            {
                "gallery_id": key,
                "external_id": item.id,
                "sha256": sha256,
                "media_type": item.media_type,
                "width": item.width,
                "height": item.height,
                "metadata": exact_metadata(item.metadata),
                "caption": item.caption,
                "created_at": now,
                "seq": seq,
                "added_seq": seq,
            }
            for item, sha256, seq in zip(new, digests, seqs, strict=True)
        ]
        # In the order of `rows`: the ids are matched with vectors below.
        inserted = sa.insert(items).returning(items, sort_by_parameter_order=True)
        stored = connection.execute(inserted, rows).all()
        vectors = [
            {
                "item_id": row.id,
                "fingerprint": self._fingerprint,
                "dtype": self._dtype,
                **sealed(item.id, item.vector, self._dtype),
            }
            for row, item in zip(stored, new, strict=True)
        ]
        connection.execute(sa.insert(item_vectors), vectors)
        change_log.note(connection, seqs, "item.put", name, [row.id for row in stored])
        return [_item(row) for row in stored]


def _live(key: int) -> sa.Select[*tuple[object, ...]]:
    return sa.select(items).where(items.c.gallery_id == key, IS_LIVE)


def _required(
    connection: sa.Connection, name: str, item_id: str, if_match: Sequence[int] | None
) -> sa.Row[*tuple[object, ...]]:
    live = _live(gallery_id(connection, name))
    row = connection.execute(live.where(items.c.external_id == item_id)).one_or_none()
    if row is None:
        raise NotFound(f"There is no item {item_id!r} in gallery {name!r}.")
    if if_match is not None and row.seq not in if_match:
        raise PreconditionFailed(f"The item is at version {row.seq}.")
    return row


def _item(row: sa.Row[*tuple[object, ...]]) -> Item:
    return Item(
        id=row.external_id,
        sha256=row.sha256,
        media_type=row.media_type,
        width=row.width,
        height=row.height,
        metadata=row.metadata,
        caption=row.caption,
        created_at=row.created_at,
        seq=row.seq,
    )
