"""The scheduler: forms batches as late as possible, prefetches one, and halves the batches that fail.

Everything runs in callbacks on the loop thread: there is no task that could die. An error in a callback counts as the
loss of the device, which answers every waiter.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from app.domain import Features
from app.engine.admission import DrainRate, PassTimes
from app.engine.entries import (
    VIEW_COST,
    Batch,
    Device,
    DeviceFatal,
    DeviceOutOfMemory,
    Entry,
    EntryQueue,
    Group,
    Kind,
    PassResult,
)
from app.errors import DeadlineExceeded, InferenceFailed, ServiceError
from app.runtime.telemetry import Telemetry, get_logger

_LEAD_SHARE, _MIN_LEAD_S = 0.1, 0.002
"""The next batch is formed when this share of the pass that ends first (and at least this time) is left."""
_SUSTAINED_S = 2.0
"""A burst keeps the workers busy for less; anything longer is load near the capacity."""


class Listener(Protocol):
    """Receives the fate of every entry; implemented by the engine."""

    def succeeded(self, entry: Entry, features: Features, *, queue_s: float, inference_s: float) -> None:
        """Called when the entry has features."""

    def failed(self, entry: Entry, error: ServiceError) -> None:
        """Called when the entry will never have features."""

    def dropped(self, entry: Entry) -> None:
        """Called when nobody waits for the entry any more."""

    def device_lost(self) -> None:
        """Called when no batch will run any more; the entries that are left are the listener's to fail."""


