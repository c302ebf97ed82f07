"""Exact search over a gallery: an immutable FAISS base, a small delta and tombstones.

Searches read one snapshot reference; the writer builds the next snapshot and swaps it in. All of it
is derived from SQL and rebuilt from there at start.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

MERGE_AT = 1024
TIE = 1e-6
"""Scores closer than this are ties: FAISS and NumPy may differ in the last bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One found vector: its item's row, external id and cosine similarity."""

    item_id: int
    external_id: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One vector to add: `vector` [D] float32, unit length."""

    item_id: int
    external_id: str
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexState:
    """What `GET /galleries/{name}` tells of an index."""

    kind: str
    vectors: int
    applied_seq: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Snapshot:
    base: faiss.IndexIDMap
    base_ids: NDArray[np.int64]
    delta: NDArray[np.float32]
    delta_ids: NDArray[np.int64]
    dead: frozenset[int]
    external_ids: dict[int, str]
    seq: int

    @property
    def live(self) -> int:
        return len(self.base_ids) + len(self.delta_ids) - len(self.dead)


class VectorIndex:
    """Inner-product search over unit vectors.

    Args:
        dimension: D.
    """

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._snapshot = _build(dimension, np.empty((0, dimension), np.float32), np.empty(0, np.int64), {}, 0)

    def __len__(self) -> int:
        return self._snapshot.live

    def load(self, entries: Sequence[Entry], seq: int) -> None:
        """Replace everything by `entries`, the state at `seq`."""
        vectors = np.stack([entry.vector for entry in entries]) if entries else self._no_vectors()
        ids = np.array([entry.item_id for entry in entries], np.int64)
        names = {entry.item_id: entry.external_id for entry in entries}
        self._snapshot = _build(self._dimension, vectors, ids, names, seq)

    def apply(self, added: Sequence[Entry], removed: Collection[int], seq: int) -> None:
        """Make one write visible; call it from the only writer.

        Args:
            added: new vectors, under row ids never used before.
            removed: row ids that are gone.
            seq: the write's number in the change log.
        """
        old = self._snapshot
        rows = [old.delta, *(entry.vector[None] for entry in added)]
        known = [item_id for item_id in removed if item_id in old.external_ids]
        new = _Snapshot(
            base=old.base,
            base_ids=old.base_ids,
            delta=np.concatenate(rows),
            delta_ids=np.concatenate([old.delta_ids, np.array([e.item_id for e in added], np.int64)]),
            dead=old.dead | frozenset(known),
            external_ids=old.external_ids,
            seq=seq,
        )
        # Row ids are never used twice, so that readers of older snapshots are not disturbed.
        new.external_ids.update({entry.item_id: entry.external_id for entry in added})
        limit = max(MERGE_AT, len(new.base_ids) // 10)
        if len(new.delta_ids) > limit or len(new.dead) > limit:
            new = self._merge(new)
        self._snapshot = new

    def search(self, query: NDArray[np.float32], k: int, min_score: float | None = None) -> tuple[int, list[Hit]]:
        """The k nearest vectors, best first, equal scores by external id.

        Args:
            query: [D] float32, unit length.
            k: how many at most; fewer exist → all that exist.
            min_score: drop what scores less.

        Returns:
            The `seq` of the snapshot searched, and the hits.
        """
        snapshot = self._snapshot
        ids, scores = self._candidates(snapshot, np.ascontiguousarray(query, np.float32), k)
        hits = [
            Hit(item_id=int(i), external_id=snapshot.external_ids[int(i)], score=float(np.clip(s, -1, 1)))
            for i, s in zip(ids, scores, strict=True)
        ]
        hits.sort(key=lambda hit: (-round(hit.score / TIE), hit.external_id))
        if min_score is not None:
            hits = [hit for hit in hits if hit.score >= min_score]
        return snapshot.seq, hits[:k]

    def state(self) -> IndexState:
        """Size, position in the log and a digest of the live (external id, vector) pairs."""
        snapshot = self._snapshot
        vectors, ids = _live_vectors(snapshot)
        order = sorted(range(len(ids)), key=lambda row: snapshot.external_ids[int(ids[row])])
        digest = hashlib.sha256()
        for row in order:
            digest.update(snapshot.external_ids[int(ids[row])].encode())
            digest.update(b"\0")
            digest.update(vectors[row].tobytes())
        return IndexState(kind="flat", vectors=snapshot.live, applied_seq=snapshot.seq, digest=digest.hexdigest())

    def _candidates(
        self, snapshot: _Snapshot, query: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """At least the best k live vectors and all that tie with the last of them."""
        delta_scores = snapshot.delta @ query
        wanted = k + len(snapshot.dead)
        while True:
            fetched = min(wanted, len(snapshot.base_ids))
            ids, scores = snapshot.delta_ids, delta_scores
            floor = -np.inf
            if fetched:
                base_scores, base_ids = snapshot.base.search(query[None], fetched)
                ids = np.concatenate([base_ids[0], ids])
                scores = np.concatenate([base_scores[0], scores])
                floor = base_scores[0, -1]
            if snapshot.dead:
                alive = np.array([int(i) not in snapshot.dead for i in ids], bool)
                ids, scores = ids[alive], scores[alive]
            if fetched == len(snapshot.base_ids):
                return ids, scores
            if len(scores) >= k and floor < np.partition(scores, -k)[-k] - 2 * TIE:
                return ids, scores
            wanted *= 2

    def _merge(self, snapshot: _Snapshot) -> _Snapshot:
        vectors, ids = _live_vectors(snapshot)
        names = {int(i): snapshot.external_ids[int(i)] for i in ids}
        return _build(self._dimension, vectors, ids, names, snapshot.seq)

    def _no_vectors(self) -> NDArray[np.float32]:
        return np.empty((0, self._dimension), np.float32)


def _build(
    dimension: int, vectors: NDArray[np.float32], ids: NDArray[np.int64], names: dict[int, str], seq: int
) -> _Snapshot:
    base = faiss.IndexIDMap(faiss.IndexFlatIP(dimension))
    if len(ids):
        base.add_with_ids(np.ascontiguousarray(vectors, np.float32), ids)
    return _Snapshot(
        base=base,
        base_ids=ids,
        delta=np.empty((0, dimension), np.float32),
        delta_ids=np.empty(0, np.int64),
        dead=frozenset(),
        external_ids=names,
        seq=seq,
    )


def _live_vectors(snapshot: _Snapshot) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    flat = faiss.downcast_index(snapshot.base.index)
    stored = flat.reconstruct_n(0, len(snapshot.base_ids)) if len(snapshot.base_ids) else snapshot.delta[:0]
    vectors = np.concatenate([stored, snapshot.delta])
    ids = np.concatenate([snapshot.base_ids, snapshot.delta_ids])
    alive = np.array([int(i) not in snapshot.dead for i in ids], bool)
    return vectors[alive], ids[alive]
