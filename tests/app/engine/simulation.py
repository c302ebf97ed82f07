"""A world without real time: a loop whose clock jumps to the next event, and a device whose passes cost such time."""

import asyncio
import selectors
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from app.domain import Features
from app.engine.entries import Batch, DeviceFatal, DeviceOutOfMemory, Entry, Kind, PassResult


class EveryoneWaits(Exception):
    """Nothing is ready, no timer runs: whoever waits would wait for ever."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never sleeps while a timer is set: it moves the clock instead, and says so before."""

    now_s = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.before_jump: Callable[[], None] = lambda: None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            # A thread may still report (the end of the device's); nothing else can.
            ready = super().select(1.0)
            if not ready:
                raise EveryoneWaits
            return list(ready)
        if timeout > 0:
            self.before_jump()
            self.now_s += timeout
        return list(super().select(0))


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in which an hour takes no time."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def watch(self, before_jump: Callable[[], None]) -> None:
        """Call this whenever all is done that could be, and time moves on."""
        self._jumping.before_jump = before_jump

    def time(self) -> float:
        return self._jumping.now_s


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong with a device.

    Attributes:
        durations_s: of passes, in turn.
        poison: samples that fail the pass they are in.
        oom_above: passes of more samples run out of memory.
        dies_at: number of the pass that loses the device.
        hangs_at: number of the pass that never ends.
    """

    durations_s: tuple[float, ...] = (0.1,)
    poison: frozenset[str] = frozenset()
    oom_above: int = 1_000_000
    dies_at: int | None = None
    hangs_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass as the device saw it."""

    started_s: float
    entries: tuple[Entry, ...]


@dataclass
class SimulatedDevice:
    """Implements `work.Device` on the loop's own time, in the order of submission.

    Attributes:
        workers: passes at once.
        passes: what ran.
        submitted: batches as they were formed, in order.
        on_submit: called with each.
        most_at_once: batches with the device, those that wait for a worker too.
        idle_workers: workers without a pass now.
    """

    loop: asyncio.AbstractEventLoop
    faults: Faults
    workers: int = 1
    fingerprint: str = "simulated"
    passes: list[Pass] = field(default_factory=list)
    submitted: list[Batch] = field(default_factory=list)
    most_at_once: int = 0
    on_submit: Callable[[Batch], None] = lambda _: None

    def __post_init__(self) -> None:
        self._line: deque[tuple[Batch, asyncio.Future[PassResult]]] = deque()
        self.idle_workers = self.workers
        self._is_dead = False

    def submit(self, batch: Batch) -> "asyncio.Future[PassResult]":
        future: asyncio.Future[PassResult] = self.loop.create_future()
        self.submitted.append(batch)
        self.on_submit(batch)
        self._line.append((batch, future))
        self.most_at_once = max(self.most_at_once, len(self._line) + self.workers - self.idle_workers)
        self._next()
        return future

    def stop(self) -> None:
        pass

    def _next(self) -> None:
        if not self._line or not self.idle_workers:
            return
        batch, future = self._line.popleft()
        ran = batch.begin(self.loop.time())
        number = len(self.passes)
        if self._is_dead:
            self._settle(future, DeviceFatal())
            return
        if not ran:
            self._settle(future, PassResult(features=[], finished_s=self.loop.time()))
            return
        self.passes.append(Pass(started_s=self.loop.time(), entries=tuple(ran)))
        self.idle_workers -= 1
        if number != self.faults.hangs_at:
            duration_s = self.faults.durations_s[number % len(self.faults.durations_s)]
            self.loop.call_later(duration_s, self._finish, number, ran, future)

    def _finish(self, number: int, ran: Sequence[Entry], future: "asyncio.Future[PassResult]") -> None:
        self.idle_workers += 1
        self._settle(future, self._result(number, ran))

    def _settle(self, future: "asyncio.Future[PassResult]", result: PassResult | Exception) -> None:
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
        self._next()

    def _result(self, number: int, ran: Sequence[Entry]) -> PassResult | Exception:
        if number == self.faults.dies_at:
            self._is_dead = True
            return DeviceFatal()
        if len(ran) > self.faults.oom_above:
            return DeviceOutOfMemory()
        if any(entry.key.identity in self.faults.poison for entry in ran):
            return ValueError("poison")
        return PassResult(features=[features_of(entry) for entry in ran], finished_s=self.loop.time())


def features_of(entry: Entry) -> Features:
    """An output that shows whose it is."""
    values = {Kind.IMAGES: 1.0, Kind.TEXTS: 2.0}[entry.key.group.kind]
    pooled = np.array([values, float(entry.key.identity.strip("vt")), float(len(entry.key.group.shape))], np.float32)
    return Features(pooled=pooled, visual=pooled[:0], dense=np.zeros((3, 0, 0), np.float32))


def counted(passes: list[Pass]) -> Mapping[str, int]:
    """How often each sample ran."""
    times: dict[str, int] = {}
    for one in passes:
        for entry in one.entries:
            times[entry.key.identity] = times.get(entry.key.identity, 0) + 1
    return times
