"""Entries that several threads work on, the least recently used dropped first; bounded in bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

E = TypeVar("E")
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_OVERHEAD_BYTES = 512
"""Of an entry itself, so that many small ones are bounded too."""


class BoundedLru(Generic[E]):
    """Hands out entries and is told what they have come to take; an entry over the bound is not kept.

    Args:
        new: makes an empty entry.
    """

    def __init__(self, new: Callable[[], E], *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._new = new
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, E] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Memory held now, as far as it was told."""
        return self._size_bytes

    def entry(self, key: Hashable) -> E:
        """The entry of a key, a new one where there is none; whoever has it may go on with it after it was dropped."""
        with self._lock:
            if key not in self._entries:
                self._entries[key] = self._new()
                self._resize(key, _OVERHEAD_BYTES)
            self._entries.move_to_end(key)
            entry = self._entries[key]
            self._trim()
        return entry

    def known(self, key: Hashable) -> E | None:
        """The entry of a key, where there is one."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
        return entry

    def weigh(self, key: Hashable, entry: E, size_bytes: int) -> None:
        """Say what an entry takes now; old ones are dropped until the bound holds."""
        with self._lock:
            if self._entries.get(key) is not entry:
                return
            self._resize(key, size_bytes + _OVERHEAD_BYTES)
            if size_bytes > self.max_bytes:
                self._drop(key)
            self._trim()

    def _trim(self) -> None:
        while self._size_bytes > self.max_bytes and self._entries:
            self._drop(next(iter(self._entries)))

    def _resize(self, key: Hashable, size_bytes: int) -> None:
        self._size_bytes += size_bytes - self._sizes.get(key, 0)
        self._sizes[key] = size_bytes

    def _drop(self, key: Hashable) -> None:
        del self._entries[key]
        self._size_bytes -= self._sizes.pop(key)


class ByteLru(Generic[K, V]):
    """Thread-safe LRU cache bounded in bytes; a value over the bound is not cached.

    Args:
        max_bytes: bound on the sum of the sizes that `put` states.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._values)

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
                return
            self._values[key] = value, size_bytes
            self._size_bytes += size_bytes
            while self._size_bytes > self.max_bytes:
                self._discard(next(iter(self._values)))

    def _discard(self, key: K) -> None:
        if key in self._values:
            self._size_bytes -= self._values.pop(key)[1]
