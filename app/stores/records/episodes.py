"""Few-shot episodes: ways, their support images and features, persisted and versioned."""

import hashlib
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.domain import Limits, label_key
from app.errors import Conflict, Damaged, Invalid, PreconditionFailed
from app.runtime.lru import ByteLru
from app.stores.blobs import Blobs, collect_garbage_later, stored_images
from app.stores.records.episode_rows import (
    Episode,
    EpisodeChange,
    StoredImage,
    Way,
    episode_of,
    no_episode,
    no_support,
    read_episode,
    stored_label,
    unexpired,
    way_number,
)
from app.stores.records.idempotency import note_done, require_undone
from app.stores.sql import change_log, metadata
from app.stores.sql.checksums import sealed
from app.stores.sql.database import Database, failpoint
from app.stores.sql.tables import episodes, support_vectors, supports

EXPIRED_AT_ONCE = 100  # most expired episodes that a new one removes, so that no caller pays for all of them
CACHE_BYTES = 128 << 20  # bound on cached episodes; the largest possible one takes 83 MB (512 ways of 64)
MIN_WAYS = 2
_ROW_BYTES = 1024  # a cached example besides its vector


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSupport:
    """One labelled example to store; `vector` is [J] float32, unit slices."""

    data: bytes
    media_type: str
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWay:
    """One class and examples to store."""

    label: str
    support: Sequence[NewSupport]


