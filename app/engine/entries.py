"""One sample on its way to the device and back, and the batch that carries it."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.domain import View

VIEW_COST = 8
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
    """What may share a batch: samples of one operation, one shape and one way to be computed.

    Attributes:
        bucket: 0 for batches of any size; else every pass is padded to exactly so many samples (strings go alone: the
            padding of a string, and with it its last bits, would depend on the others').
        is_captioned: whether captions were given; told apart in buckets alone, where the captioner must see the same
            number of pictures in every pass.
    """

    kind: Kind
    shape: tuple[int, ...] = ()
    bucket: int = 0
    is_captioned: bool = False


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Everything that decides a sample's features: what it is, and how it is read."""

    group: Group
    identity: str
    caption: str | None
    timestep: int
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What the device gives for one sample. Shared by all who asked for it: never write into it.

    Attributes:
        pooled: [D] float32.
        dense: [D, h, w] float32; [D, 0, 0] for a string.
    """

    pooled: NDArray[np.float32]
    dense: NDArray[np.float32]

    @property
    def size_bytes(self) -> int:
        """Memory held."""
        return self.pooled.nbytes + self.dense.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An output and the times it took."""

    output: Output
    queue_ms: float
    inference_ms: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waiter:
    """Someone who waits for a sample, from `joined_s` until `deadline_s` of the engine's clock."""

    future: "asyncio.Future[Answer]"
    joined_s: float
    deadline_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """A sample that waits for the device, with everyone who waits for it.

    The loop thread alone writes it and touches futures; the device's thread reads `deadline_s`, which says both that
    nobody waits any more (minus infinity) and how long they will.

    Attributes:
        deadline_s: the latest of its waiters'; a pass that starts then or later leaves it out.
        has_left_queue: taken by a batch, or dropped because nobody waits any more.
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
        """Whether anyone still waits."""
        return self.deadline_s > -math.inf

    def is_live(self, now_s: float) -> bool:
        """Whether anyone would still take an answer whose pass starts now."""
        return self.deadline_s > now_s

    def join(self, waiter: Waiter) -> None:
        """One more who waits."""
        self.waiters.append(waiter)
        self.deadline_s = max(self.deadline_s, waiter.deadline_s)

    def leave(self, waiter: Waiter) -> None:
        """One who waits no more."""
        if waiter in self.waiters:
            self.waiters.remove(waiter)
            self.deadline_s = max((rest.deadline_s for rest in self.waiters), default=-math.inf)

    def resolve(self, output: Output, *, queue_s: float, inference_s: float) -> None:
        """Answer everyone who still waits; who joined later waited less, perhaps for the rest of a pass alone."""
        for waiter in self.waiters:
            if not waiter.future.done():
                late_s = waiter.joined_s - self.arrived_s
                own_queue_s = max(0.0, queue_s - late_s)
                own_inference_s = max(0.0, min(inference_s, queue_s + inference_s - late_s))
                answer = Answer(output=output, queue_ms=own_queue_s * 1000, inference_ms=own_inference_s * 1000)
                waiter.future.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Fail everyone who still waits."""
        for waiter in self.waiters:
            if not waiter.future.done():
                waiter.future.set_exception(error)


@dataclass(slots=True, kw_only=True, eq=False)
class Batch:
    """Samples of one group that go through the device together.

    The device's thread writes `ran` and `started_s` once, when it takes the batch; the loop thread reads them.

    Attributes:
        formed_s: when it left the queue.
        ran: those that were still wanted when the pass began; None before.
        started_s: when the pass began; None before.
    """

    entries: Sequence[Entry]
    formed_s: float
    ran: Sequence[Entry] | None = None
    started_s: float | None = None

    @property
    def group(self) -> Group:
        """Of all its samples."""
        return self.entries[0].key.group

    @property
    def cost(self) -> int:
        """Of all its samples."""
        return sum(entry.cost for entry in self.entries)

    def begin(self, now_s: float) -> Sequence[Entry]:
        """The samples that the pass about to start is for: whoever went away or is late by now is left out."""
        self.ran, self.started_s = [entry for entry in self.entries if entry.is_live(now_s)], now_s
        return self.ran


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResult:
    """What came back: one output for each of `batch.ran`, in order."""

    outputs: Sequence[Output]
    finished_s: float


class Device(Protocol):
    """Takes batches in order; implemented by `DeviceExecutor` and by a simulated device in tests."""

    @property
    def fingerprint(self) -> str:
        """Of the encoder."""
        ...

    @property
    def workers(self) -> int:
        """How many batches run at once."""
        ...

    def submit(self, batch: Batch) -> "asyncio.Future[PassResult]":
        """Stage the batch now, run it when those before it have begun and a lane is free.

        The future raises DeviceFatal, DeviceOutOfMemory, or whatever the encoder raised.
        """
        ...

    def stop(self) -> None:
        """Wait for the running batches and end; blocks."""
        ...
