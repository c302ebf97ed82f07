"""The stores of one process over a database, wired as the service wires them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.stores.blobs import Blobs
from app.stores.index.base import IndexOptions
from app.stores.index.follower import Indexes
from app.stores.index.snapshots import IndexSnapshots
from app.stores.records.exports import Exports
from app.stores.records.galleries import Galleries
from app.stores.records.items import Items, NewItem
from app.stores.sql.database import Database

D = 8
FINGERPRINT = "f1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What one process works with."""

    indexes: Indexes
    galleries: Galleries
    items: Items
    exports: Exports

    def found(self, query: NDArray[np.float32], name: str = "default", k: int = 1000) -> list[str]:
        """Ids of a search, best first."""
        return [one.external_id for one in self.galleries.search(name, query, k=k, min_score=None)[1]]


def open_stores(
    database: Database,
    blobs: Blobs,
    *,
    fingerprint: str = FINGERPRINT,
    snapshots: Path | None = None,
    options: IndexOptions | None = None,
) -> Stores:
    indexes = Indexes(
        database,
        dimension=D,
        fingerprint=fingerprint,
        options=options or IndexOptions(),
        snapshots=None if snapshots is None else IndexSnapshots(snapshots),
    )
    galleries = Galleries(database, blobs, indexes, fingerprint=fingerprint)
    galleries.load()
    items = Items(database, blobs, indexes, fingerprint=fingerprint)
    exports = Exports(database, blobs, items, fingerprint=fingerprint)
    return Stores(indexes=indexes, galleries=galleries, items=items, exports=exports)


def unit(*values: float) -> NDArray[np.float32]:
    vector = np.zeros(D, np.float32)
    vector[: len(values)] = values
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def new_item(
    item_id: str, vector: NDArray[np.float32], data: bytes = b"", metadata: dict[str, object] | None = None
) -> NewItem:
    return NewItem(
        id=item_id,
        data=data or item_id.encode(),
        media_type="image/png",
        width=3,
        height=2,
        metadata={"name": item_id} if metadata is None else metadata,
        caption=None,
        vector=vector,
    )