class Episodes:
    """All episodes; every method blocks, call them through `Database.run`.

    Args:
        fingerprint: of the bundle that makes the features.
    """

    def __init__(self, database: Database, blobs: Blobs, *, fingerprint: str) -> None:
        self._database = database
        self._blobs = blobs
        self._fingerprint = fingerprint
        self._cache = ByteLru[str, Episode](CACHE_BYTES)

    def create(
        self, ways: Sequence[NewWay], *, name: str | None, method: str, ttl_s: float | None, token: str | None = None
    ) -> tuple[int, Episode]:
        """Store an episode, images first, then its rows in one transaction; returns the write's `seq` and the episode.

        Args:
            token: ids derive from it. If its episode exists already, that one is returned and nothing is written.

        Raises:
            FingerprintMismatch: another bundle's features are active.
            Conflict: the token's episode was created before, and deleted.
            DiskFull: nothing was stored.
        """
        token = token or secrets.token_hex(16)
        episode_id = f"ep_{_derived(token, 'episode', 24)}"
        now = time.time()
        self._remove_expired(now)  # there is no sweeper: creating pays for expiring
        with stored_images(self._database, self._blobs, _images_of(ways)), self._database.write() as connection:
            metadata.require_fingerprint(connection, self._fingerprint)
            known = sa.select(episodes.c.id).where(episodes.c.id == episode_id, unexpired())
            if connection.execute(known).first() is not None:  # a repeated request
                seq = change_log.head(connection)
            else:
                require_undone(connection, token)
                labels = [way.label for way in ways]
                expires_at = None if ttl_s is None else now + ttl_s
                row = {"id": episode_id, "name": name, "version": 1, "method": method, "labels": labels}
                connection.execute(sa.insert(episodes), {**row, "created_at": now, "expires_at": expires_at})
                self._insert(connection, episode_id, labels, ways, token)
                seq = change_log.append(connection, "episode.put", episode_id)
                note_done(connection, token, seq)
                failpoint("rows.written")
            episode = read_episode(connection, episode_id, self._fingerprint)
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
        """Add examples; a new label adds a way. Increments the episode's version.

        Args:
            if_match: the episode's version must be one of these; None for any.
            limits: bound ways and examples per way.
            token: as in `create`.

        Raises:
            NotFound, PreconditionFailed, FingerprintMismatch, DiskFull: nothing was stored.
            Invalid: the episode would exceed `limits`.
        """
        token = token or secrets.token_hex(16)
        with stored_images(self._database, self._blobs, _images_of(ways)), self._database.write() as connection:
            metadata.require_fingerprint(connection, self._fingerprint)
            episode = read_episode(connection, episode_id, self._fingerprint)
            made = {_support_id(token, number) for number in range(sum(len(way.support) for way in ways))}
            # Any of them proves a repeat: the first may have been removed since.
            if any(one.id in made for way in episode.ways for one in way.support):
                return change_log.head(connection), episode
            require_undone(connection, token)
            _check_version(episode, if_match)
            labels = [way.label for way in episode.ways]
            ways = [replace(way, label=stored_label(episode, way.label)) for way in ways]
            labels += [way.label for way in ways if way.label not in labels]
            _check_size(episode, labels, ways, limits)
            self._insert(connection, episode_id, labels, ways, token)
            seq = self._bump(connection, episode, labels)
            note_done(connection, token, seq)
            failpoint("rows.written")
            episode = read_episode(connection, episode_id, self._fingerprint)
        failpoint("rows.committed")
        return seq, episode

    def remove(self, episode_id: str, support_id: str, *, if_match: Sequence[int] | None) -> tuple[int, Episode]:
        """Remove one example. Increments the episode's version.

        Raises:
            NotFound: no such episode or example.
            PreconditionFailed: the episode has another version.
            Conflict: it is the last of its way; names the route that removes the way.
        """
        with self._database.write() as connection:
            episode = read_episode(connection, episode_id, self._fingerprint)
            found = [(way, one) for way in episode.ways for one in way.support if one.id == support_id]
            if not found:
                raise no_support(support_id)
            ((way, support),) = found
            _check_version(episode, if_match)
            if way.shots == 1:
                route = f"DELETE /fewshot/episodes/{episode_id}/ways/{quote(way.label, safe='')}"
                raise Conflict(f"It is the last support of the way {way.label!r}: {route} removes the way.")
            connection.execute(sa.delete(supports).where(supports.c.id == support_id))
            seq = self._bump(connection, episode, [one.label for one in episode.ways])
            changed = read_episode(connection, episode_id, self._fingerprint)
        collect_garbage_later(self._database, self._blobs, {support.sha256})
        return seq, changed

    def remove_way(self, episode_id: str, label: str, *, if_match: Sequence[int] | None) -> tuple[int, Episode]:
        """Remove a way with its examples. Increments the episode's version.

        Raises:
            NotFound, PreconditionFailed: as `remove`.
            Conflict: only two ways are left.
        """
        with self._database.write() as connection:
            episode = read_episode(connection, episode_id, self._fingerprint)
            at = way_number(episode, label)
            _check_version(episode, if_match)
            if len(episode.ways) <= MIN_WAYS:
                raise Conflict(f"An episode has at least {MIN_WAYS} ways: delete the episode instead.")
            own = supports.c.episode_id == episode_id
            connection.execute(sa.delete(supports).where(own, supports.c.way == at))
            connection.execute(sa.update(supports).where(own, supports.c.way > at).values(way=supports.c.way - 1))
            seq = self._bump(connection, episode, [way.label for way in episode.ways if way is not episode.ways[at]])
            changed = read_episode(connection, episode_id, self._fingerprint)
        collect_garbage_later(self._database, self._blobs, {one.sha256 for one in episode.ways[at].support})
        return seq, changed

    def change(self, episode_id: str, changed: EpisodeChange, *, if_match: Sequence[int] | None) -> tuple[int, Episode]:
        """Change fields and labels of an episode. Increments its version.

        Raises:
            NotFound, PreconditionFailed: as `remove`; a label to rename counts as a part of the episode.
            Conflict: two ways would have one label.
        """
        with self._database.write() as connection:
            episode = read_episode(connection, episode_id, self._fingerprint)
            renamed = {way_number(episode, label): new for label, new in changed.labels.items()}
            _check_version(episode, if_match)
            labels = [renamed.get(at, way.label) for at, way in enumerate(episode.ways)]
            is_unclear = len(renamed) < len(changed.labels)  # two spellings of one way's label
            if is_unclear or (renamed and len(set(map(label_key, labels))) < len(labels)):
                raise Conflict("Two ways would have one label, or one way two.")
            if changed.fields:
                connection.execute(sa.update(episodes).where(episodes.c.id == episode_id).values(**changed.fields))
            seq = self._bump(connection, episode, labels)
            return seq, read_episode(connection, episode_id, self._fingerprint)

    def get(self, episode_id: str) -> Episode:
        """Return one episode that has not expired; its examples are read once per version. Raises NotFound, Damaged."""
        active = metadata.query(metadata.FINGERPRINT).scalar_subquery().label("active")
        query = sa.select(episodes.c.version, active).where(episodes.c.id == episode_id, unexpired())
        with self._database.read() as connection:
            now = connection.execute(query).one_or_none()
            if now is None:
                raise no_episode(episode_id)
            cached = self._cache.get(episode_id)
            # A version identifies the examples; ids are never reused.
            found = None if cached is None else (cached.version, cached.fingerprint)
            if cached is not None and found == (now.version, now.active or self._fingerprint):
                return cached
            episode = read_episode(connection, episode_id, self._fingerprint)
        examples = [one for way in episode.ways for one in way.support]
        if any(one.is_damaged for one in examples):
            raise Damaged(f"A feature of the episode {episode_id!r} is damaged: run `vermouth db repair`.")
        # Features that are missing may be added without a new version.
        if all(one.vector.size for one in examples):
            size_bytes = sum(one.vector.nbytes + _ROW_BYTES for one in examples)
            self._cache.put(episode_id, episode, size_bytes)
        return episode

    def all(self, *, after: str | None, limit: int) -> Sequence[Episode]:
        """Return a page of episodes by id, those that follow `after`; examples are counted, not read."""
        query = sa.select(episodes).where(sa.true() if after is None else episodes.c.id > after, unexpired())
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(episodes.c.id).limit(limit)).all()
            counted = (
                sa.select(supports.c.episode_id, supports.c.way, sa.func.count())
                .where(supports.c.episode_id.in_([row.id for row in rows]))
                .group_by(supports.c.episode_id, supports.c.way)
            )
            shots = {(owner, way): count for owner, way, count in connection.execute(counted)}
            active = metadata.read(connection, metadata.FINGERPRINT) or self._fingerprint
        return [
            episode_of(
                row, [Way(label=one, shots=shots.get((row.id, at), 0)) for at, one in enumerate(row.labels)], active
            )
            for row in rows
        ]

    def count(self) -> int:
        """Return how many episodes have not expired."""
        with self._database.read() as connection:
            query = sa.select(sa.func.count()).select_from(episodes).where(unexpired())
            return int(connection.execute(query).scalar_one())

    def delete(self, episode_id: str, *, if_match: Sequence[int] | None = None) -> int:
        """Delete an episode and its images. Returns the write's `seq`. Raises NotFound, PreconditionFailed."""
        with self._database.write() as connection:
            _check_version(read_episode(connection, episode_id, self._fingerprint), if_match)
            seq, digests = _delete(connection, [episode_id])
        collect_garbage_later(self._database, self._blobs, digests)
        return seq

    def image(self, episode_id: str, support_id: str) -> StoredImage:
        """Return the stored image of one support. Raises NotFound."""
        # An outer join: one query distinguishes a missing episode from a missing support.
        own = sa.and_(supports.c.episode_id == episodes.c.id, supports.c.id == support_id)
        query = (
            sa.select(supports.c.id, supports.c.sha256, supports.c.media_type)
            .select_from(episodes.outerjoin(supports, own))
            .where(episodes.c.id == episode_id, unexpired())
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise no_episode(episode_id)
        if row.id is None:
            raise no_support(support_id)
        return StoredImage(sha256=row.sha256, media_type=row.media_type, blob=self._blobs.open(row.sha256))

    def _insert(
        self, connection: sa.Connection, episode_id: str, labels: Sequence[str], ways: Sequence[NewWay], token: str
    ) -> None:
        """Insert examples after the last of their ways."""
        ends = sa.select(supports.c.way, sa.func.max(supports.c.position)).where(supports.c.episode_id == episode_id)
        next_at = {way: end + 1 for way, end in connection.execute(ends.group_by(supports.c.way))}
        rows: list[dict[str, object]] = []
        vectors: list[dict[str, object]] = []
        for way in ways:
            at = labels.index(way.label)
            for position, support in enumerate(way.support, start=next_at.get(at, 0)):
                support_id = _support_id(token, len(rows))
                # Put again inside the transaction: another process may have collected it since.
                sha256 = self._blobs.put(support.data, was_just_put=True)
                row = {"id": support_id, "episode_id": episode_id, "way": at, "position": position}
                rows.append({**row, "sha256": sha256, "media_type": support.media_type})
                vector = {"support_id": support_id, "fingerprint": self._fingerprint}
                vectors.append({**vector, **sealed(support_id, support.vector)})
        connection.execute(sa.insert(supports), rows)  # vectors reference them
        connection.execute(sa.insert(support_vectors), vectors)

    def _bump(self, connection: sa.Connection, episode: Episode, labels: Sequence[str]) -> int:
        values = {"version": episode.version + 1, "labels": list(labels)}
        connection.execute(sa.update(episodes).where(episodes.c.id == episode.id).values(values))
        return change_log.append(connection, "episode.put", episode.id)

    def _remove_expired(self, now: float) -> None:
        with self._database.read() as connection:
            old = sa.select(episodes.c.id).where(episodes.c.expires_at <= now).limit(EXPIRED_AT_ONCE)
            expired = list(connection.execute(old).scalars())
        if expired:
            with self._database.write() as connection:
                _, digests = _delete(connection, expired)
            collect_garbage_later(self._database, self._blobs, digests)


def _check_version(episode: Episode, if_match: Sequence[int] | None) -> None:
    if if_match is not None and episode.version not in if_match:
        raise PreconditionFailed(f"The episode is at version {episode.version}.")


def _check_size(episode: Episode, labels: Sequence[str], ways: Sequence[NewWay], limits: Limits) -> None:
    shots = {way.label: way.shots for way in episode.ways}
    for way in ways:
        shots[way.label] = shots.get(way.label, 0) + len(way.support)
    if len(labels) > limits.max_ways:
        raise Invalid(f"An episode has at most {limits.max_ways} ways.")
    if max(shots.values()) > limits.max_support_per_way:
        raise Invalid(f"A way has at most {limits.max_support_per_way} support images.")


def _delete(connection: sa.Connection, episode_ids: Sequence[str]) -> tuple[int, set[str]]:
    """Delete episodes in the caller's transaction; returns the last `seq` and the images they named."""
    belongs = supports.c.episode_id.in_(episode_ids)
    digests = set(connection.execute(sa.select(supports.c.sha256).where(belongs)).scalars())
    connection.execute(sa.delete(supports).where(belongs))  # with their vectors, by cascade
    connection.execute(sa.delete(episodes).where(episodes.c.id.in_(episode_ids)))
    seq = 0
    for episode_id in episode_ids:
        seq = change_log.append(connection, "episode.delete", episode_id)
    return seq, digests


def _derived(token: str, what: str, length: int) -> str:
    # Derived, so that a repeat of the request after a crash finds what it wrote.
    return hashlib.sha256(f"{token}:{what}".encode()).hexdigest()[:length]


def _support_id(token: str, number: int) -> str:
    return f"s_{_derived(token, str(number), 16)}"


def _images_of(ways: Sequence[NewWay]) -> Iterator[bytes]:
    return (support.data for way in ways for support in way.support)
