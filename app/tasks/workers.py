"""The bounded pool for the maths of the heads, off the event loop."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from app.engine.admission import MAX_RETRY_AFTER_S, DrainRate
from app.errors import QueueFull

P = ParamSpec("P")
T = TypeVar("T")
MAX_CELLS_WAITING = 1 << 30
"""Most (pixel, class) pairs reserved at once; the largest request takes a sixteenth of it."""


class Workers:
    """A few threads, with a bound on the calls that wait and on the cells that requests reserve."""

    def __init__(self, *, threads: int = 2, max_pending: int = 64, max_cells: int = MAX_CELLS_WAITING) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="heads")
        self._max_pending = max_pending
        self._max_cells = max_cells
        self._pending = 0
        self._cells = 0
        self._rate = DrainRate()

    @contextmanager
    def room(self, cells: int) -> Iterator[None]:
        """Reserve room for this many (pixel, class) pairs until the block ends.

        Raises:
            QueueFull: too many are reserved; a single request is always admitted.
        """
        if self._cells and self._cells + cells > self._max_cells:
            wait_s = self._rate.seconds_for(self._cells) or 1.0
            raise QueueFull("Too many masks wait to be computed.", retry_after_s=min(MAX_RETRY_AFTER_S, wait_s))
        self._cells += cells
        started_s = time.monotonic()
        try:
            yield
        finally:
            # Everything reserved drained side by side with this request.
            self._rate.observe(self._cells, time.monotonic() - started_s)
            self._cells -= cells

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the function in the pool and return its result.

        Raises:
            QueueFull: too many calls wait.
        """
        if self._pending >= self._max_pending:  # the executor's own queue has no bound
            raise QueueFull("Too many requests wait for the worker pool.", retry_after_s=1.0)
        self._pending += 1
        try:
            loop = asyncio.get_running_loop()
            # A lambda, since `run_in_executor` takes no keyword arguments.
            return await loop.run_in_executor(self._pool, lambda: function(*args, **kwargs))
        finally:
            self._pending -= 1

    def close(self) -> None:
        """Wait for running calls and end the threads."""
        self._pool.shutdown(wait=True)
