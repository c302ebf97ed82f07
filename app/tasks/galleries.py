"""The gallery task: galleries, the state of their indexes, and reads that wait for a write."""

import asyncio
from dataclasses import dataclass

from app.errors import DeadlineExceeded
from app.stores.index.delta import IndexState
from app.stores.index.follower import Indexes
from app.stores.records.galleries import Galleries, Gallery
from app.stores.sql.database import Database

POLL_S = 0.02
LONGEST_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryState:
    """A gallery, the index behind it, and the last `seq` of the change log."""

    gallery: Gallery
    index: IndexState
    head_seq: int


class GalleryTask:
    """Lists, creates, describes and deletes galleries.

    `all`, `get`, `delete` and `vector_counts` have the arguments and errors of the function that they run.
    """

    def __init__(self, database: Database, galleries: Galleries, indexes: Indexes) -> None:
        self._database = database
        self._galleries = galleries
        self._indexes = indexes
        self.all = database.reads(galleries.all)
        self.get = database.reads(self._state)
        self.delete = database.writes(galleries.delete)
        self.vector_counts = indexes.counts

    async def put(self, name: str, description: str | None) -> tuple[int, bool, GalleryState]:
        """Create a gallery, or change its description; None leaves it.

        Returns:
            The write's `seq`, whether the gallery is new, and its state.
        """
        # Written and read in two turns: the state shows the write, and maybe a later one.
        seq, is_new = await self._database.run_write(self._galleries.put, name, description)
        return seq, is_new, await self.get(name)

    async def wait_for(self, seq: int, *, timeout_s: float) -> None:
        """Wait until this process has applied the write `seq`. Raises DeadlineExceeded."""
        loop = asyncio.get_running_loop()
        until_s, poll_s = loop.time() + timeout_s, POLL_S
        # The first look is in memory; only a process that is behind asks the database.
        while self._indexes.applied_seq < seq and await self._database.run(self._indexes.catch_up) < seq:
            if loop.time() >= until_s:
                raise DeadlineExceeded(f"The write {seq} has not arrived here in time.")
            # Poll less and less often: the write may be late, or may not exist.
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

    def _state(self, name: str) -> GalleryState:
        """One gallery and its index. Raises NotFound."""
        return GalleryState(
            gallery=self._galleries.get(name),
            index=self._galleries.index_state(name),
            head_seq=self._galleries.head_seq(),
        )
