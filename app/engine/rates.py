"""How fast the device gets through work, learnt from what it did."""

import math

from app.engine.work import Batch, Group


class DrainRate:
    """Cost a second while there was work, the last few seconds counting most.

    Args:
        memory_s: after so many busy seconds an old measurement counts for a third.
    """

    def __init__(self, *, memory_s: float = 4.0) -> None:
        self._memory_s = memory_s
        self._cost = 0.0
        self._busy_s = 0.0

    def observe(self, cost: float, busy_s: float) -> None:
        """Learn from work that took so long, waiting included, while the rest waited behind it."""
        kept = math.exp(-busy_s / self._memory_s)
        self._cost = self._cost * kept + cost
        self._busy_s = self._busy_s * kept + max(busy_s, 1e-6)

    def seconds_for(self, cost: float) -> float | None:
        """How long this cost will take; None before anything was measured."""
        return cost * self._busy_s / self._cost if self._cost else None


class PassTimes:
    """Expected length of a pass by group and size (to the next power of two)."""

    def __init__(self, *, smoothing: float = 0.3) -> None:
        self._smoothing = smoothing
        self._seconds: dict[tuple[Group, int], float] = {}

    def observe(self, batch: Batch, duration_s: float) -> None:
        """Learn from one pass."""
        key = _key(batch)
        known = self._seconds.get(key)
        self._seconds[key] = duration_s if known is None else known + self._smoothing * (duration_s - known)

    def expected_s(self, batch: Batch) -> float | None:
        """None for a size that was never seen."""
        return self._seconds.get(_key(batch))


def _key(batch: Batch) -> tuple[Group, int]:
    return batch.group, (len(batch.works) - 1).bit_length()
