"""Queue entries, their queue, the batches that carry them through the device, and the device's interface."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from app.domain import Features, View

VIEW_COST = 8  # in units of one string
TEXT_COST = 1


class DeviceFatal(Exception):
    """The device is in a state that only a new process can leave."""


class DeviceOutOfMemory(Exception):
    """The batch did not fit; a smaller one may."""


class Kind(StrEnum):
    """The two device operations."""

    IMAGES = "images"
    TEXTS = "texts"


@dataclass(frozen=True, slots=True)
class Group:
    """Samples of one group may share a batch: they have one operation, one shape and one way of computation.

    Attributes:
        shape: of a view's pixels.
        bucket: every pass is padded to exactly this many samples; 0 for batches of any size. Reproducible strings go
            alone (bucket 1): the padding of a string, and with it the last bits, would depend on the others.
        is_captioned: used in buckets only, where the captioner must see the same number of images in every pass.
    """

    kind: Kind
    shape: tuple[int, ...] = ()  # views of different shapes cannot be stacked
    bucket: int = 0
    is_captioned: bool = False


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Everything that decides a sample's features; `identity` is a view's key or the string itself."""

    group: Group
    identity: str
    caption: str | None
    timestep: int
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waiter:
    """A caller that waits for an entry, from `joined_s` until `deadline_s` of the engine's clock."""

    entry: "Entry"
    future: "asyncio.Future[Features]"
    joined_s: float
    deadline_s: float


# eq=False: entries are compared by identity, since two callers may ask for equal samples at different times.
@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """A sample that waits for the device, and the callers that wait for it.

    Only the loop thread writes to it and touches futures. The device's thread reads `deadline_s`, one number that tells
    both whether anyone waits (else minus infinity) and until when.

    Attributes:
        deadline_s: the latest deadline of its waiters; a pass that starts then or later leaves the entry out.
        has_left_queue: a batch took it, or it was dropped because nobody waits.
    """

    key: CacheKey
    payload: View | str
    cost: int
    arrived_s: float
    deadline_s: float = -math.inf
    waiters: list[Waiter] = field(default_factory=list)
    has_left_queue: bool = False

    @property
    def is_wanted(self) -> bool:
        """Whether anyone waits for it."""
        return self.deadline_s > -math.inf

    def is_live(self, now_s: float) -> bool:
        """Whether anyone still takes the answer of a pass that starts now."""
        return self.deadline_s > now_s

    def join(self, now_s: float, deadline_s: float) -> Waiter:
        """Add a caller."""
        future: asyncio.Future[Features] = asyncio.get_running_loop().create_future()
        waiter = Waiter(entry=self, future=future, joined_s=now_s, deadline_s=deadline_s)
        self.waiters.append(waiter)
        self.deadline_s = max(self.deadline_s, deadline_s)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Remove a caller."""
        if waiter in self.waiters:
            self.waiters.remove(waiter)
            # The device's thread may read this now: one assignment, so it sees the old or the new value.
            self.deadline_s = max((rest.deadline_s for rest in self.waiters), default=-math.inf)

    def resolve(self, features: Features, *, queue_s: float, inference_s: float) -> None:
        """Answer all waiters; one that joined late reports only its own time in the queue and in the pass."""
        for waiter in self.waiters:
            if not waiter.future.done():  # done: its caller was cancelled
                late_s = waiter.joined_s - self.arrived_s
                own_queue_s = max(0.0, queue_s - late_s)
                own_inference_s = max(0.0, min(inference_s, queue_s + inference_s - late_s))
                waiter.future.set_result(
                    replace(features, queue_ms=own_queue_s * 1000, inference_ms=own_inference_s * 1000)
                )

    def fail(self, error: Exception) -> None:
        """Fail all waiters."""
        for waiter in self.waiters:
            if not waiter.future.done():
                waiter.future.set_exception(error)


class EntryQueue:
    """Waiting entries in order of arrival, one line per group.

    Attributes:
        cost: of all entries that wait and are still wanted.
    """

    def __init__(self) -> None:
        self.cost = 0
        self._lines: dict[Group, deque[Entry]] = {}

    def put(self, entry: Entry) -> None:
        """Add an entry at the end of its group's line."""
        self._lines.setdefault(entry.key.group, deque()).append(entry)
        self.cost += entry.cost

    def drop(self, entry: Entry) -> None:
        """Mark an entry as gone, for a batch or because nobody waits; `take` removes it from its line."""
        if not entry.has_left_queue:
            entry.has_left_queue = True
            self.cost -= entry.cost

    def take(self, now_s: float, size_for: Callable[[Entry, float], int]) -> tuple[list[Entry], list[Entry]]:
        """Take the next batch from the line with the oldest head, oldest entries first.

        Args:
            size_for: the largest batch that may start with this head now.

        Returns:
            The batch, empty when nothing waits, and the entries whose deadline passed, which leave the queue too.
        """
        expired: list[Entry] = []
        # Heads first: the age of a line is that of its oldest entry that still counts.
        for line in self._lines.values():
            while line and (line[0].has_left_queue or not line[0].is_live(now_s)):
                self._shed(line.popleft(), expired)
        # Shapes come from requests: a line is forgotten when it is empty, or the dict would grow.
        self._lines = {group: line for group, line in self._lines.items() if line}
        batch: list[Entry] = []
        if self._lines:
            line = min(self._lines.values(), key=lambda found: found[0].arrived_s)
            size = size_for(line[0], now_s)
            while line and len(batch) < size:
                entry = line.popleft()
                if entry.has_left_queue or not entry.is_live(now_s):
                    self._shed(entry, expired)
                else:
                    self.drop(entry)
                    batch.append(entry)
        return batch, expired

    def _shed(self, entry: Entry, expired: list[Entry]) -> None:
        if not entry.has_left_queue:
            self.drop(entry)  # dropped entries were reported when their caller left
            expired.append(entry)


@dataclass(slots=True, kw_only=True, eq=False)
class Batch:
    """Entries of one group that go through the device together.

    The device's thread writes `ran` and `started_s` once, when the pass begins; the loop thread reads them.

    Attributes:
        formed_s: when its entries left the queue.
        ran: the entries that were live when the pass began; None before.
        started_s: when the pass began; None before.
    """

    entries: Sequence[Entry]
    formed_s: float
    ran: Sequence[Entry] | None = None
    started_s: float | None = None

    @property
    def group(self) -> Group:
        """The group of all its entries."""
        return self.entries[0].key.group

    @property
    def cost(self) -> int:
        """The cost of all its entries."""
        return sum(entry.cost for entry in self.entries)

    def begin(self, now_s: float) -> Sequence[Entry]:
        """Mark the start of the pass and return the entries that are still live."""
        self.ran, self.started_s = [entry for entry in self.entries if entry.is_live(now_s)], now_s
        return self.ran


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResult:
    """The result of one pass: features of each entry in `batch.ran`, in order."""

    features: Sequence[Features]
    finished_s: float


class Device(Protocol):
    """Takes batches in order; implemented by `DeviceExecutor` and by a simulated device in tests."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the encoder."""

    @property
    def workers(self) -> int:
        """How many batches run at once."""

    def submit(self, batch: Batch) -> "asyncio.Future[PassResult]":
        """Stage the batch now; run it when earlier batches have begun and a worker is free.

        The future raises DeviceFatal, DeviceOutOfMemory, or whatever the encoder raised.
        """

    def stop(self) -> None:
        """Wait for the running batches and end the threads; blocks."""
