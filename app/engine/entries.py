"""Queue entries, their queue, the batches that carry them through the device, and the device's interface."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from app.domain import Features, View

VIEW_COST = 8  # of the bundle's smallest view, in units of a short string
SHORT_TEXT_BYTES = 64  # about 16 tokens, which take an eighth of a view's time


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
        cost: of each sample; strings of different cost do not share a pass, which pads them to the longest.
        shape: of a view's pixels.
        bucket: every pass is padded to exactly this many samples; 0 for batches of any size. Reproducible strings go
            alone (bucket 1): the padding of a string, and with it the last bits, would depend on the others.
        is_captioned: used in buckets only, where the captioner must see the same number of images in every pass.
        needs_dense: of views.
    """

    kind: Kind
    cost: int
    shape: tuple[int, ...] = ()  # views of different shapes cannot be stacked
    bucket: int = 0
    is_captioned: bool = False
    needs_dense: bool = True


def text_cost(text: str) -> int:
    """Cost of a string by its length: 1, 2, 4, 8, or 16 where the tokenizer probably cuts it off (128 tokens)."""
    short_texts = -(-len(text.encode("utf-8", "surrogatepass")) // SHORT_TEXT_BYTES)
    return int(min(2 * VIEW_COST, 1 << max(0, short_texts - 1).bit_length()))


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
    line: "RequestLine"
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
        lines: of the requests in whose turn it may go.
    """

    key: CacheKey
    payload: View | str
    arrived_s: float
    deadline_s: float = -math.inf
    waiters: list[Waiter] = field(default_factory=list)
    has_left_queue: bool = False
    lines: "list[RequestLine]" = field(default_factory=list)

    @property
    def cost(self) -> int:
        """The cost of its group's samples."""
        return self.key.group.cost

    @property
    def is_wanted(self) -> bool:
        """Whether anyone waits for it."""
        return self.deadline_s > -math.inf

    def is_live(self, now_s: float) -> bool:
        """Whether anyone still takes the answer of a pass that starts now."""
        return self.deadline_s > now_s

    def join(self, line: "RequestLine", now_s: float, deadline_s: float) -> Waiter:
        """Add a caller."""
        future: asyncio.Future[Features] = asyncio.get_running_loop().create_future()
        waiter = Waiter(entry=self, line=line, future=future, joined_s=now_s, deadline_s=deadline_s)
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


@dataclass(slots=True, eq=False)
class RequestLine:
    """What one request has in the queue: its entries by group, oldest first (keys of dicts, since any may leave).

    `reserved` is cost that is admitted and still being decoded, `queued` that of its entries; `is_new` until its first
    turn.
    """

    is_new: bool = True
    reserved: int = 0
    queued: int = 0
    entries: dict[Group, dict[Entry, None]] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """Cost that it may still send to the device."""
        return self.reserved + self.queued


class EntryQueue:
    """Waiting entries, in one line per request; requests take turns (docs/adr/0043).

    A turn is one batch: the request's oldest entry decides the group, its entries go in first, those of the others
    fill the batch in the order of their turns, and its next turn comes after theirs. Requests that had no turn fill it
    first, and every other turn goes to the oldest of them: one with a single image does not wait for a turn of each
    large one. `cost` is of all that waits.
    """

    def __init__(self) -> None:
        self.cost = 0
        self._turns: dict[RequestLine, None] = {}  # requests with entries, the next one first
        self._new: dict[RequestLine, None] = {}  # those of them that had no turn
        self._was_new = False  # the last turn was given to one of these before the others

    def put(self, entry: Entry, line: RequestLine) -> None:
        """Add an entry to a request's line; one that waits for several requests goes in the first one's turn."""
        if entry.has_left_queue or line in entry.lines:
            return
        if not entry.lines:
            self.cost += entry.cost
        entry.lines.append(line)
        line.entries.setdefault(entry.key.group, {})[entry] = None
        line.queued += entry.cost
        self._turns.setdefault(line)
        if line.is_new:
            self._new.setdefault(line)

    def withdraw(self, entry: Entry, line: RequestLine) -> None:
        """Take an entry out of one request's line; the others still wait for it."""
        if line in entry.lines:
            entry.lines.remove(line)
            line.queued -= entry.cost
            line.entries[entry.key.group].pop(entry)
            if not line.entries[entry.key.group]:
                del line.entries[entry.key.group]
            if not line.entries:
                del self._turns[line]
                self._new.pop(line, None)

    def drop(self, entry: Entry) -> None:
        """Take an entry out of the queue, for a batch or because nobody waits."""
        if not entry.has_left_queue:
            entry.has_left_queue = True
            self.cost -= entry.cost
            for line in tuple(entry.lines):
                self.withdraw(entry, line)

    def take(self, now_s: float, size_for: Callable[[Entry, float], int]) -> tuple[list[Entry], list[Entry]]:
        """Take the next batch.

        Args:
            size_for: the largest batch that may start with this head now.

        Returns:
            The batch, empty when nothing waits, and the entries whose deadline passed, which leave the queue too.
        """
        batch: list[Entry] = []
        expired: list[Entry] = []
        found = self._head(now_s, expired)
        if found is None:
            return batch, expired
        first, head = found
        group, size = head.key.group, size_for(head, now_s)
        if len(self._turns) > 1 and len(first.entries[group]) >= size:
            size = math.ceil(size / 2)  # others wait: a turn of a request that fills batches alone is a shorter one
        lines = dict.fromkeys((first, *self._new, *self._turns))
        for entry in (entry for line in lines for entry in tuple(line.entries.get(group, ()))):
            if len(batch) == size:
                break
            self.drop(entry)
            (batch if entry.is_live(now_s) else expired).append(entry)
        first.is_new = False
        self._new.pop(first, None)
        if first in self._turns:
            self._turns[first] = self._turns.pop(first)  # to the end
        return batch, expired

    def _head(self, now_s: float, expired: list[Entry]) -> tuple[RequestLine, Entry] | None:
        """The request whose turn it is, and its oldest live entry."""
        while self._turns:
            is_new = bool(self._new) and not self._was_new
            line = next(iter(self._new if is_new else self._turns))
            oldest = min((next(iter(entries)) for entries in line.entries.values()), key=lambda one: one.arrived_s)
            if oldest.is_live(now_s):
                self._was_new = is_new
                return line, oldest
            self.drop(oldest)
            expired.append(oldest)
        return None


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
