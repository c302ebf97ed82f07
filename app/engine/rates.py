"""How fast the device gets through work, learnt from what it did."""

import math

import numpy as np

from app.engine.entries import Batch, Group


class DrainRate:
    """Cost a second while there was work, the last few seconds counting most.

    Args:
        memory_s: after so many busy seconds an old measurement counts for a third.
    """

    def __init__(self, *, memory_s: float = 4.0) -> None:
        self._memory_s = memory_s
        self._cost = 0.0
        self._busy_s = 0.0

    def observe(self, cost: float, busy_s: float, share: float = 1.0) -> None:
        """Learn from a pass that took so long.

        Args:
            share: of that time which the same work takes in full batches, see `SoloTimes.share`.
        """
        kept = math.exp(-busy_s / self._memory_s)
        self._cost = self._cost * kept + cost
        self._busy_s = self._busy_s * kept + max(busy_s * share, 1e-6)

    def seconds_for(self, cost: float) -> float | None:
        """How long this cost will take; None before anything was measured."""
        return cost * self._busy_s / self._cost if self._cost else None


class SoloTimes:
    """What passes of each size took with nothing waiting: how much cheaper a sample is in a full batch.

    Passes that run because little waits are small, and on a device whose passes all take alike they say nothing of how
    fast it would get through more.
    """

    def __init__(self) -> None:
        self._seconds: dict[Group, dict[int, float]] = {}

    def observe(self, group: Group, size: int, seconds: float) -> None:
        """Learn from one pass; of several of a size the fastest counts."""
        known = self._seconds.get(group, {})
        fastest = min(seconds, known.get(size, seconds))
        self._seconds[group] = dict(sorted({**known, size: fastest}.items()))

    def share(self, group: Group, size: int, largest: int) -> float:
        """Time of a sample in the largest batch over that in one of this size; 1 where nothing is known."""
        if group.bucket:
            # A bucket takes its time whatever it holds.
            return size / group.bucket
        known = self._seconds.get(group)
        if not known:
            return 1.0
        sizes, seconds = list(known), list(known.values())
        largest = min(largest, sizes[-1])
        full_s, this_s = (float(np.interp(each, sizes, seconds)) / each for each in (largest, size))
        return min(1.0, full_s / this_s) if this_s else 1.0


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
    return batch.group, (len(batch.entries) - 1).bit_length()
