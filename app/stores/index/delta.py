"""Search over a gallery: an immutable FAISS base, a small exact delta and tombstones.

Searches read one snapshot reference; the writer builds the next snapshot and swaps it in, a merge builds the
next base beside the present one. All of it is derived from SQL and can be rebuilt from there.
"""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from app.stores.index.base import NEAR_FACTOR, Base, IndexOptions, build_base, empty_base

TIE = 1e-6
"""Scores closer than this are ties: FAISS and NumPy may differ in the last bit."""
MERGE_AT = 1024
MAX_DELTA = 16_384
"""Most vectors outside the base, which every search scans."""

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One vector to add: `vector` [D] float32, unit length; `mark` from `mark_of`."""

    item_id: int
    vector: NDArray[np.float32]
    mark: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """One vector to take away, with the mark it was added with."""

    item_id: int
    mark: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexState:
    """What `GET /galleries/{name}` tells of an index; `recall` at 10 as measured, None where it is exact."""

    kind: str
    vectors: int
    applied_seq: int
    digest: str
    recall: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One immutable state.

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
        """How many vectors can be found."""
        return len(self.base.ids) + self.delta_count - self.base_dead_count - int(self.delta_dead.sum())

    @property
    def rows(self) -> int:
        """How many vectors there are, those that are gone included."""
        return len(self.base.ids) + self.delta_count

    def live_vectors(self) -> tuple[NDArray[np.float32], Ids]:
        """All live vectors [N, D] float32 and their ids, ascending."""
        kept, kept_delta = ~self.base_dead, ~self.delta_dead
        vectors = [self.base.vectors(np.flatnonzero(kept)), self.delta[: self.delta_count][kept_delta]]
        return np.concatenate(vectors), np.concatenate(
            [self.base.ids[kept], self.delta_ids[: self.delta_count][kept_delta]]
        )


class VectorIndex:
    """Inner-product search over unit vectors.

    Args:
        dimension: D.
        options: which kind of base to build at which size.
    """

    def __init__(self, dimension: int, options: IndexOptions | None = None) -> None:
        self._dimension = dimension
        self._options = options or IndexOptions()
        self._lock = threading.Lock()
        self._merging = threading.Lock()
        self.snapshot = _fresh(empty_base(dimension), 0)

    def __len__(self) -> int:
        return self.snapshot.live

    def load(self, vectors: NDArray[np.float32], ids: Ids, digest: int) -> None:
        """Replace everything by [N, D] unit vectors under ascending ids; exact until the next merge."""
        self.snapshot = _fresh(build_base(vectors, ids, replace(self._options, kind="flat")), digest)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a state that was saved."""
        self.snapshot = snapshot

    def apply(self, added: Sequence[Entry], removed: Sequence[Removal]) -> None:
        """Make one write visible; call it from one thread at a time.

        Args:
            added: new vectors, under ascending row ids; those the index holds are passed over, so that what failed
                part way may be applied again.
            removed: what is gone; ids the index does not hold are passed over.
        """
        with self._lock:
            grown = _grown(self.snapshot, _unknown(self.snapshot, added))
            self.snapshot = _buried(grown, removed)

    @property
    def wants_merge(self) -> bool:
        """Whether the delta or the tombstones have grown past their share, or the base is of the wrong kind."""
        snapshot = self.snapshot
        rows = len(snapshot.base.ids)
        delta_limit = max(MERGE_AT, min(rows // 10, MAX_DELTA))
        return (
            snapshot.delta_count > delta_limit
            or snapshot.base_dead_count > max(MERGE_AT, rows // 5)
            or (rows > 0 and snapshot.base.kind != self._options.kind_for(snapshot.live))
        )

    def merge(self) -> None:
        """Build the next base beside the present one, then swap; searches and writes go on meanwhile."""
        with self._merging:
            before = self.snapshot
            base = self._next_base(before)
            with self._lock:
                self.snapshot = _carried_over(before, self.snapshot, base)

    def search(
        self, query: NDArray[np.float32], k: int, allowed: Ids | None = None, *, snapshot: Snapshot | None = None
    ) -> tuple[Ids, Scores]:
        """Candidates for the k nearest, in no order: the best k and, where the search is exact, all their ties.

        Args:
            query: [D] float32, unit length.
            k: how many are wanted.
            allowed: ascending ids to choose from; None for all.
            snapshot: the state to search; None for the present one.

        Returns:
            Ids and cosine similarities; min(k, live allowed) of them or more, and four times as many from a base
            that keeps vectors less than exactly, to be scored again.
        """
        snapshot = snapshot or self.snapshot
        query = np.ascontiguousarray(query, np.float32)
        alive = None
        if allowed is not None or snapshot.base_dead_count:
            alive = _among(snapshot.base.ids, allowed) & ~snapshot.base_dead
        positions, base_scores = snapshot.base.search(query, k, alive, TIE)
        wanted = k if snapshot.base.storage == "fp32" else NEAR_FACTOR * k
        if snapshot.delta_count == 0:
            return _with_ties(snapshot.base.ids[positions], base_scores, wanted)
        rows = np.flatnonzero(_among(snapshot.delta_ids[: snapshot.delta_count], allowed) & ~snapshot.delta_dead)
        ids = np.concatenate([snapshot.base.ids[positions], snapshot.delta_ids[rows]])
        return _with_ties(ids, np.concatenate([base_scores, snapshot.delta[rows] @ query]), wanted)

    def state(self, applied_seq: int) -> IndexState:
        """Size, kind and a digest of the live (external id, vector) pairs, as of `applied_seq`."""
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
        if kind != "flat" and kind == before.base.kind and is_mostly_alive:
            fresh = ~before.delta_dead
            rows = before.delta[: before.delta_count][fresh]
            return before.base.extended(rows, before.delta_ids[: before.delta_count][fresh])
        vectors, ids = before.live_vectors()
        base = build_base(vectors, ids, replace(self._options, kind=kind))
        # What a lossy base gives back is near the truth, whatever keeps it now: it is to be scored again.
        return base if base.storage != "fp32" else replace(base, storage=before.base.storage)


def _with_ties(ids: Ids, scores: Scores, k: int) -> tuple[Ids, Scores]:
    """The k best and all that tie with the last of them."""
    if len(scores) <= k:
        return ids, scores
    kept = scores >= np.partition(scores, -k)[-k] - 2 * TIE
    return ids[kept], scores[kept]


def mark_of(external_id: str, vector: NDArray[np.float32]) -> int:
    """A 128-bit number of one (external id, vector); the sum over a gallery is its digest, in whatever order."""
    digest = hashlib.blake2b(external_id.encode() + b"\0", digest_size=16)
    digest.update(np.ascontiguousarray(vector, np.float32).tobytes())
    return int.from_bytes(digest.digest())


def digest_text(total: int) -> str:
    """The digest in hex, from a sum of marks."""
    return f"{total % (1 << 128):032x}"


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
    known = _among(ids, held.base.ids) | _among(ids, held.delta_ids[: held.delta_count])
    return added if not known.any() else [entry for entry, is_known in zip(added, known, strict=True) if not is_known]


def _grown(old: Snapshot, added: Sequence[Entry]) -> Snapshot:
    """The snapshot with more rows; readers of older ones never look past their own count."""
    if not added:
        return old
    count = old.delta_count + len(added)
    delta, delta_ids = old.delta, old.delta_ids
    if count > len(delta_ids):
        capacity = max(count, 2 * len(delta_ids))
        delta = np.empty((capacity, delta.shape[1]), np.float32)
        delta_ids = np.empty(capacity, np.int64)
        delta[: old.delta_count] = old.delta[: old.delta_count]
        delta_ids[: old.delta_count] = old.delta_ids[: old.delta_count]
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


def _buried(old: Snapshot, removed: Sequence[Removal]) -> Snapshot:
    if not removed:
        return old
    base_dead, delta_dead, digest = old.base_dead.copy(), old.delta_dead.copy(), old.digest
    delta_ids = old.delta_ids[: old.delta_count]
    for removal in removed:
        for ids, dead in ((old.base.ids, base_dead), (delta_ids, delta_dead)):
            place = int(np.searchsorted(ids, removal.item_id))
            if place < len(ids) and ids[place] == removal.item_id and not dead[place]:
                dead[place] = True
                digest -= removal.mark
    return replace(old, base_dead=base_dead, base_dead_count=int(base_dead.sum()), delta_dead=delta_dead, digest=digest)


def _carried_over(before: Snapshot, now: Snapshot, base: Base) -> Snapshot:
    """A snapshot over the new base with what was added and buried while it was built."""
    alive = np.concatenate(
        [now.base.ids[~now.base_dead], now.delta_ids[: before.delta_count][~now.delta_dead[: before.delta_count]]]
    )
    later = slice(before.delta_count, now.delta_count)
    fresh = _fresh(base, now.digest)
    count = now.delta_count - before.delta_count
    capacity = max(MERGE_AT, 2 * count)
    delta = np.empty((capacity, base.dimension), np.float32)
    delta_ids = np.empty(capacity, np.int64)
    delta[:count], delta_ids[:count] = now.delta[later], now.delta_ids[later]
    base_dead = ~_among(base.ids, alive)
    return replace(
        fresh,
        base_dead=base_dead,
        base_dead_count=int(base_dead.sum()),
        delta=delta,
        delta_ids=delta_ids,
        delta_count=count,
        delta_dead=now.delta_dead[later].copy(),
    )


def _among(ids: Ids, allowed: Ids | None) -> NDArray[np.bool_]:
    """Which of ascending `ids` are in ascending `allowed`: [n] bool."""
    if allowed is None:
        return np.ones(len(ids), bool)
    found = np.zeros(len(ids), bool)
    if not len(ids):
        return found
    first, last = int(ids[0]), int(ids[-1])
    start, end = np.searchsorted(allowed, (first, last + 1))
    allowed = allowed[start:end]
    if last - first + 1 == len(ids):
        # Nothing was ever replaced: ids are places, and no search is needed.
        found[allowed - first] = True
        return found
    places = np.searchsorted(ids, allowed)
    found[places[ids[places] == allowed]] = True
    return found
