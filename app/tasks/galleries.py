"""The gallery task: galleries, the state of their indexes, and reads that wait for a write."""

import asyncio
from dataclasses import dataclass

from app.errors import Conflict, DeadlineExceeded, QueueFull
from app.stores.index.delta import IndexState
from app.stores.index.follower import Indexes
from app.stores.records.galleries import Galleries, Gallery
from app.stores.sql.database import Database

POLL_S, LONGEST_POLL_S = 0.005, 0.1
LONGEST_WAIT_S = 10.0
"""A process that has not followed the log for so long is not ready either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryState:
    """A gallery, the index behind it, and the last `seq` of the change log."""

    gallery: Gallery
    index: IndexState
    head_seq: int


class GalleryTask:
    """Lists, creates, describes and deletes galleries.

    `all`, `get`, `facets`, `delete` and `vector_counts` have the arguments and errors of the function that they run.

    Args:
        max_waiting: reads that may wait for a write at once.
    """

    def __init__(self, database: Database, galleries: Galleries, indexes: Indexes, *, max_waiting: int) -> None:
        self._database = database
        self._galleries = galleries
        self._indexes = indexes
        self._free_waits = max_waiting
        self.all = database.reads(galleries.all)
        self.get = database.reads(self._state)
        self.facets = database.reads(galleries.facets)
        self.delete = database.writes(galleries.delete)
        self.vector_counts = indexes.counts

    async def put(self, name: str, description: str | None) -> tuple[int, bool, GalleryState]:
        """Create a gallery, or change its description; None leaves it.

        Returns:
            The write's `seq`, whether the gallery is new, and its state.
        """
        return await self._database.run_write(self._put, name, description)

    async def wait_for(self, seq: int, *, timeout_s: float) -> None:
        """Wait until this process has applied the write `seq`.

        Raises:
            Conflict: there is no such write: a number is given out only after its write was committed.
            QueueFull: too many reads wait already.
            DeadlineExceeded: this process has not applied it in time.
        """
        if self._indexes.applied_seq >= seq:
            return
        if self._free_waits <= 0:
            raise QueueFull("Too many reads wait for a write that X-Min-Seq names.", retry_after_s=1.0)
        self._free_waits -= 1
        try:
            await self._wait_for(seq, min(timeout_s, LONGEST_WAIT_S))
        finally:
            self._free_waits += 1

    async def _wait_for(self, seq: int, timeout_s: float) -> None:
        self._indexes.nudge()
        head = await self._database.run(self._galleries.head_seq)
        if head < seq:
            raise Conflict(f"There is no write {seq}: the last one is {head}. Send an X-Seq of this service.")
        loop = asyncio.get_running_loop()
        until_s, poll_s = loop.time() + timeout_s, POLL_S
        # Only memory is read: a wait must not hold a thread of the pool that every other read needs.
        while self._indexes.applied_seq < seq:
            if loop.time() >= until_s:
                raise DeadlineExceeded(f"The write {seq} has not arrived here in time.", retry_after_s=1.0)
            await asyncio.sleep(min(poll_s, until_s - loop.time()))
            poll_s = min(2 * poll_s, LONGEST_POLL_S)

    @property
    def applied_seq(self) -> int:
        """The last write that every index of this process has applied; read from memory."""
        return self._indexes.applied_seq

    @property
    def lag(self) -> int:
        """How many writes the indexes are behind the change log; read from memory."""
        return self._indexes.lag

    def _put(self, name: str, description: str | None) -> tuple[int, bool, GalleryState]:
        # Read in the write's own turn: a read that found no place would refuse what was written.
        seq, is_new = self._galleries.put(name, description)
        return seq, is_new, self._state(name)

    def _state(self, name: str) -> GalleryState:
        """One gallery and its index. Raises NotFound."""
        return GalleryState(
            gallery=self._galleries.get(name),
            index=self._galleries.index_state(name),
            head_seq=self._galleries.head_seq(),
        )
