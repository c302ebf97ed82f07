"""Admission: the queue is bounded in cost, hopeless deadlines are refused, and refusals say when to retry."""

import math
from typing import Protocol

import numpy as np

from app.engine.entries import VIEW_COST, Batch, EntryQueue, Group, RequestLine
from app.errors import DeadlineExceeded, QueueFull
from app.runtime.telemetry import Telemetry

MAX_RETRY_AFTER_S = 60.0


class Backlog(Protocol):
    """The cost at each stage of the engine; implemented by `Scheduler`.

    Attributes:
        queue: the entries that wait for the device.
        rate: how fast cost drains.
        reserved: cost reserved for requests whose samples are still being decoded.
    """

    queue: EntryQueue
    rate: "DrainRate"
    reserved: int

    def in_flight(self) -> float:
        """Cost with the device, less the part that is done."""

    def release(self, cost: int) -> None:
        """Give reserved cost back."""


class Admission:
    """Admits requests while what goes to the device before they are done stays within a bound.

    Requests take turns, so of the others counts only what they send in as many turns: a small request never waits for
    the whole of a large one, nor is it refused for it.

    Args:
        max_cost: the bound; a request over it is admitted only when nothing waits.
        pass_cost: the cost of a full pass, which is a turn.
    """

    def __init__(self, backlog: Backlog, telemetry: Telemetry, *, max_cost: int, pass_cost: int) -> None:
        self.backlog = backlog
        self.lines: set[RequestLine] = set()  # of all requests that hold a reservation
        self._telemetry = telemetry
        self._max_cost = max_cost
        self._pass_cost = pass_cost

    def waiting(self) -> int:
        """Cost in the queue, and cost reserved."""
        return self.backlog.queue.cost + self.backlog.reserved

    def check(self, line: RequestLine, cost: int, timeout_s: float | None) -> None:
        """Refuse this much more cost for a request if it does not fit or cannot be done in time.

        Raises:
            QueueFull: over the bound; `retry_after_s` is when all that was before it will be done.
            DeadlineExceeded: it would not be done within `timeout_s`.
        """
        if cost <= 0:  # everything is cached or already in the queue
            return
        waiting = self.waiting()
        all_s = self.backlog.rate.seconds_for(self.backlog.in_flight() + waiting + cost) or 0.0
        # With an empty queue the request is tried: a request over the bound would never fit, and alone it is the only
        # one that it delays; the rate may be stale, and only a pass corrects it.
        if not waiting or (waiting + cost <= self._max_cost and (timeout_s is None or all_s <= timeout_s)):
            return
        own = line.waiting + cost
        turns = math.ceil(own / self._pass_cost)
        before = self.backlog.in_flight() + line.waiting + self._others(line, turns * self._pass_cost)
        before_s, own_s = (self.backlog.rate.seconds_for(each) or 0.0 for each in (before, cost))
        retry_after_s = min(MAX_RETRY_AFTER_S, max(1.0, before_s))
        if self._others(line, own) + own > self._max_cost:
            self._telemetry.requests_rejected.labels("queue_full").inc()
            raise QueueFull("The queue for the device is full.", retry_after_s=retry_after_s)
        if timeout_s is not None and before_s + own_s > timeout_s:
            self._telemetry.requests_rejected.labels("deadline").inc()
            whole_s = self.backlog.rate.seconds_for(own) or 0.0
            if whole_s > timeout_s:  # no time to come would do
                raise DeadlineExceeded(
                    f"The request takes the device about {whole_s:.0f} s, and {timeout_s:.0f} s are left: ask for less."
                )
            raise DeadlineExceeded("The queue is longer than the deadline.", retry_after_s=retry_after_s)

    def _others(self, line: RequestLine, most: int) -> int:
        """What waits for other requests, at most so much of each."""
        return sum(min(other.waiting, most) for other in self.lines if other is not line)


class Reservation:
    """Room for one request's samples, held from its arrival until the block ends."""

    def __init__(self, admission: Admission, cost: int, timeout_s: float | None, *, view_cost: int = VIEW_COST) -> None:
        self.line = RequestLine()
        self._admission = admission
        self._timeout_s = timeout_s
        self._view_cost = view_cost
        self._claim(cost)
        admission.lines.add(self.line)

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(self, *error: object) -> None:
        self.use(self.line.reserved)
        self._admission.lines.discard(self.line)

    def grow(self, *, views: int) -> None:
        """Reserve more. Raises as `Admission.check`."""
        self._claim(views * self._view_cost)

    def use(self, cost: int) -> int:
        """Turn reserved cost into samples; returns the cost that was not reserved and must be admitted."""
        used = min(cost, self.line.reserved)
        self.line.reserved -= used
        self._admission.backlog.release(used)
        return cost - used

    def _claim(self, cost: int) -> None:
        # Checked before the cost counts, so that a refusal leaves nothing.
        self._admission.check(self.line, cost, self._timeout_s)
        self.line.reserved += cost
        self._admission.backlog.reserved += cost


