"""The vector index of a gallery: an immutable base, a small exact delta, and tombstones.

A search reads one snapshot reference. A write builds the next snapshot and swaps it in; a merge builds the next base
in the background. Everything here is derived from SQL and can be rebuilt from it.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from app.stores.index.base import LOSSY_FACTOR, Base, IndexOptions, build_base

TIE = 1e-6  # scores closer than this are ties: FAISS and NumPy may differ in the last bit
MERGE_AT = 1024  # vectors or tombstones that are always tolerated
MAX_DELTA = 16_384  # most vectors outside the base; every search scans them

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One vector to add or to remove: `vector` [D] float32; `mark` from `mark_of`.

    The vector of one to remove is not read.
    """

    item_id: int
    vector: NDArray[np.float32]
    mark: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexState:
    """An index as `GET /galleries/{name}` reports it; `recall` is recall@10 as measured, None for an exact index."""

    kind: str
    vectors: int
    applied_seq: int
    digest: str
    recall: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One immutable state of an index.

    Attributes:
        base_dead: [n] bool, tombstones over the base's rows.
        delta: [capacity, D] float32; rows after `delta_count` belong to later snapshots.
        delta_ids: [capacity] int64, ascending.
        delta_dead: [delta_count] bool.
        digest: sum of the live entries' marks.
    """

    base: Base
    base_dead: NDArray[np.bool_]
    base_dead_count: int
    delta: NDArray[np.float32]
    delta_ids: Ids
    delta_count: int
    delta_dead: NDArray[np.bool_]
    digest: int

    @property
    def live(self) -> int:
        """Number of searchable vectors."""
        return self.rows - self.base_dead_count - int(self.delta_dead.sum())

    @property
    def rows(self) -> int:
        """Number of vectors, tombstoned ones included."""
        return len(self.base.ids) + self.delta_count

    def live_vectors(self) -> tuple[NDArray[np.float32], Ids]:
        """Return all live vectors, [N, D] float32, and their ids, ascending."""
        base_rows, delta_rows = np.flatnonzero(~self.base_dead), np.flatnonzero(~self.delta_dead)
        return (
            np.concatenate([self.base.vectors(base_rows), self.delta[delta_rows]]),
            np.concatenate([self.base.ids[base_rows], self.delta_ids[delta_rows]]),
        )


class VectorIndex:
    """Inner-product search over vectors [D]; `options` chooses the kind of base by size."""

    def __init__(self, dimension: int, options: IndexOptions | None = None) -> None:
        self._options = options or IndexOptions()
        self._lock = threading.Lock()  # held while the snapshot is swapped
        self._merging = threading.Lock()  # one merge at a time
        self.load(np.empty((0, dimension), np.float32), np.empty(0, np.int64), 0)

    def __len__(self) -> int:
        return self.snapshot.live

    def load(self, vectors: NDArray[np.float32], ids: Ids, digest: int) -> None:
        """Replace everything by [N, D] vectors under ascending ids; the index is exact until the next merge."""
        self.snapshot = _fresh(build_base(vectors, ids, replace(self._options, kind="flat")), digest)

    def apply(self, added: Sequence[Entry], removed: Sequence[Entry]) -> None:
        """Make one write visible. Repeating a write that failed half way is safe; writes come from one thread.

        Args:
            added: new vectors under ascending ids; ids that the index holds already are skipped.
            removed: vectors to tombstone; ids that the index does not hold are skipped.
        """
        with self._lock:
            self.snapshot = _tombstoned(_appended(self.snapshot, _unknown(self.snapshot, added)), removed)

    @property
    def wants_merge(self) -> bool:
        """Whether delta or tombstones exceed their share, or the base is of the wrong kind for its size."""
        snapshot = self.snapshot
        rows = len(snapshot.base.ids)
        return (
            snapshot.delta_count > max(MERGE_AT, min(rows // 10, MAX_DELTA))
            or snapshot.base_dead_count > max(MERGE_AT, rows // 5)
            or (rows > 0 and snapshot.base.kind != self._options.kind_for(snapshot.live))
        )

    def merge(self) -> None:
        """Build the next base, then swap it in; searches and writes continue meanwhile."""
        with self._merging:
            before = self.snapshot  # writes go on: what they change meanwhile is rebased
            base = self._next_base(before)
            with self._lock:
                self.snapshot = _rebased(before, self.snapshot, base)

    def search(
        self, query: NDArray[np.float32], k: int, allowed: Ids | None = None, *, snapshot: Snapshot | None = None
    ) -> tuple[Ids, Scores]:
        """Return candidates for the k nearest, unordered: the best k and, where the search is exact, all ties.

        Args:
            query: [D] float32.
            k: how many are wanted.
            allowed: ascending ids to choose from; None for all.
            snapshot: the state to search; None for the present one.

        Returns:
            Ids and inner products, at least min(k, live allowed); `LOSSY_FACTOR` times as many from a base with
            lossy storage, to be scored again.
        """
        snapshot = snapshot or self.snapshot
        query = np.ascontiguousarray(query, np.float32)
        alive = None
        if allowed is not None or snapshot.base_dead_count:
            alive = _among(snapshot.base.ids, allowed) & ~snapshot.base_dead  # None is faster: no selector
        positions, base_scores = snapshot.base.search(query, k, alive, TIE)
        wanted = k if snapshot.base.storage == "fp32" else LOSSY_FACTOR * k
        if snapshot.delta_count == 0:  # the common case needs no scan and no copies
            return _with_ties(snapshot.base.ids[positions], base_scores, wanted)
        rows = np.flatnonzero(_among(snapshot.delta_ids[: snapshot.delta_count], allowed) & ~snapshot.delta_dead)
        ids = np.concatenate([snapshot.base.ids[positions], snapshot.delta_ids[rows]])
        return _with_ties(ids, np.concatenate([base_scores, snapshot.delta[rows] @ query]), wanted)

    def state(self, applied_seq: int) -> IndexState:
        """Return size, kind and a digest of the live (external id, vector) pairs, as of `applied_seq`."""
        snapshot = self.snapshot
        return IndexState(
            kind=snapshot.base.kind,
            vectors=snapshot.live,
            applied_seq=applied_seq,
            digest=digest_text(snapshot.digest),
            recall=snapshot.base.recall,
        )

    def _next_base(self, before: Snapshot) -> Base:
        kind = self._options.kind_for(before.live)
        is_mostly_alive = before.base_dead_count <= len(before.base.ids) // 10
        if kind == before.base.kind == "hnsw" and is_mostly_alive:
            rows = np.flatnonzero(~before.delta_dead)
            return before.base.extended(before.delta[rows], before.delta_ids[rows], self._options.query_weights)
        vectors, ids = before.live_vectors()
        base = build_base(vectors, ids, replace(self._options, kind=kind))
        # Vectors that a lossy base returned stay approximate, whatever stores them now: keep scoring them again.
        return base if base.storage != "fp32" else replace(base, storage=before.base.storage)


def mark_of(checksum: bytes) -> int:
    """Return the 128-bit checksum of an item's vector as a number; their sum over a gallery is its digest."""
    return int.from_bytes(checksum)


