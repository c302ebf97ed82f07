"""One sample on its way to the device and back."""

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from app.domain import View

VIEW_COST = 8
TEXT_COST = 1


class Kind(StrEnum):
    """The two device operations."""

    IMAGES = "images"
    TEXTS = "texts"


@dataclass(frozen=True, slots=True)
class Group:
    """What may share a batch: samples of one operation and one shape."""

    kind: Kind
    shape: tuple[int, ...] = ()


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


@dataclass(slots=True, kw_only=True, eq=False)
class Work:
    """A sample that waits for the device, with everyone who waits for it.

    Attributes:
        waiters: futures of the callers, touched by the loop thread alone.
        has_left_queue: taken by a batch, or dropped because nobody waits any more.
    """

    key: CacheKey
    payload: View | str
    cost: int
    arrived_s: float
    waiters: list[asyncio.Future[Answer]] = field(default_factory=list)
    has_left_queue: bool = False

    @property
    def is_wanted(self) -> bool:
        """Whether anyone still waits."""
        return any(not waiter.done() for waiter in self.waiters)

    def resolve(self, answer: Answer) -> None:
        """Answer everyone who still waits."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Fail everyone who still waits."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)