class DrainRate:
    """Cost per second while the device was busy; the last seconds count most.

    Args:
        memory_s: after this many busy seconds an old measurement counts for 1/e.
    """

    def __init__(self, *, memory_s: float = 4.0) -> None:
        self._memory_s = memory_s
        self._cost = 0.0
        self._busy_s = 0.0

    def observe(self, cost: float, busy_s: float, share: float = 1.0) -> None:
        """Learn from one pass; `share` of its time is what its samples take in full batches (`PassTimes`)."""
        # Decay by busy time: an idle hour must not forget how fast the device is.
        remembered = math.exp(-busy_s / self._memory_s)
        self._cost = self._cost * remembered + cost
        self._busy_s = self._busy_s * remembered + max(busy_s * share, 1e-6)

    def seconds_for(self, cost: float) -> float | None:
        """How long this cost takes; None before any measurement."""
        return cost * self._busy_s / self._cost if self._cost else None


class PassTimes:
    """How long passes take, by group and size.

    Args:
        smoothing: weight of the newest pass in the expected time.
    """

    def __init__(self, *, smoothing: float = 0.3) -> None:
        self._smoothing = smoothing
        self._expected_s: dict[tuple[Group, int], float] = {}
        self._warm_up_s: dict[Group, dict[int, float]] = {}

    def observe(self, batch: Batch, duration_s: float) -> None:
        """Learn from one pass."""
        key = _size_class(batch)
        known_s = self._expected_s.get(key, duration_s)
        self._expected_s[key] = known_s + self._smoothing * (duration_s - known_s)

    def observe_warm_up(self, batch: Batch, duration_s: float) -> None:
        """Learn from a pass with nothing beside it; of several of one size the fastest counts."""
        known_s = self._warm_up_s.get(batch.group, {})
        fastest_s = min(duration_s, known_s.get(len(batch.entries), duration_s))
        self._warm_up_s[batch.group] = dict(sorted({**known_s, len(batch.entries): fastest_s}.items()))
        self.observe(batch, duration_s)

    def largest_warm_up(self, group: Group) -> tuple[int, float]:
        """The largest size of this group that was warmed up, and how long its pass took."""
        return list(self._warm_up_s[group].items())[-1]

    def slowest_warm_up_s(self) -> float:
        """How long the slowest pass of the warm-up took; 0 before."""
        return max((max(known_s.values()) for known_s in self._warm_up_s.values()), default=0.0)

    def slowest_view_s(self) -> float:
        """How long a view takes in the best size of the slowest group; 0 before the warm-up."""
        groups = (min(pass_s / size for size, pass_s in known_s.items()) for known_s in self._warm_up_s.values())
        return max(groups, default=0.0)

    def expected_s(self, batch: Batch) -> float | None:
        """Expected length of a pass of this group and size (to the next power of two); None for an unseen size."""
        return self._expected_s.get(_size_class(batch))

    def share_of_full(self, group: Group, size: int, largest: int) -> float:
        """Time per sample in the largest batch over that in one of this size; 1 where nothing is known.

        Small passes run because little waits: on a device whose passes all take the same time, they do not tell how
        fast it would drain a queue.
        """
        if group.bucket:
            return size / group.bucket  # a padded pass takes the same time whatever it holds
        known_s = self._warm_up_s.get(group)
        if not known_s:
            return 1.0
        # Warm-up runs powers of two only; sizes between them are interpolated.
        sizes, seconds = list(known_s), list(known_s.values())
        largest = min(largest, sizes[-1])
        full_s, this_s = (float(np.interp(each, sizes, seconds)) / each for each in (largest, size))
        return min(1.0, full_s / this_s) if this_s else 1.0


def _size_class(batch: Batch) -> tuple[Group, int]:
    # Powers of two: every size of its own would be seen too rarely.
    return batch.group, (len(batch.entries) - 1).bit_length()
