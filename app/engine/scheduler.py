"""The way through the device: late forming, one batch prefetched, failing batches halved.

All of it happens on the loop thread, in callbacks: there is no loop that could die. Whatever goes wrong in one of them
ends in the fatal latch, which answers everyone.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np

from app.engine.entries import (
    VIEW_COST,
    Batch,
    Device,
    DeviceFatal,
    DeviceOutOfMemory,
    Entry,
    Group,
    Kind,
    Output,
    PassResult,
)
from app.engine.rates import DrainRate, PassTimes, SoloTimes
from app.errors import DeadlineExceeded, InferenceFailed, ServiceError
from app.runtime.telemetry import Telemetry, get_logger

_LEAD_SHARE, _MIN_LEAD_S = 0.1, 0.002
"""The next batch is formed when this share of the pass that ends first (and at least so long) is left."""
_SUSTAINED_S = 2.0
"""A burst keeps the lanes busy for less; what lasts longer is load near what they can do."""


class Listener(Protocol):
    """Who hears what became of a sample."""

    def succeeded(self, entry: Entry, output: Output, *, queue_s: float, inference_s: float) -> None:
        """It has an output."""
        ...

    def failed(self, entry: Entry, error: ServiceError) -> None:
        """It never will."""
        ...

    def dropped(self, entry: Entry) -> None:
        """Nobody waits for it any more."""
        ...

    def device_lost(self) -> None:
        """Nothing will run any more."""
        ...


class EntryQueue:
    """Samples in order of arrival, a line for each group.

    Attributes:
        cost: of everything that waits and is still wanted.
    """

    def __init__(self) -> None:
        self.cost = 0
        self._lines: dict[Group, deque[Entry]] = {}

    def __len__(self) -> int:
        return sum(not entry.has_left_queue for line in self._lines.values() for entry in line)

    def put(self, entry: Entry) -> None:
        """Add a sample at the end of its group's line."""
        self._lines.setdefault(entry.key.group, deque()).append(entry)
        self.cost += entry.cost

    def drop(self, entry: Entry) -> None:
        """Take a sample out of its line: for a batch, or because nobody waits for it any more."""
        if not entry.has_left_queue:
            entry.has_left_queue = True
            self.cost -= entry.cost

    def take(
        self, now_s: float, caps: dict[Group, int], default: int, *, workers: int = 1, is_short: bool = False
    ) -> tuple[list[Entry], list[Entry]]:
        """The next batch: from the line whose head is oldest, oldest first; empty when nothing waits.

        Args:
            now_s: of the engine's clock.
            caps: the most samples of a group where a cap was learnt.
            default: the most views of any other; strings cost less and more of them go together.
            lanes: that are free; pictures leave the others their share of what waits.
            is_short: whether pictures go in half of the largest batch at most.

        Returns:
            The batch, and the samples before and among it whose time had passed, which leave the queue too.
        """
        expired: list[Entry] = []
        for line in self._lines.values():
            while line and (line[0].has_left_queue or not line[0].is_live(now_s)):
                self._shed(line.popleft(), expired)
        self._lines = {group: line for group, line in self._lines.items() if line}
        if not self._lines:
            return [], expired
        group = min(self._lines, key=lambda found: self._lines[found][0].arrived_s)
        line, batch = self._lines[group], list[Entry]()
        most = caps.get(group, default * VIEW_COST // line[0].cost)
        if group.bucket:
            most = min(most, group.bucket)
        elif group.kind is Kind.IMAGES:
            # On a CPU half the pictures take half the time. A bucket takes its time whatever it holds.
            most = min(math.ceil(most / 2) if is_short else most, math.ceil(self.cost / (workers * VIEW_COST)))
        while line and len(batch) < most:
            entry = line.popleft()
            if entry.has_left_queue or not entry.is_live(now_s):
                self._shed(entry, expired)
                continue
            self.drop(entry)
            batch.append(entry)
        return batch, expired

    def take_all(self) -> list[Entry]:
        """Everything that waits; for the end."""
        everything = [entry for line in self._lines.values() for entry in line if not entry.has_left_queue]
        for entry in everything:
            self.drop(entry)
        self._lines.clear()
        return everything

    def _shed(self, entry: Entry, expired: list[Entry]) -> None:
        if not entry.has_left_queue:
            self.drop(entry)
            expired.append(entry)


class Scheduler:
    """At most one batch in each of the device's lanes and one behind them.

    Attributes:
        queue: what waits.
        progress_at_s: when a batch last left for the device or came back.

    Args:
        max_batch: views a pass.
        rate: learns how fast cost drains.
        promised: cost that is admitted and not in the queue yet: it is being decoded.
    """

    def __init__(
        self,
        device: Device,
        listener: Listener,
        telemetry: Telemetry,
        *,
        rate: DrainRate,
        max_batch: int,
        reserved: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self.queue = EntryQueue()
        self.progress_at_s = clock()
        self._device = device
        self._workers = device.workers
        self._listener = listener
        self._telemetry = telemetry
        self._rate = rate
        self._max_batch = max_batch
        self._reserved = reserved
        self._clock = clock
        self._pass_times = PassTimes()
        self._solo_times = SoloTimes()
        self._caps: dict[Group, int] = {}
        self._flights: deque[Batch] = deque()
        self._retries: deque[list[Entry]] = deque()
        self._is_closed = False
        self._is_woken = False
        self._is_idle = True
        self._busy_from_s = self.progress_at_s
        self._timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """Look for a batch to form, once all that arrives in this turn of the loop is there."""
        if not self._is_woken and not self._is_closed:
            self._is_woken = True
            asyncio.get_running_loop().call_soon(self._guarded, self._pump)

    def in_flight_cost(self) -> float:
        """Cost with the device, less the share of each running pass that should be done."""
        return sum(batch.cost * (1.0 - self._share_done(batch)) for batch in self._flights)

    def still_since_s(self) -> float:
        """When something last moved that should: the pass that has run longest counts, whatever the others do."""
        running = (batch.started_s for batch in self._flights if batch.started_s is not None)
        return min(running, default=self.progress_at_s)

    def close(self) -> list[Entry]:
        """Take nothing more; returns what never ran. Batches with the device are forgotten."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        left = [entry for entries in (*self._retries, *(batch.entries for batch in self._flights)) for entry in entries]
        self._retries.clear()
        self._flights.clear()
        return [*left, *self.queue.take_all()]

    async def run_alone(self, entries: list[Entry], *, is_learnt: bool) -> list[Output]:
        """One pass outside the queue, for the warm-up. Raises as `Device.submit`.

        Args:
            is_learnt: whether its time says how fast the device is; a first pass records or compiles.
        """
        batch = Batch(entries=entries, formed_s=self._clock())
        result = await self._device.submit(batch)
        if is_learnt and batch.started_s is not None:
            duration_s = result.finished_s - batch.started_s
            self._solo_times.observe(batch.group, len(entries), duration_s)
            self._pass_times.observe(batch, duration_s)
            if len(entries) == self._max_batch:
                self._rate.observe(batch.cost, duration_s / self._workers)
        return list(result.outputs)

    def _guarded(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            call(*arguments)
        except Exception:  # noqa: BLE001 - a callback that dies silently would leave everyone waiting
            get_logger().exception("pipeline_failed")
            self._lose_device()

    def _pump(self) -> None:
        self._is_woken = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_idle:
            self._busy_from_s = self._clock()
        self._fill_workers()
        self._is_idle = not self._flights

    def _fill_workers(self) -> None:
        while not self._is_closed and len(self._flights) <= self._workers:
            delay_s = self._delay_s()
            if delay_s is None:
                return
            if delay_s > 0:
                if self._retries or len(self.queue):
                    self._timer = asyncio.get_running_loop().call_later(delay_s, self._guarded, self._pump)
                return
            if self._waits_for_more():
                return
            entries = self._form()
            if not entries:
                return
            self._launch(Batch(entries=entries, formed_s=self._clock()))

    def _delay_s(self) -> float | None:
        """Until the next batch should be formed; None: when a running one is back."""
        if len(self._flights) < self._workers:
            return 0.0
        due_s = [at_s for batch in self._flights if (at_s := self._due_s(batch)) is not None]
        return min(due_s) - self._clock() if due_s else None

    def _due_s(self, batch: Batch) -> float | None:
        """When the one that follows it should be formed; None where the length of its pass is not known."""
        expected_s = self._pass_times.expected_s(batch)
        if not expected_s:
            return None
        started_s = batch.formed_s if batch.started_s is None else batch.started_s
        return started_s + expected_s - max(_MIN_LEAD_S, expected_s * _LEAD_SHARE)

    def _share_done(self, batch: Batch) -> float:
        expected_s = self._pass_times.expected_s(batch)
        if not expected_s or batch.started_s is None:
            return 0.0
        return min(1.0, (self._clock() - batch.started_s) / expected_s)

    def _form(self) -> list[Entry]:
        now_s = self._clock()
        while self._retries:
            entries = self._still_live(self._retries.popleft(), now_s)
            if entries:
                return entries
        # Side by side a view in a large pass costs little less and waits much longer; that pays once work never ends.
        entries, expired = self.queue.take(
            now_s,
            self._caps,
            self._max_batch,
            workers=1 if self._is_fed() else self._free_workers(now_s),
            is_short=self._workers > 1 and not self._is_sustained(),
        )
        for entry in expired:
            self._expire(entry)
        return entries

    def _is_sustained(self) -> bool:
        """Whether work never ends."""
        return self._clock() - self._busy_from_s >= _SUSTAINED_S

    def _is_fed(self) -> bool:
        """Whether work never ends and more is being decoded: lanes are filled one after another then."""
        return self._workers > 1 and self._reserved() > 0 and self._is_sustained()

    def _waits_for_more(self) -> bool:
        """Whether the last lane is left to the decoders for now: they want a core too, and make a fuller batch.

        Only while a pass runs: its end looks here again.
        """
        is_last = len(self._flights) >= self._workers - 1
        is_full = self.queue.cost >= self._max_batch * VIEW_COST
        return is_last and not is_full and not self._retries and self._is_fed()

    def _free_workers(self, now_s: float) -> int:
        """Lanes that are free or about to be; at least the one that a batch is formed for."""
        ending = sum((due_s := self._due_s(batch)) is not None and due_s <= now_s for batch in self._flights)
        return max(1, self._workers - len(self._flights) + ending)

    def _still_live(self, entries: list[Entry], now_s: float) -> list[Entry]:
        live = [entry for entry in entries if entry.is_live(now_s)]
        for entry in entries:
            if not entry.is_live(now_s):
                self._expire(entry)
        return live

    def _expire(self, entry: Entry) -> None:
        if entry.is_wanted:
            self._listener.failed(entry, DeadlineExceeded("The deadline passed before the device was free."))
        else:
            self._listener.dropped(entry)

    def _launch(self, batch: Batch) -> None:
        self._flights.append(batch)
        self.progress_at_s = self._clock()
        future = self._device.submit(batch)
        future.add_done_callback(lambda landed: self._guarded(self._land, batch, landed))

    def _land(self, batch: Batch, landed: "asyncio.Future[PassResult]") -> None:
        error = landed.exception()
        if self._is_closed:
            return
        self._flights.remove(batch)
        self.progress_at_s = self._clock()
        if isinstance(error, DeviceFatal):
            get_logger().error("device_fatal", exc_info=error)
            for entry in batch.entries:
                self._retries.append([entry])
            self._lose_device()
            return
        ran = batch.entries if batch.ran is None else batch.ran
        self._put_back([entry for entry in batch.entries if entry not in ran])
        if error is not None:
            self._split(batch, list(ran), error)
        else:
            self._hand_out(batch, landed.result())
        self._pump()

    def _put_back(self, skipped: list[Entry]) -> None:
        """Samples that nobody wanted when their pass began; someone may have joined since."""
        live = self._still_live(skipped, self._clock())
        if live:
            self._retries.append(live)

    def _split(self, batch: Batch, ran: list[Entry], error: BaseException) -> None:
        """Halve a batch that failed, so that only the poison sample does in the end."""
        self._telemetry.batch_failures.labels(type(error).__name__).inc()
        get_logger().warning("batch_failed", size=len(ran), kind=batch.group.kind.value, exc_info=error)
        middle = len(ran) // 2
        if isinstance(error, DeviceOutOfMemory) and middle:
            self._caps[batch.group] = min(middle, self._caps.get(batch.group, middle))
        if middle:
            self._retries.extendleft((ran[middle:], ran[:middle]))
        elif ran:
            self._listener.failed(ran[0], InferenceFailed("The model failed on this input."))

    def _hand_out(self, batch: Batch, result: PassResult) -> None:
        if not batch.ran or batch.started_s is None:
            return
        duration_s = result.finished_s - batch.started_s
        self._learn(batch, result)
        kind, cost = batch.group.kind.value, sum(entry.cost for entry in batch.ran)
        self._telemetry.batch_size.labels(kind).observe(len(batch.ran))
        self._telemetry.batch_cost_ratio.observe(cost / (self._max_batch * VIEW_COST))
        self._telemetry.batch_execution.labels(kind).observe(duration_s)
        for entry, output in zip(batch.ran, result.outputs, strict=True):
            if not np.isfinite(output.pooled).all():
                self._listener.failed(entry, InferenceFailed("The model failed on this input."))
                continue
            queue_s = max(0.0, batch.started_s - entry.arrived_s)
            self._telemetry.queue_wait.observe(queue_s)
            self._listener.succeeded(entry, output, queue_s=queue_s, inference_s=duration_s)

    def _learn(self, batch: Batch, result: PassResult) -> None:
        if not batch.ran or batch.started_s is None:
            return
        duration_s = result.finished_s - batch.started_s
        # The rate is of all lanes at work with full batches: what waits will be in such.
        largest = self._caps.get(batch.group, self._max_batch * VIEW_COST // batch.entries[0].cost)
        share = self._solo_times.share(batch.group, len(batch.ran), largest)
        self._rate.observe(sum(entry.cost for entry in batch.ran), duration_s / self._workers, share)
        if len(batch.ran) == len(batch.entries):
            self._pass_times.observe(batch, duration_s)

    def _lose_device(self) -> None:
        self._listener.device_lost()