class Scheduler:
    """Keeps at most one batch with each of the device's workers and one behind them; implements `admission.Backlog`.

    Attributes:
        queue: the entries that wait.
        rate: how fast cost drains.
        reserved: cost that is admitted and still being decoded.
        progress_at_s: when a batch last left for the device or came back.
        pass_times: how long passes take.
        caps: the largest batch of a group, where it is smaller than for others.

    Args:
        max_batch: views per pass.
        clock: seconds, monotonic; the device must use the same.
    """

    def __init__(
        self, device: Device, listener: Listener, telemetry: Telemetry, *, max_batch: int, clock: Callable[[], float]
    ) -> None:
        self.queue = EntryQueue()
        self.rate = DrainRate()
        self.reserved = 0
        self.progress_at_s = clock()
        self._device = device
        self._workers = device.workers
        self._listener = listener
        self._telemetry = telemetry
        self._max_batch = max_batch
        self._clock = clock
        self.pass_times = PassTimes()
        self.caps: dict[Group, int] = {}
        self._in_flight: deque[Batch] = deque()
        self._retries: deque[list[Entry]] = deque()
        self._is_closed = False
        self._is_woken = False
        self._is_idle = True
        self._busy_from_s = self.progress_at_s
        self._timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """Form batches once everything that arrives in this turn of the loop is queued."""
        # Once per turn: the samples of one request, and of requests that arrive together, share a batch.
        if not self._is_woken and not self._is_closed:
            self._is_woken = True
            asyncio.get_running_loop().call_soon(self._guarded, self._form_batches)

    def in_flight(self) -> float:
        """Cost with the device, less the share of each running pass that should be done."""
        return sum(batch.cost * (1.0 - self._share_done(batch)) for batch in self._in_flight)

    def release(self, cost: int) -> None:
        """Give reserved cost back, and look whether a worker was held back for it."""
        if cost:
            self.reserved -= cost
            self.wake()

    def stuck_since_s(self) -> float:
        """When the longest-running pass began, whatever other workers do; without one, the last progress."""
        running = (batch.started_s for batch in self._in_flight if batch.started_s is not None)
        return min(running, default=self.progress_at_s)

    def close(self) -> None:
        """Form no more batches and ignore the results of those with the device."""
        self._is_closed = True  # `_finish` ignores late results from now on
        if self._timer is not None:
            self._timer.cancel()
        self._retries.clear()
        self._in_flight.clear()

    async def run_warm_up(self, entries: Sequence[Entry], *, is_learnt: bool) -> tuple[Sequence[Features], float]:
        """Run one pass outside the queue; return its features and its seconds, which are learnt if they are typical."""
        batch = Batch(entries=entries, formed_s=self._clock())
        result = await self._device.submit(batch)
        duration_s = 0.0 if batch.started_s is None else result.finished_s - batch.started_s
        if is_learnt:
            self.pass_times.observe_warm_up(batch, duration_s)
        return result.features, duration_s

    def learn_rate(self, group: Group) -> None:
        """Take the drain rate from the largest batch of a group that was warmed up."""
        size, duration_s = self.pass_times.largest_warm_up(group)
        self.rate.observe(size * group.cost, duration_s / self._workers)

    def _guarded(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            call(*arguments)
        except Exception:  # noqa: BLE001 - a callback that died silently would leave every caller waiting
            get_logger().exception("pipeline_failed")
            self._listener.device_lost()

    def _form_batches(self) -> None:
        self._is_woken = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_idle:  # a pause ended: a burst begins
            self._busy_from_s = self._clock()
        while not self._is_closed and len(self._in_flight) <= self._workers:
            delay_s = self._delay_s()
            if delay_s is None:
                break
            if delay_s > 0:  # what arrives until then still joins the batch
                if self._retries or self.queue.cost:
                    self._timer = asyncio.get_running_loop().call_later(delay_s, self._guarded, self._form_batches)
                break
            if self._holds_last_worker() or not (entries := self._next_entries()):
                break
            self._launch(Batch(entries=entries, formed_s=self._clock()))
        self._is_idle = not self._in_flight

    def _delay_s(self) -> float | None:
        """Seconds until the next batch should be formed; None: when a running one returns."""
        if len(self._in_flight) < self._workers:
            return 0.0
        # All workers are busy: the prefetched batch is formed just before the first of them is free.
        due_s = [at_s for batch in self._in_flight if (at_s := self._due_s(batch)) is not None]
        return min(due_s) - self._clock() if due_s else None

    def _due_s(self, batch: Batch) -> float | None:
        """When the batch behind this one should be formed; None where the length of its pass is unknown."""
        expected_s = self.pass_times.expected_s(batch)
        if not expected_s:
            return None
        started_s = batch.formed_s if batch.started_s is None else batch.started_s
        return started_s + expected_s - max(_MIN_LEAD_S, expected_s * _LEAD_SHARE)

    def _share_done(self, batch: Batch) -> float:
        expected_s = self.pass_times.expected_s(batch)
        if not expected_s or batch.started_s is None:
            return 0.0
        return min(1.0, (self._clock() - batch.started_s) / expected_s)

    def _next_entries(self) -> list[Entry]:
        # Retries go first: their samples have waited longest.
        while self._retries:
            if entries := self._still_live(self._retries.popleft()):
                return entries
        entries, expired = self.queue.take(self._clock(), self._batch_size)
        for entry in expired:
            self._expire(entry)
        return entries

    def _batch_size(self, head: Entry, now_s: float) -> int:
        group, size = head.key.group, self._largest(head)
        if group.bucket:
            return min(size, group.bucket)
        if group.kind is Kind.IMAGES:
            # On a CPU half the images take half the time: a burst ends sooner when every worker takes a share.
            if self._workers > 1 and not self._is_sustained():
                size = math.ceil(size / 2)
            free = 1 if self._is_fed() else self._free_workers(now_s)
            size = min(size, math.ceil(self.queue.cost / (free * head.cost)))
        return size

    def _largest(self, entry: Entry) -> int:
        """Entries in the largest batch of this one's group: short strings cost less, so more of them go together."""
        return self.caps.get(entry.key.group, max(1, self._max_batch * VIEW_COST // entry.cost))

    def _free_workers(self, now_s: float) -> int:
        """Workers that are free or about to be; at least the one that a batch is formed for."""
        ending = sum((due_s := self._due_s(batch)) is not None and due_s <= now_s for batch in self._in_flight)
        return max(1, self._workers - len(self._in_flight) + ending)

    def _is_sustained(self) -> bool:
        """Whether the workers have been busy for so long that full batches pay (docs/adr/0039)."""
        return self._clock() - self._busy_from_s >= _SUSTAINED_S

    def _is_fed(self) -> bool:
        """Whether load is sustained and more is being decoded: workers are filled one after another then."""
        return self._workers > 1 and self.reserved > 0 and self._is_sustained()

    def _holds_last_worker(self) -> bool:
        """Whether to hold back the last worker so that decoding, which needs its core, can fill a larger batch."""
        is_last = len(self._in_flight) >= self._workers - 1  # a running pass ends the wait: its end looks here again
        is_full = self.queue.cost >= self._max_batch * VIEW_COST
        return is_last and not is_full and not self._retries and self._is_fed()

    def _still_live(self, entries: Sequence[Entry]) -> list[Entry]:
        now_s = self._clock()
        for entry in entries:
            if not entry.is_live(now_s):
                self._expire(entry)
        return [entry for entry in entries if entry.is_live(now_s)]

    def _expire(self, entry: Entry) -> None:
        if entry.is_wanted:
            self._listener.failed(entry, DeadlineExceeded("The deadline passed before the device was free."))
        else:
            self._listener.dropped(entry)

    def _launch(self, batch: Batch) -> None:
        self._in_flight.append(batch)
        self.progress_at_s = self._clock()
        self._device.submit(batch).add_done_callback(lambda done: self._guarded(self._finish, batch, done))

    def _finish(self, batch: Batch, done: "asyncio.Future[PassResult]") -> None:
        error = done.exception()
        if self._is_closed:
            return
        self._in_flight.remove(batch)
        self.progress_at_s = self._clock()
        if isinstance(error, DeviceFatal):
            get_logger().error("device_fatal", exc_info=error)
            self._listener.device_lost()
            return
        ran = batch.entries if batch.ran is None else batch.ran
        # Nobody wanted these when the pass began, but someone may have joined since.
        if skipped := self._still_live([entry for entry in batch.entries if entry not in ran]):
            self._retries.append(skipped)
        if error is not None:
            self._split(batch, list(ran), error)
        elif batch.ran and batch.started_s is not None:
            self._deliver(batch, batch.ran, batch.started_s, done.result())
        self._form_batches()

    def _split(self, batch: Batch, ran: list[Entry], error: BaseException) -> None:
        """Halve a batch that failed: in the end only the sample that causes the failure fails."""
        self._telemetry.batch_failures.labels(type(error).__name__).inc()
        get_logger().warning("batch_failed", size=len(ran), kind=batch.group.kind.value, exc_info=error)
        middle = len(ran) // 2
        # The cap is remembered: the next batch of this group does not fail again.
        if isinstance(error, DeviceOutOfMemory) and middle:
            self.caps[batch.group] = min(middle, self.caps.get(batch.group, middle))
        if middle:
            self._retries.extendleft((ran[middle:], ran[:middle]))
        elif ran:
            self._listener.failed(ran[0], InferenceFailed("The model failed on this input."))

    def _deliver(self, batch: Batch, ran: Sequence[Entry], started_s: float, result: PassResult) -> None:
        duration_s = result.finished_s - started_s
        kind, cost = batch.group.kind.value, sum(entry.cost for entry in ran)
        # The rate is that of all workers with full batches: what waits will run in such.
        share = self.pass_times.share_of_full(batch.group, len(ran), self._largest(ran[0]))
        self.rate.observe(cost, duration_s / self._workers, share)
        if len(ran) == len(batch.entries):  # otherwise the batch was stacked again, which is not the usual time
            self.pass_times.observe(batch, duration_s)
        self._telemetry.batch_size.labels(kind).observe(len(ran))
        self._telemetry.batch_cost_ratio.observe(cost / (self._max_batch * VIEW_COST))
        self._telemetry.batch_execution.labels(kind).observe(duration_s)
        for entry, features in zip(ran, result.features, strict=True):
            # One bad sample must not fail the others, nor be cached.
            if not (np.isfinite(features.pooled).all() and np.isfinite(features.visual).all()):
                self._listener.failed(entry, InferenceFailed("The model failed on this input."))
                continue
            queue_s = max(0.0, started_s - entry.arrived_s)
            self._telemetry.queue_wait.observe(queue_s)
            self._listener.succeeded(entry, features, queue_s=queue_s, inference_s=duration_s)
