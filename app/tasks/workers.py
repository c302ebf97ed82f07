"""The bounded pool in which head maths runs, off the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from app.errors import QueueFull

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """A few threads and a bound on what waits for them."""

    def __init__(self, *, threads: int = 2, max_pending: int = 64) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="heads")
        self._max_pending = max_pending
        self._pending = 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result, worked out in the pool.

        Raises:
            QueueFull: too many calls wait already.
        """
        if self._pending >= self._max_pending:
            raise QueueFull("Too many requests wait for the worker pool.", retry_after_s=1.0)
        self._pending += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, lambda: function(*args, **kwargs))
        finally:
            self._pending -= 1

    def close(self) -> None:
        """Wait for what runs and end the threads."""
        self._pool.shutdown(wait=True)
