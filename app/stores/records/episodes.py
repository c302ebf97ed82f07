"""Few-shot episodes: ways, their support pictures and features, persisted and versioned."""

import hashlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.domain import Limits
from app.errors import Conflict, Invalid, NotFound, PreconditionFailed
from app.runtime.lru import BoundedLru
from app.stores.blobs import Blobs, collect_garbage_later, stored_images
from app.stores.records.idempotency import note_done, require_undone
from app.stores.sql import change_log, metadata
from app.stores.sql.database import Database
from app.stores.sql.failpoints import failpoint
from app.stores.sql.tables import episodes, pack, support_vectors, supports, unpack

DROPPED_AT_ONCE = 100
"""Most expired episodes that a new one clears away, so that no caller pays for all of them."""
KEPT_BYTES = 128 << 20
"""Of episodes read lately; the largest there may be takes 83 MB (512 ways of 64)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSupport:
    """One labelled example to store; `vector` is [D] float32, unit length."""

    data: bytes
    media_type: str
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWay:
    """One class and examples to store."""

    label: str
    support: Sequence[NewSupport]


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """One stored example; `vector` is [D] float32, unit length, empty where another bundle made it."""

    id: str
    sha256: str
    media_type: str
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """The picture of an example as it was sent."""

    sha256: str
    media_type: str
    data: bytes


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


@dataclass(frozen=True, slots=True, kw_only=True)
class WaySummary:
    """One class and how many examples it has."""

    label: str
    shots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSummary:
    """An episode as lists tell it: without its examples."""

    id: str
    name: str | None
    version: int
    method: str
    fingerprint: str
    expires_at: float | None
    ways: Sequence[WaySummary]


_ROW_BYTES = 1024
"""Of an example besides its vector."""


@dataclass(slots=True)
class _Kept:
    """What was read last: an episode, and `Database.written` when it was as the database has it; None before the first.

    One value, so that who reads it without a lock never sees one's episode under another's number.
    """

    read: tuple[Episode, int | None] | None = None


class EpisodeCache:
    """The least recently used are dropped first. A version says which examples there are, and ids are given once."""

    def __init__(self, *, max_bytes: int) -> None:
        self._kept = BoundedLru(_Kept, max_bytes=max_bytes)

    def unchanged(self, episode_id: str, written: int | None) -> Episode | None:
        """The episode where nothing was written since it was read and it has not expired; None: it must be asked for.

        Args:
            written: `Database.written` now.
        """
        kept = self._kept.known(episode_id)
        if kept is None or kept.read is None:
            return None
        episode, read_at = kept.read
        if written is None or read_at != written:
            return None
        return episode if episode.expires_at is None or episode.expires_at > time.time() else None

    def get(self, episode_id: str, version: int, fingerprint: str, read_at: int | None) -> Episode | None:
        """The episode in just this version with features of this bundle, as it was read now; None where it is not kept.

        Args:
            read_at: as `keep`.
        """
        kept = self._kept.known(episode_id)
        if kept is None or kept.read is None:
            return None
        episode, _ = kept.read
        if (episode.version, episode.fingerprint) != (version, fingerprint):
            return None
        kept.read = episode, read_at
        return episode

    def keep(self, episode: Episode, read_at: int | None) -> None:
        """Keep an episode, unless an example lacks its features: they may be made without a new version.

        Args:
            read_at: `Database.written` before it was read.
        """
        examples = [one for way in episode.ways for one in way.support]
        if all(one.vector.size for one in examples):
            entry = self._kept.entry(episode.id)
            entry.read = episode, read_at
            self._kept.weigh(episode.id, entry, sum(one.vector.nbytes + _ROW_BYTES for one in examples))


class Episodes:
    """All episodes; every method blocks, call them through `Database.run`.

    Args:
        fingerprint: of the bundle that makes the features.
    """

    def __init__(self, database: Database, blobs: Blobs, *, fingerprint: str) -> None:
        self._database = database
        self._blobs = blobs
        self._fingerprint = fingerprint
        self._kept = EpisodeCache(max_bytes=KEPT_BYTES)

    def create(
        self,
        ways: Sequence[NewWay],
        *,
        name: str | None,
        method: str,
        ttl_s: float | None,
        token: str | None = None,
    ) -> tuple[int, Episode]:
        """Store an episode: pictures first, then its rows in one transaction.

        Args:
            token: ids follow from it, and an episode it made before is answered, not made again.
                A write of it whose rows are gone is refused.

        Returns:
            The write's `seq`, and the episode.

        Raises:
            FingerprintMismatch: another bundle's features are the active ones.
            Conflict: the token's episode was made before, and deleted.
            DiskFull: nothing was stored.
        """
        token = token or secrets.token_hex(16)
        episode_id = f"ep_{_derived(token, 'episode', 24)}"
        now = time.time()
        self._drop_expired(now)
        with stored_images(self._database, self._blobs, _pictures_of(ways)), self._database.write() as connection:
            metadata.require_fingerprint(connection, self._fingerprint)
            if self._read(connection, episodes.c.id == episode_id, limit=1):
                seq = change_log.head(connection)
            else:
                require_undone(connection, token)
                row = {
                    "id": episode_id,
                    "name": name,
                    "version": 1,
                    "method": method,
                    "labels": [way.label for way in ways],
                    "created_at": now,
                    "expires_at": None if ttl_s is None else now + ttl_s,
                }
                connection.execute(sa.insert(episodes), row)
                placed = [(at, p, s) for at, way in enumerate(ways) for p, s in enumerate(way.support)]
                self._insert(connection, episode_id, placed, token)
                seq = change_log.append(connection, "episode.put", episode_id)
                note_done(connection, token, seq)
                failpoint("rows.written")
            episode = self._required(connection, episode_id)
        failpoint("rows.committed")
        return seq, episode

    def add(
        self,
        episode_id: str,
        ways: Sequence[NewWay],
        *,
        if_match: Sequence[int] | None,
        limits: Limits,
        token: str | None = None,
    ) -> tuple[int, Episode]:
        """Add examples; a new label adds a way. The episode has its next version then.

        Args:
            if_match: the episode's version must be one of these; None for any.
            token: as in `create`.

        Raises:
            NotFound, PreconditionFailed, FingerprintMismatch, DiskFull: nothing was stored.
            Invalid: it would have more ways or examples than `limits`.
        """
        token = token or secrets.token_hex(16)
        with stored_images(self._database, self._blobs, _pictures_of(ways)), self._database.write() as connection:
            metadata.require_fingerprint(connection, self._fingerprint)
            episode = self._required(connection, episode_id)
            numbers = range(sum(len(way.support) for way in ways))
            made = {f"s_{_derived(token, str(number), 16)}" for number in numbers}
            # Any of them: the first may have been taken away since.
            if any(one.id in made for way in episode.ways for one in way.support):
                return change_log.head(connection), episode
            require_undone(connection, token)
            _check_version(episode, if_match)
            labels = [way.label for way in episode.ways]
            labels += [way.label for way in ways if way.label not in labels]
            placed = _placed(connection, episode_id, labels, ways)
            self._insert(connection, episode_id, placed, token)
            _check_size(episode, labels, ways, limits)
            seq = self._bump(connection, episode, labels)
            note_done(connection, token, seq)
            failpoint("rows.written")
            episode = self._required(connection, episode_id)
        failpoint("rows.committed")
        return seq, episode

    def remove(self, episode_id: str, support_id: str, *, if_match: Sequence[int] | None) -> tuple[int, Episode]:
        """Take one example away. The episode has its next version then.

        Raises:
            NotFound: no such episode or example.
            PreconditionFailed: the episode has another version.
            Conflict: it is the last of its way.
        """
        with self._database.write() as connection:
            episode = self._required(connection, episode_id)
            way = next((way for way in episode.ways if any(s.id == support_id for s in way.support)), None)
            if way is None:
                raise NotFound(f"There is no support {support_id!r} in this episode.")
            _check_version(episode, if_match)
            if len(way.support) == 1:
                raise Conflict(f"It is the last support of the way {way.label!r}.")
            connection.execute(sa.delete(supports).where(supports.c.id == support_id))
            seq = self._bump(connection, episode, [one.label for one in episode.ways])
            changed = self._required(connection, episode_id)
        digest = next(one.sha256 for one in way.support if one.id == support_id)
        collect_garbage_later(self._database, self._blobs, {digest})
        return seq, changed

    def get_cached(self, episode_id: str) -> Episode | None:
        """What `get` would answer, where that needs no question to the database; else None. Does not block."""
        return self._kept.unchanged(episode_id, self._database.written)

    def get(self, episode_id: str) -> Episode:
        """One episode that has not expired, as the database has it now; examples are read once a version.

        Raises:
            NotFound.
        """
        active = metadata.query(metadata.FINGERPRINT).scalar_subquery().label("active")
        query = sa.select(episodes.c.version, active).where(episodes.c.id == episode_id, _alive())
        # Before the snapshot: what is written meanwhile is asked for again.
        read_at = self._database.written
        with self._database.read() as connection:
            now = connection.execute(query).one_or_none()
            if now is None:
                raise _not_found(episode_id)
            known = self._kept.get(episode_id, now.version, now.active or self._fingerprint, read_at)
            if known is None:
                known = self._required(connection, episode_id)
                self._kept.keep(known, read_at)
        return known

    def all(self, *, after: str | None, limit: int) -> Sequence[EpisodeSummary]:
        """A page of episodes by id, those that follow `after`; examples are counted, not read."""
        query = sa.select(episodes).where(sa.true() if after is None else episodes.c.id > after, _alive())
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(episodes.c.id).limit(limit)).all()
            counted = (
                sa.select(supports.c.episode_id, supports.c.way, sa.func.count())
                .where(supports.c.episode_id.in_([row.id for row in rows]))
                .group_by(supports.c.episode_id, supports.c.way)
            )
            shots = {(owner, way): count for owner, way, count in connection.execute(counted)}
            active = metadata.read(connection, metadata.FINGERPRINT) or self._fingerprint
        return [_summary(row, shots, active) for row in rows]

    def delete(self, episode_id: str) -> int:
        """Delete an episode and its pictures. Returns the write's `seq`. Raises NotFound."""
        with self._database.write() as connection:
            self._required(connection, episode_id)
            seq, digests = _delete(connection, [episode_id])
        collect_garbage_later(self._database, self._blobs, digests)
        return seq

    def image(self, episode_id: str, support_id: str) -> StoredImage:
        """One support's stored picture. Raises NotFound."""
        query = (
            sa.select(episodes.c.id, supports.c.id.label("support_id"), supports.c.sha256, supports.c.media_type)
            .select_from(
                episodes.outerjoin(
                    supports, sa.and_(supports.c.episode_id == episodes.c.id, supports.c.id == support_id)
                )
            )
            .where(episodes.c.id == episode_id, _alive())
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise _not_found(episode_id)
        if row.support_id is None:
            raise NotFound(f"There is no support {support_id!r} in this episode.")
        data = self._blobs.get(row.sha256)
        return StoredImage(sha256=row.sha256, media_type=row.media_type, data=data)

    def _insert(
        self,
        connection: sa.Connection,
        episode_id: str,
        placed: Sequence[tuple[int, int, NewSupport]],
        token: str,
    ) -> None:
        """Write examples as (way, position, example); their pictures once more, in the writer's turn."""
        rows = [
            {
                "id": f"s_{_derived(token, str(number), 16)}",
                "episode_id": episode_id,
                "way": way,
                "position": position,
                "sha256": self._blobs.put(support.data, was_just_put=True),
                "media_type": support.media_type,
            }
            for number, (way, position, support) in enumerate(placed)
        ]
        connection.execute(sa.insert(supports), rows)
        vectors = [
            {"support_id": row["id"], "fingerprint": self._fingerprint, "vector": pack(support.vector)}
            for row, (_, _, support) in zip(rows, placed, strict=True)
        ]
        connection.execute(sa.insert(support_vectors), vectors)

    def _bump(self, connection: sa.Connection, episode: Episode, labels: Sequence[str]) -> int:
        values = {"version": episode.version + 1, "labels": list(labels)}
        connection.execute(sa.update(episodes).where(episodes.c.id == episode.id).values(values))
        return change_log.append(connection, "episode.put", episode.id)

    def _drop_expired(self, now: float) -> None:
        with self._database.read() as connection:
            old = sa.select(episodes.c.id).where(episodes.c.expires_at <= now).limit(DROPPED_AT_ONCE)
            gone = list(connection.execute(old).scalars())
        if gone:
            with self._database.write() as connection:
                _, digests = _delete(connection, gone)
            collect_garbage_later(self._database, self._blobs, digests)

    def _required(self, connection: sa.Connection, episode_id: str) -> Episode:
        found = self._read(connection, episodes.c.id == episode_id, limit=1)
        if not found:
            raise _not_found(episode_id)
        return found[0]

    def _read(self, connection: sa.Connection, condition: sa.ColumnElement[bool], *, limit: int) -> Sequence[Episode]:
        query = sa.select(episodes).where(condition, _alive()).order_by(episodes.c.id).limit(limit)
        rows = connection.execute(query).all()
        own = sa.and_(support_vectors.c.support_id == supports.c.id, support_vectors.c.fingerprint == self._fingerprint)
        joined = (
            sa.select(supports, support_vectors.c.vector)
            .select_from(supports.outerjoin(support_vectors, own))
            .where(supports.c.episode_id.in_([row.id for row in rows]))
            .order_by(supports.c.way, supports.c.position)
        )
        by_way: dict[tuple[str, int], list[Support]] = {}
        for row in connection.execute(joined):
            support = Support(id=row.id, sha256=row.sha256, media_type=row.media_type, vector=unpack(row.vector or b""))
            by_way.setdefault((row.episode_id, row.way), []).append(support)
        active = metadata.read(connection, metadata.FINGERPRINT) or self._fingerprint
        return [_episode(row, by_way, active) for row in rows]


def _not_found(episode_id: str) -> NotFound:
    return NotFound(f"There is no episode {episode_id!r}.")


def _alive() -> sa.ColumnElement[bool]:
    return sa.or_(episodes.c.expires_at.is_(None), episodes.c.expires_at > time.time())


def _placed(
    connection: sa.Connection, episode_id: str, labels: Sequence[str], ways: Sequence[NewWay]
) -> list[tuple[int, int, NewSupport]]:
    """New examples after the last position of their ways."""
    ends = sa.select(supports.c.way, sa.func.max(supports.c.position)).where(supports.c.episode_id == episode_id)
    next_at = {way: end + 1 for way, end in connection.execute(ends.group_by(supports.c.way))}
    placed: list[tuple[int, int, NewSupport]] = []
    for way in ways:
        at = labels.index(way.label)
        for support in way.support:
            placed.append((at, next_at.get(at, 0), support))
            next_at[at] = next_at.get(at, 0) + 1
    return placed


def _check_version(episode: Episode, if_match: Sequence[int] | None) -> None:
    if if_match is not None and episode.version not in if_match:
        raise PreconditionFailed(f"The episode is at version {episode.version}.")


def _check_size(episode: Episode, labels: Sequence[str], ways: Sequence[NewWay], limits: Limits) -> None:
    shots = {way.label: len(way.support) for way in episode.ways}
    for way in ways:
        shots[way.label] = shots.get(way.label, 0) + len(way.support)
    if len(labels) > limits.max_ways:
        raise Invalid(f"An episode has at most {limits.max_ways} ways.")
    if max(shots.values()) > limits.max_support_per_way:
        raise Invalid(f"A way has at most {limits.max_support_per_way} support images.")


def _delete(connection: sa.Connection, episode_ids: Sequence[str]) -> tuple[int, set[str]]:
    """Delete episodes in the caller's transaction: the last `seq`, and the pictures they named."""
    belongs = supports.c.episode_id.in_(episode_ids)
    digests = set(connection.execute(sa.select(supports.c.sha256).where(belongs)).scalars())
    connection.execute(sa.delete(supports).where(belongs))
    connection.execute(sa.delete(episodes).where(episodes.c.id.in_(episode_ids)))
    seq = 0
    for episode_id in episode_ids:
        seq = change_log.append(connection, "episode.delete", episode_id)
    return seq, digests


def _derived(token: str, what: str, length: int) -> str:
    return hashlib.sha256(f"{token}:{what}".encode()).hexdigest()[:length]


def _episode(row: sa.Row[*tuple[object, ...]], by_way: dict[tuple[str, int], list[Support]], active: str) -> Episode:
    ways = [Way(label=label, support=by_way.get((row.id, way), [])) for way, label in enumerate(row.labels)]
    return Episode(
        id=row.id,
        name=row.name,
        version=row.version,
        method=row.method,
        fingerprint=active,
        expires_at=row.expires_at,
        ways=ways,
    )


def _summary(row: sa.Row[*tuple[object, ...]], shots: Mapping[tuple[str, int], int], active: str) -> EpisodeSummary:
    ways = [WaySummary(label=label, shots=shots.get((row.id, way), 0)) for way, label in enumerate(row.labels)]
    return EpisodeSummary(
        id=row.id,
        name=row.name,
        version=row.version,
        method=row.method,
        fingerprint=active,
        expires_at=row.expires_at,
        ways=ways,
    )


def _pictures_of(ways: Sequence[NewWay]) -> Iterator[bytes]:
    return (support.data for way in ways for support in way.support)
