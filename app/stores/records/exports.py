"""Exports of galleries: all items of one moment with their vectors, in parts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.errors import EngineUnavailable, NotFound
from app.stores.blobs import Blobs
from app.stores.records.galleries import gallery_id
from app.stores.records.items import Items
from app.stores.sql import change_log, metadata
from app.stores.sql.checksums import sound_vector
from app.stores.sql.database import Database
from app.stores.sql.tables import IS_LIVE, galleries, items, select_vectors

EXPORTED_AT_ONCE = 16  # up to half a megabyte of text: other readers wait for a part, and slow clients hold one each


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """One item with its vector [D] float32; `sha256` names its blob."""

    id: str
    metadata: Mapping[str, object]
    caption: str | None
    media_type: str
    sha256: str
    vector: NDArray[np.float32]


class Exports:
    """Exports of one service's galleries; every method blocks, call them through `Database.run`.

    Args:
        items: for images that were replaced during an export.
        fingerprint: of the bundle that made the vectors.
    """

    def __init__(self, database: Database, blobs: Blobs, items: Items, *, fingerprint: str) -> None:
        self._database = database
        self._blobs = blobs
        self._items = items
        self._fingerprint = fingerprint

    def export(self, name: str) -> tuple[int, Iterator[Sequence[Exported]]]:
        """Return all items with their vectors, in parts.

        Returns:
            The `seq` they belong to (later writes are not seen, except changed metadata), and the parts. Reading the
            parts raises EngineUnavailable if the gallery is vacuumed or deleted meanwhile.

        Raises:
            NotFound: there is no such gallery.
            FingerprintMismatch: another bundle's vectors are active.
        """
        with self._database.read() as connection:
            metadata.require_fingerprint(connection, self._fingerprint)
            key, seq = gallery_id(connection, name), change_log.head(connection)
        return seq, self._exported(key, seq)

    def exported_image(self, name: str, one: Exported) -> tuple[Exported, bytes] | None:
        """Return an exported item and its image's bytes; as it is now if it was replaced, None if it was deleted."""
        try:
            return one, self._blobs.get(one.sha256)
        except NotFound:
            pass
        try:
            item, data = self._items.image(name, one.id)
        except NotFound:
            return None
        now = replace(one, metadata=item.metadata, caption=item.caption, media_type=item.media_type, sha256=item.sha256)
        return now, data

    def _exported(self, key: int, seq: int) -> Iterator[Sequence[Exported]]:
        was_live = sa.or_(IS_LIVE, items.c.deleted_seq > seq)
        query = (
            select_vectors(self._fingerprint, items.c.metadata, items.c.caption, items.c.media_type, items.c.sha256)
            .where(items.c.gallery_id == key, items.c.added_seq <= seq, was_live)
            .order_by(items.c.id)
            .limit(EXPORTED_AT_ONCE)
        )
        gallery = sa.select(galleries.c.id).where(galleries.c.id == key)
        last = 0
        while True:
            # One transaction per part: a slow client must not hold one open.
            with self._database.read() as connection:
                if change_log.vacuumed(connection) > seq or connection.execute(gallery).first() is None:
                    raise EngineUnavailable("The gallery was vacuumed or deleted during the export.")
                rows = connection.execute(query.where(items.c.id > last)).all()
            if not rows:
                return
            last = rows[-1].id
            yield [
                Exported(
                    id=row.external_id,
                    metadata=row.metadata,
                    caption=row.caption,
                    media_type=row.media_type,
                    sha256=row.sha256,
                    vector=sound_vector(row),
                )
                for row in rows
            ]