def digest_text(total: int) -> str:
    """Return a sum of marks as 32 hex digits."""
    return f"{total % (1 << 128):032x}"  # a sum, so that adding and removing cancel out


def _with_ties(ids: Ids, scores: Scores, k: int) -> tuple[Ids, Scores]:
    """Return the k best and all that tie with the last of them."""
    if len(scores) <= k:
        return ids, scores
    best = scores >= np.partition(scores, -k)[-k] - 2 * TIE
    return ids[best], scores[best]


def _fresh(base: Base, digest: int) -> Snapshot:
    return Snapshot(
        base=base,
        base_dead=np.zeros(len(base.ids), bool),
        base_dead_count=0,
        delta=np.empty((MERGE_AT, base.dimension), np.float32),
        delta_ids=np.empty(MERGE_AT, np.int64),
        delta_count=0,
        delta_dead=np.zeros(0, bool),
        digest=digest,
    )


def _unknown(held: Snapshot, added: Sequence[Entry]) -> Sequence[Entry]:
    ids = np.array([entry.item_id for entry in added], np.int64)
    # Both are ascending: row ids only grow.
    known = _among(ids, held.base.ids) | _among(ids, held.delta_ids[: held.delta_count])
    return added if not known.any() else [entry for entry, is_known in zip(added, known, strict=True) if not is_known]


