"""Records of the gallery store: galleries, items as written and as read, search results."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """A gallery and how many live items it holds."""

    name: str
    description: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One stored picture: `id` is the caller's, `sha256` names its blob, `seq` its last write."""

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
    """An item to write: the picture as stored bytes, and `vector` [D] float32, unit length."""

    id: str
    data: bytes
    media_type: str
    width: int
    height: int
    metadata: Mapping[str, object]
    caption: str | None
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One found vector: its item's row, external id and cosine similarity."""

    item_id: int
    external_id: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One search result with its item's metadata."""

    hit: Hit
    metadata: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """One item with its vector [D] float32."""

    id: str
    metadata: Mapping[str, object]
    vector: NDArray[np.float32]


def item_of(row: sa.Row[*tuple[object, ...]]) -> Item:
    """An item from its row of the `items` table."""
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
