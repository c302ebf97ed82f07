"""The vector indexes of all galleries; each process keeps its own in step with the change log."""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.errors import NotFound, ServiceError
from app.runtime.telemetry import get_logger
from app.stores.index.base import IndexOptions
from app.stores.index.delta import IndexState, VectorIndex, digest_text
from app.stores.index.rows import read_all, read_changed
from app.stores.index.snapshots import IndexSnapshots, SnapshotKey
from app.stores.sql import change_log, metadata
from app.stores.sql.database import Database
from app.stores.sql.tables import IS_LIVE, galleries, items

CHANGES_AT_ONCE = 4096
FOLLOW_TIMEOUT_S = 10.0
MERGE_BACKOFF_S = 60.0  # time after a failed merge before the next attempt


@dataclass(slots=True, kw_only=True)
class _Followed:
    name: str
    index: VectorIndex


class Indexes:
    """One index per gallery, in step with SQL.

    Local and foreign writes take the same path: `catch_up` reads what was committed since and applies it, so two
    processes that have applied the same `seq` hold the same vectors.

    Args:
        dimension: D of the bundle's vectors.
        fingerprint: of the bundle; nothing is served while another bundle's vectors are active.
        options: which kind of index is built at which size.
        snapshots: where indexes are saved for the next start; None saves nothing.
    """

    def __init__(
        self,
        database: Database,
        *,
        dimension: int,
        fingerprint: str,
        options: IndexOptions,
        snapshots: IndexSnapshots | None,
    ) -> None:
        self._database = database
        self._dimension = dimension
        self._fingerprint = fingerprint
        self._options = options
        self._snapshots = snapshots
        self._lock = threading.Lock()  # one thread at a time applies changes
        self._by_id: dict[int, _Followed] = {}
        self.active_fingerprint = fingerprint
        self.applied_seq = 0
        self.left_out = 0  # live items that no index holds, because their vectors are damaged or missing
        self._head_seq = 0
        # One thread: merges queue here, away from the threads that search and write.
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="index-builder")
        self._building: set[int] = set()
        self._retry_at_s: dict[int, float] = {}
        self._follower: threading.Thread | None = None
        self._wake = threading.Event()
        self._is_closed = False
        self._followed_at_s = time.monotonic()
        self._timeout_s = math.inf
        self._has_failed = False

    @property
    def is_current(self) -> bool:
        """Whether this process follows the log; False after a fault, or once the database was away too long."""
        is_alive = self._follower is not None and self._follower.is_alive()
        is_in_time = time.monotonic() - self._followed_at_s <= self._timeout_s
        return is_alive and is_in_time and not self._has_failed

    @property
    def lag(self) -> int:
        """Number of changes that were seen in the log and are not applied yet."""
        return max(0, self._head_seq - self.applied_seq)

    def load(self) -> None:
        """Bring every index to the head of the log, from its snapshot if that is sound, else from SQL."""
        with self._lock, self._database.read(limit_s=None) as connection:
            self._reload(connection)

    def follow(self, interval_s: float | None) -> None:
        """Start the thread that catches up after every `nudge`, and every `interval_s` if other processes write."""
        if interval_s is not None:
            self._timeout_s = FOLLOW_TIMEOUT_S + 2 * interval_s
        self._followed_at_s = time.monotonic()
        self._follower = threading.Thread(target=self._follow, args=(interval_s,), name="log-follower", daemon=True)
        self._follower.start()

    def nudge(self) -> None:
        """Wake the following thread: something was written whose writer does not wait for the index."""
        self._wake.set()

    def close(self) -> None:
        """Stop following, wait for a running merge, and save all indexes for the next start."""
        self._is_closed = True
        self._wake.set()
        if self._follower is not None:
            self._follower.join()
        self.discard()
        self._save(list(self._by_id))

    def discard(self) -> None:
        """Wait for a running merge; saves nothing."""
        self._builder.shutdown(wait=True, cancel_futures=True)

    def settle(self) -> None:
        """Run all merges that are due, in the calling thread."""
        for followed in list(self._by_id.values()):
            while followed.index.wants_merge:
                followed.index.merge()

    def catch_up(self) -> int:
        """Apply every change committed so far; returns the `seq` reached."""
        with self._lock:
            while True:
                with self._database.read(limit_s=None) as connection:
                    head = self._head_seq = change_log.head(connection)
                    if self.applied_seq >= head:
                        return self.applied_seq
                    if not self._can_follow(connection):
                        self._reload(connection)
                    else:
                        self._apply(connection, change_log.after(connection, self.applied_seq, CHANGES_AT_ONCE), head)

    def follow_write(self, *, wait: bool = True) -> None:
        """Apply what the caller has committed, now or, where it need not or cannot wait, soon. Raises nothing of SQL's.

        The write is done: an error here must not say that it failed.
        """
        if not wait:
            self.nudge()
            return
        try:
            self.catch_up()
        except ServiceError as err:
            get_logger().warning("index_follows_later", exc_info=err)
            self.nudge()

    def require_active(self) -> None:
        """Raises FingerprintMismatch if another bundle's vectors are active."""
        if not self._is_active:
            raise metadata.mismatch()

    def require(self, name: str) -> None:
        """Check, before anything is spent on a query, that `search` accepts it; reads memory only.

        Raises:
            NotFound, FingerprintMismatch: as `search`.
        """
        self.require_active()
        self._index(name)

    def search(
        self, name: str, query: NDArray[np.float32], k: int, allowed: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], bool]:
        """Return candidates as `VectorIndex.search`, and whether their scores are approximate.

        Raises:
            NotFound: there is no such gallery.
            FingerprintMismatch: another bundle's vectors are active.
        """
        self.require_active()
        index = self._index(name)
        snapshot = index.snapshot  # one state for candidates and storage: a merge may swap it meanwhile
        ids, scores = index.search(query, k, allowed, snapshot=snapshot)
        return ids, scores, snapshot.base.storage != "fp32"

    def state(self, name: str) -> IndexState:
        """Return the state of a gallery's index. Raises NotFound, FingerprintMismatch."""
        self.require_active()
        with self._lock:
            return self._index(name).state(self.applied_seq)

    def count(self, name: str) -> int:
        """Return the number of searchable vectors of a gallery; reads memory only. Raises NotFound."""
        return len(self._index(name))

    def counts(self) -> Mapping[str, int]:
        """Return the number of searchable vectors per gallery; reads memory only."""
        return {followed.name: len(followed.index) for followed in list(self._by_id.values())}

    def true_digests(self) -> Mapping[str, str]:
        """Return the digest that each gallery's index must have, computed from SQL alone."""
        with self._database.read(limit_s=None) as connection:
            rows = connection.execute(sa.select(galleries.c.id, galleries.c.name)).all()
            return {row.name: digest_text(read_all(connection, row.id, self._fingerprint, 0)[2]) for row in rows}

    def differing(self) -> Sequence[str]:
        """Return galleries whose index holds other vectors than SQL; reads all of both.

        A digest is updated from write to write, this compares what is searched. Vectors in lossy storage are compared
        by id only.
        """
        found = []
        with self._database.read(limit_s=None) as connection:
            for key, followed in self._by_id.items():
                snapshot = followed.index.snapshot
                held, held_ids = snapshot.live_vectors()
                vectors, ids, _ = read_all(connection, key, self._fingerprint, self._dimension)
                is_exact = snapshot.base.storage == "fp32"
                if not np.array_equal(held_ids, ids) or (is_exact and not np.array_equal(held, vectors)):
                    found.append(followed.name)
        return found

    @property
    def _is_active(self) -> bool:
        return self.active_fingerprint == self._fingerprint

    def _index(self, name: str) -> VectorIndex:
        for followed in list(self._by_id.values()):  # without the lock: the follower may replace it
            if followed.name == name:
                return followed.index
        raise NotFound(f"There is no gallery {name!r}.")

    def _follow(self, interval_s: float | None) -> None:
        while not self._is_closed:
            self._wake.wait(interval_s)
            self._wake.clear()
            try:
                self.catch_up()
                self._followed_at_s, self._has_failed = time.monotonic(), False
            except Exception as err:  # noqa: BLE001  # the thread must outlive any fault, and retries
                # An unreachable database is tolerated until the timeout; any other fault ends readiness at once.
                if not isinstance(err, ServiceError) and not self._has_failed:
                    self._has_failed = True
                    get_logger().error("log_not_followed", exc_info=err)
                time.sleep(interval_s or 0.1)
                self._wake.set()

    def _can_follow(self, connection: sa.Connection) -> bool:
        """Whether this bundle is active and the log still holds every change since `applied_seq`."""
        is_active = metadata.read(connection, metadata.FINGERPRINT) == self._fingerprint
        return is_active and self._is_active and change_log.vacuumed(connection) <= self.applied_seq

    def _reload(self, connection: sa.Connection) -> None:
        head = change_log.head(connection)  # in the same snapshot as the rows below
        self.active_fingerprint = metadata.read(connection, metadata.FINGERPRINT) or self._fingerprint
        loaded: dict[int, _Followed] = {}
        left_out = 0
        for row in connection.execute(sa.select(galleries.c.id, galleries.c.name)).all():
            followed = loaded[row.id] = self._followed(row.name)
            if self._is_active and not self._restored(connection, row.id, followed.index):
                followed.index.load(*read_all(connection, row.id, self._fingerprint, self._dimension))
                left_out += _live_count(connection, row.id) - len(followed.index)
        self._by_id = loaded  # one swap: searches never see half of it
        self.left_out = left_out
        self.applied_seq = head
        self._schedule_merges()

    def _restored(self, connection: sa.Connection, gallery_id: int, index: VectorIndex) -> bool:
        """Restore the index from its snapshot and the changes since; False if there is none or the count differs."""
        if self._snapshots is None:
            return False
        saved, head = self._snapshots.read(self._key(connection, gallery_id)), change_log.head(connection)
        if saved is None or not change_log.vacuumed(connection) <= saved[1] <= head:
            return False
        index.snapshot, seq = saved
        found, _ = read_changed(connection, self._fingerprint, seq, head, gallery_id=gallery_id)
        for added, removed in found.values():
            index.apply(added, removed)
        # A last check against SQL: whatever went wrong with the snapshot, the gallery is read again.
        return len(index) == _live_count(connection, gallery_id)

    def _apply(self, connection: sa.Connection, found: Sequence[change_log.Change], head: int) -> None:
        upto = found[-1].seq
        if any(change.kind.startswith("gallery.") for change in found):
            self._update_galleries(connection)
        changed, damaged = read_changed(connection, self._fingerprint, self.applied_seq, upto)
        for gallery_id, (added, removed) in changed.items():
            followed = self._by_id.get(gallery_id)
            if followed is not None:
                followed.index.apply(added, removed)
        self.left_out += damaged
        # Repaired, replaced or deleted perhaps. Only at the head: the rows that are counted are those of the head.
        if self.left_out and upto == head:
            counts = (_live_count(connection, key) - len(one.index) for key, one in self._by_id.items())
            self.left_out = max(0, sum(counts))
        self.applied_seq = upto  # last: an answer is never older than the seq it reports
        self._schedule_merges()

    def _update_galleries(self, connection: sa.Connection) -> None:
        rows = connection.execute(sa.select(galleries.c.id, galleries.c.name)).all()
        # Replaced, never changed: searches read it without the lock.
        self._by_id = {row.id: self._by_id.get(row.id) or self._followed(row.name) for row in rows}

    def _followed(self, name: str) -> _Followed:
        return _Followed(name=name, index=VectorIndex(self._dimension, self._options))

    def _schedule_merges(self) -> None:
        for key, followed in self._by_id.items():
            may_retry = self._retry_at_s.get(key, 0.0) <= time.monotonic()
            if key not in self._building and may_retry and followed.index.wants_merge:
                self._building.add(key)
                merging = self._builder.submit(self._merge, key, followed.index)
                merging.add_done_callback(partial(self._merged, key))

    def _merge(self, key: int, index: VectorIndex) -> None:
        index.merge()
        self._building.discard(key)  # before saving: the next merge need not wait for the disk
        self._save([key])

    def _merged(self, key: int, merging: Future[None]) -> None:
        self._building.discard(key)
        error = None if merging.cancelled() else merging.exception()
        if error is not None:
            self._retry_at_s[key] = time.monotonic() + MERGE_BACKOFF_S
            get_logger().error("index_not_merged", exc_info=error)

    def _save(self, keys: Sequence[int]) -> None:
        if self._snapshots is None or not self._is_active:
            return  # another bundle's vectors are active: nothing is loaded here
        with self._lock:  # only to take seq and states together: writing them may take seconds
            seq = self.applied_seq
            states = {key: self._by_id[key].index.snapshot for key in keys if key in self._by_id}
            present = list(self._by_id)
        try:
            with self._database.read(limit_s=None) as connection:
                named = {key: self._key(connection, key) for key in states}
        except ServiceError:
            return  # the next start uses an older snapshot, or SQL
        for key, snapshot in states.items():
            self._snapshots.write(named[key], snapshot, seq)
        self._snapshots.keep_only(present)

    def _key(self, connection: sa.Connection, gallery_id: int) -> SnapshotKey:
        return SnapshotKey(
            database_id=metadata.read(connection, metadata.DATABASE_ID) or "",
            gallery_id=gallery_id,
            fingerprint=self._fingerprint,
            dimension=self._dimension,
        )


def _live_count(connection: sa.Connection, gallery_id: int) -> int:
    live = sa.select(sa.func.count()).where(items.c.gallery_id == gallery_id, IS_LIVE)
    count: int = connection.execute(live).scalar_one()
    return count