def _appended(old: Snapshot, added: Sequence[Entry]) -> Snapshot:
    """Return the snapshot with more rows; it shares its arrays with `old`, which never reads past its own count."""
    if not added:
        return old
    count = old.delta_count + len(added)
    delta, delta_ids = old.delta, old.delta_ids
    if count > len(delta_ids):  # doubled, so that an append costs O(1) on average
        delta, delta_ids = _copied(delta, delta_ids, slice(old.delta_count), capacity=max(count, 2 * len(delta_ids)))
    delta[old.delta_count : count] = [entry.vector for entry in added]
    delta_ids[old.delta_count : count] = [entry.item_id for entry in added]
    return replace(
        old,
        delta=delta,
        delta_ids=delta_ids,
        delta_count=count,
        delta_dead=np.concatenate([old.delta_dead, np.zeros(len(added), bool)]),
        digest=old.digest + sum(entry.mark for entry in added),
    )


def _tombstoned(old: Snapshot, removed: Sequence[Entry]) -> Snapshot:
    if not removed:
        return old
    # Copies: readers of the old snapshot must not see tombstones of the new one.
    base_dead, delta_dead, digest = old.base_dead.copy(), old.delta_dead.copy(), old.digest
    for entry in removed:
        for ids, dead in ((old.base.ids, base_dead), (old.delta_ids[: old.delta_count], delta_dead)):
            at = int(np.searchsorted(ids, entry.item_id))
            if at < len(ids) and ids[at] == entry.item_id and not dead[at]:  # held and not removed before
                dead[at] = True
                digest -= entry.mark
    return replace(old, base_dead=base_dead, base_dead_count=int(base_dead.sum()), delta_dead=delta_dead, digest=digest)


def _rebased(before: Snapshot, now: Snapshot, base: Base) -> Snapshot:
    """Return a snapshot over the new base with what was appended and tombstoned while it was built."""
    merged = slice(before.delta_count)
    later = slice(before.delta_count, now.delta_count)
    alive = np.concatenate([now.base.ids[~now.base_dead], now.delta_ids[merged][~now.delta_dead[merged]]])
    base_dead = ~_among(base.ids, alive)
    count = now.delta_count - before.delta_count
    delta, delta_ids = _copied(now.delta, now.delta_ids, later, capacity=max(MERGE_AT, 2 * count))
    return replace(
        _fresh(base, now.digest),
        base_dead=base_dead,
        base_dead_count=int(base_dead.sum()),
        delta=delta,
        delta_ids=delta_ids,
        delta_count=count,
        delta_dead=now.delta_dead[later].copy(),
    )


def _copied(delta: NDArray[np.float32], ids: Ids, part: slice, *, capacity: int) -> tuple[NDArray[np.float32], Ids]:
    """Return larger arrays that begin with a part of these."""
    new_delta, new_ids = np.empty((capacity, delta.shape[1]), np.float32), np.empty(capacity, np.int64)
    count = len(ids[part])
    new_delta[:count], new_ids[:count] = delta[part], ids[part]
    return new_delta, new_ids


def _among(ids: Ids, allowed: Ids | None) -> NDArray[np.bool_]:
    """Return which of ascending `ids` are in ascending `allowed`, [n] bool."""
    if allowed is None:
        return np.ones(len(ids), bool)
    found = np.zeros(len(ids), bool)
    if not len(ids):
        return found
    first, last = int(ids[0]), int(ids[-1])
    start, end = np.searchsorted(allowed, (first, last + 1))
    allowed = allowed[start:end]
    if last - first + 1 == len(ids):
        found[allowed - first] = True  # ids without gaps are positions: no search is needed
        return found
    positions = np.searchsorted(ids, allowed)
    found[positions[ids[positions] == allowed]] = True
    return found
