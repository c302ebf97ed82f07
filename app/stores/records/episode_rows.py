"""What the rows of an episode hold: its ways and their examples."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.domain import label_key
from app.errors import NotFound
from app.stores.blobs import OpenBlob
from app.stores.sql import metadata
from app.stores.sql.checksums import verified
from app.stores.sql.tables import episodes, support_vectors, supports

_NO_VECTOR = np.empty(0, np.float32)
_Row = sa.Row[*tuple[object, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """One stored example; `vector` is [J] float32, empty if another bundle made it or it is damaged."""

    id: str
    sha256: str
    media_type: str
    vector: NDArray[np.float32]
    is_damaged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """The image of an example as it was sent; the caller closes `blob`."""

    sha256: str
    media_type: str
    blob: OpenBlob


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One class and its `shots` examples; `support` is empty in lists of episodes."""

    label: str
    shots: int
    support: Sequence[Support] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A stored episode; `fingerprint` is the active bundle's, `expires_at` in seconds since 1970, None for never."""

    id: str
    name: str | None
    version: int
    method: str
    fingerprint: str
    expires_at: float | None
    ways: Sequence[Way]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeChange:
    """New values of `name` and `method`, and labels from old to new ones; what is absent stays."""

    fields: Mapping[str, str | None]
    labels: Mapping[str, str]


def read_episode(connection: sa.Connection, episode_id: str, fingerprint: str) -> Episode:
    """Return an episode that has not expired, with its examples. Raises NotFound."""
    query = sa.select(episodes).where(episodes.c.id == episode_id, unexpired())
    row = connection.execute(query).one_or_none()
    if row is None:
        raise no_episode(episode_id)
    own = sa.and_(support_vectors.c.support_id == supports.c.id, support_vectors.c.fingerprint == fingerprint)
    joined = (
        sa.select(supports, support_vectors.c.vector, support_vectors.c.checksum)
        .select_from(supports.outerjoin(support_vectors, own))
        .where(supports.c.episode_id == episode_id)
        .order_by(supports.c.way, supports.c.position)
    )
    by_way: dict[int, list[Support]] = {}
    for one in connection.execute(joined):
        stored = _NO_VECTOR if one.vector is None else verified(one.id, one.vector, one.checksum)
        by_way.setdefault(one.way, []).append(
            Support(
                id=one.id,
                sha256=one.sha256,
                media_type=one.media_type,
                vector=_NO_VECTOR if stored is None else stored,
                is_damaged=stored is None,
            )
        )
    ways = [
        Way(label=label, shots=len(by_way.get(at, ())), support=by_way.get(at, []))
        for at, label in enumerate(row.labels)
    ]
    return episode_of(row, ways, metadata.read(connection, metadata.FINGERPRINT) or fingerprint)


def episode_of(row: _Row, ways: Sequence[Way], active: str) -> Episode:
    """Return the episode of a row, its ways and the active bundle's fingerprint."""
    return Episode(
        id=row.id,
        name=row.name,
        version=row.version,
        method=row.method,
        fingerprint=active,
        expires_at=row.expires_at,
        ways=ways,
    )


def unexpired() -> sa.ColumnElement[bool]:
    """Return the condition for episodes that have not expired."""
    return sa.or_(episodes.c.expires_at.is_(None), episodes.c.expires_at > time.time())


def stored_label(episode: Episode, label: str) -> str:
    """Return a label as the episode spells it; the label itself where the episode does not have it."""
    same = [way.label for way in episode.ways if label_key(way.label) == label_key(label)]
    # Episodes of earlier releases may have two spellings.
    return label if label in same or not same else same[0]


def way_number(episode: Episode, label: str) -> int:
    """Return which way of an episode has a label. Raises NotFound."""
    labels, label = [way.label for way in episode.ways], stored_label(episode, label)
    if label not in labels:
        raise NotFound(f"There is no way {label!r} in this episode.")
    return labels.index(label)


def no_episode(episode_id: str) -> NotFound:
    """Return the error for an episode that does not exist."""
    return NotFound(f"There is no episode {episode_id!r}.")


def no_support(support_id: str) -> NotFound:
    """Return the error for an example that its episode does not have."""
    return NotFound(f"There is no support {support_id!r} in this episode.")
