"""Few-shot episodes: ways, their support pictures and features, persisted."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.errors import NotFound
from app.stores import change_log
from app.stores.blobs import Blobs
from app.stores.database import Database
from app.stores.tables import episodes, supports
from app.stores.unreferenced import delete_unreferenced


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSupport:
    """One labelled example to store; `vector` is [D] float32, unit length."""

    data: bytes
    media_type: str
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWay:
    """One class of a new episode."""

    label: str
    support: Sequence[NewSupport]


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """One stored example; `vector` is [D] float32, unit length."""

    id: str
    sha256: str
    media_type: str
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One class and its examples."""

    label: str
    support: Sequence[Support]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A stored episode; `expires_at` in seconds since 1970, None for never."""

    id: str
    name: str | None
    version: int
    method: str
    fingerprint: str
    expires_at: float | None
    ways: Sequence[Way]


class SupportSets:
    """All episodes; every method blocks, call them through `Database.run`."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    def create(
        self,
        ways: Sequence[NewWay],
        *,
        name: str | None,
        method: str,
        fingerprint: str,
        ttl_s: float | None,
    ) -> tuple[int, Episode]:
        """Store an episode: pictures first, then its rows in one transaction.

        Returns:
            The write's `seq`, and the episode.

        Raises:
            DiskFull: nothing was stored.
        """
        episode_id = f"ep_{secrets.token_hex(12)}"
        now = time.time()
        with self._database.write_lock:
            self._drop_expired(now)
            digests: list[str] = []
            try:
                digests.extend(self._blobs.put(s.data) for way in ways for s in way.support)
                with self._database.write() as connection:
                    row = {
                        "id": episode_id,
                        "name": name,
                        "version": 1,
                        "method": method,
                        "fingerprint": fingerprint,
                        "labels": [way.label for way in ways],
                        "created_at": now,
                        "expires_at": None if ttl_s is None else now + ttl_s,
                    }
                    connection.execute(sa.insert(episodes), row)
                    connection.execute(sa.insert(supports), _support_rows(episode_id, ways, digests))
                    seq = change_log.append(connection, "episode.put", episode_id)
            except BaseException:
                delete_unreferenced(self._database, self._blobs, set(digests))
                raise
        return seq, self.get(episode_id)

    def get(self, episode_id: str) -> Episode:
        """One episode that has not expired. Raises NotFound."""
        with self._database.read() as connection:
            found = self._read(connection, episodes.c.id == episode_id, limit=1)
        if not found:
            raise NotFound(f"There is no episode {episode_id!r}.")
        return found[0]

    def all(self, *, after: str | None, limit: int) -> Sequence[Episode]:
        """A page of episodes by id, those that follow `after`."""
        condition = sa.true() if after is None else episodes.c.id > after
        with self._database.read() as connection:
            return self._read(connection, condition, limit=limit)

    def delete(self, episode_id: str) -> int:
        """Delete an episode and its pictures. Returns the write's `seq`. Raises NotFound."""
        with self._database.write_lock:
            self.get(episode_id)
            return self._delete([episode_id])

    def picture(self, episode_id: str, support_id: str) -> tuple[Support, bytes]:
        """One support and its stored bytes. Raises NotFound."""
        for way in self.get(episode_id).ways:
            for support in way.support:
                if support.id == support_id:
                    return support, self._blobs.get(support.sha256)
        raise NotFound(f"There is no support {support_id!r} in this episode.")

    def _drop_expired(self, now: float) -> None:
        with self._database.read() as connection:
            gone = list(connection.execute(sa.select(episodes.c.id).where(episodes.c.expires_at <= now)).scalars())
        if gone:
            self._delete(gone)

    def _delete(self, episode_ids: Sequence[str]) -> int:
        with self._database.write() as connection:
            belongs = supports.c.episode_id.in_(episode_ids)
            blobs = set(connection.execute(sa.select(supports.c.sha256).where(belongs)).scalars())
            connection.execute(sa.delete(supports).where(belongs))
            connection.execute(sa.delete(episodes).where(episodes.c.id.in_(episode_ids)))
            seq = 0
            for episode_id in episode_ids:
                seq = change_log.append(connection, "episode.delete", episode_id)
        delete_unreferenced(self._database, self._blobs, blobs)
        return seq

    def _read(self, connection: sa.Connection, condition: sa.ColumnElement[bool], *, limit: int) -> Sequence[Episode]:
        alive = sa.or_(episodes.c.expires_at.is_(None), episodes.c.expires_at > time.time())
        query = sa.select(episodes).where(condition, alive).order_by(episodes.c.id).limit(limit)
        rows = connection.execute(query).all()
        belongs = supports.c.episode_id.in_([row.id for row in rows])
        query = sa.select(supports).where(belongs).order_by(supports.c.way, supports.c.position)
        by_way: dict[tuple[str, int], list[Support]] = {}
        for row in connection.execute(query):
            vector = np.frombuffer(row.vector, np.float32)
            support = Support(id=row.id, sha256=row.sha256, media_type=row.media_type, vector=vector)
            by_way.setdefault((row.episode_id, row.way), []).append(support)
        return [_episode(row, by_way) for row in rows]


def _support_rows(episode_id: str, ways: Sequence[NewWay], digests: Sequence[str]) -> list[dict[str, object]]:
    placed = [(w, p, s) for w, way in enumerate(ways) for p, s in enumerate(way.support)]
    return [
        {
            "id": f"s_{secrets.token_hex(8)}",
            "episode_id": episode_id,
            "way": way,
            "position": position,
            "sha256": sha256,
            "media_type": support.media_type,
            "vector": support.vector.astype(np.float32).tobytes(),
        }
        for (way, position, support), sha256 in zip(placed, digests, strict=True)
    ]


def _episode(row: sa.Row[tuple[object, ...]], by_way: dict[tuple[str, int], list[Support]]) -> Episode:
    ways = [Way(label=label, support=by_way.get((row.id, way), [])) for way, label in enumerate(row.labels)]
    return Episode(
        id=row.id,
        name=row.name,
        version=row.version,
        method=row.method,
        fingerprint=row.fingerprint,
        expires_at=row.expires_at,
        ways=ways,
    )
