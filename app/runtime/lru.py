"""An LRU cache bounded in bytes."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
ENTRY_BYTES = 512
"""Overhead of an entry, for sizes of `put` that bound many small values too."""


class ByteLru(Generic[K, V]):
    """Thread-safe LRU cache; the sizes that `put` states sum to at most `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()  # least recently used first
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    @property
    def size_bytes(self) -> int:
        """Sum of the stated sizes of all cached values."""
        return self._size_bytes

    def get(self, key: K) -> V | None:
        """Return the cached value and mark it as used; None if there is none."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V, size_bytes: int) -> None:
        """Cache a value, replacing the one under the key, and drop others until the bound holds."""
        with self._lock:
            self._discard(key)
            if size_bytes > self.max_bytes:
                return  # one large value would drop all others
            self._values[key] = value, size_bytes
            self._size_bytes += size_bytes
            while self._size_bytes > self.max_bytes:
                self._discard(next(iter(self._values)))

    def _discard(self, key: K) -> None:
        if key in self._values:
            self._size_bytes -= self._values.pop(key)[1]
