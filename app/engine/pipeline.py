"""The way through the device: late forming, one batch prefetched, failing batches halved.

All of it happens on the loop thread, in callbacks: there is no loop that could die. Whatever goes wrong in one of them
ends in the fatal latch, which answers everyone.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np

from app.engine.batcher import WorkQueue
from app.engine.rates import DrainRate, PassTimes, SoloTimes
from app.engine.work import VIEW_COST, Batch, Device, DeviceFatal, DeviceOutOfMemory, Group, Output, Passed, Work
from app.errors import DeadlineExceeded, InferenceFailed, ServiceError
from app.runtime.telemetry import Telemetry, get_logger

_LEAD_SHARE, _MIN_LEAD_S = 0.1, 0.002
"""The next batch is formed when this share of the pass that ends first (and at least so long) is left."""
_SUSTAINED_S = 2.0
"""A burst keeps the lanes busy for less; what lasts longer is load near what they can do."""


class Desk(Protocol):
    """Who hears what became of a sample."""

    def succeeded(self, work: Work, output: Output, *, queue_s: float, inference_s: float) -> None:
        """It has an output."""
        ...

    def failed(self, work: Work, error: ServiceError) -> None:
        """It never will."""
        ...

    def dropped(self, work: Work) -> None:
        """Nobody waits for it any more."""
        ...

    def device_lost(self) -> None:
        """Nothing will run any more."""
        ...


class Pipeline:
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
        desk: Desk,
        telemetry: Telemetry,
        *,
        rate: DrainRate,
        max_batch: int,
        promised: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self.queue = WorkQueue()
        self.progress_at_s = clock()
        self._device = device
        self._lanes = device.lanes
        self._desk = desk
        self._telemetry = telemetry
        self._rate = rate
        self._max_batch = max_batch
        self._promised = promised
        self._clock = clock
        self._pass_times = PassTimes()
        self._solo_times = SoloTimes()
        self._caps: dict[Group, int] = {}
        self._flights: deque[Batch] = deque()
        self._retries: deque[list[Work]] = deque()
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

    def close(self) -> list[Work]:
        """Take nothing more; returns what never ran. Batches with the device are forgotten."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        left = [work for works in (*self._retries, *(batch.works for batch in self._flights)) for work in works]
        self._retries.clear()
        self._flights.clear()
        return [*left, *self.queue.take_all()]

    async def run_alone(self, works: list[Work], *, is_learnt: bool) -> list[Output]:
        """One pass outside the queue, for the warm-up. Raises as `Device.submit`.

        Args:
            is_learnt: whether its time says how fast the device is; a first pass records or compiles.
        """
        batch = Batch(works=works, formed_s=self._clock())
        passed = await self._device.submit(batch)
        if is_learnt and batch.started_s is not None:
            duration_s = passed.finished_s - batch.started_s
            self._solo_times.observe(batch.group, len(works), duration_s)
            self._pass_times.observe(batch, duration_s)
            if len(works) == self._max_batch:
                self._rate.observe(batch.cost, duration_s / self._lanes)
        return list(passed.outputs)

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
        self._fill_lanes()
        self._is_idle = not self._flights

    def _fill_lanes(self) -> None:
        while not self._is_closed and len(self._flights) <= self._lanes:
            delay_s = self._delay_s()
            if delay_s is None:
                return
            if delay_s > 0:
                if self._retries or len(self.queue):
                    self._timer = asyncio.get_running_loop().call_later(delay_s, self._guarded, self._pump)
                return
            if self._waits_for_more():
                return
            works = self._form()
            if not works:
                return
            self._launch(Batch(works=works, formed_s=self._clock()))

    def _delay_s(self) -> float | None:
        """Until the next batch should be formed; None: when a running one is back."""
        if len(self._flights) < self._lanes:
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

    def _form(self) -> list[Work]:
        now_s = self._clock()
        while self._retries:
            works = self._still_live(self._retries.popleft(), now_s)
            if works:
                return works
        # Side by side a view in a large pass costs little less and waits much longer; that pays once work never ends.
        works, expired = self.queue.take(
            now_s,
            self._caps,
            self._max_batch,
            lanes=1 if self._is_fed() else self._free_lanes(now_s),
            is_short=self._lanes > 1 and not self._is_sustained(),
        )
        for work in expired:
            self._expire(work)
        return works

    def _is_sustained(self) -> bool:
        """Whether work never ends."""
        return self._clock() - self._busy_from_s >= _SUSTAINED_S

    def _is_fed(self) -> bool:
        """Whether work never ends and more is being decoded: lanes are filled one after another then."""
        return self._lanes > 1 and self._promised() > 0 and self._is_sustained()

    def _waits_for_more(self) -> bool:
        """Whether the last lane is left to the decoders for now: they want a core too, and make a fuller batch.

        Only while a pass runs: its end looks here again.
        """
        is_last = len(self._flights) >= self._lanes - 1
        is_full = self.queue.cost >= self._max_batch * VIEW_COST
        return is_last and not is_full and not self._retries and self._is_fed()

    def _free_lanes(self, now_s: float) -> int:
        """Lanes that are free or about to be; at least the one that a batch is formed for."""
        ending = sum((due_s := self._due_s(batch)) is not None and due_s <= now_s for batch in self._flights)
        return max(1, self._lanes - len(self._flights) + ending)

    def _still_live(self, works: list[Work], now_s: float) -> list[Work]:
        live = [work for work in works if work.is_live(now_s)]
        for work in works:
            if not work.is_live(now_s):
                self._expire(work)
        return live

    def _expire(self, work: Work) -> None:
        if work.is_wanted:
            self._desk.failed(work, DeadlineExceeded("The deadline passed before the device was free."))
        else:
            self._desk.dropped(work)

    def _launch(self, batch: Batch) -> None:
        self._flights.append(batch)
        self.progress_at_s = self._clock()
        future = self._device.submit(batch)
        future.add_done_callback(lambda landed: self._guarded(self._land, batch, landed))

    def _land(self, batch: Batch, landed: "asyncio.Future[Passed]") -> None:
        error = landed.exception()
        if self._is_closed:
            return
        self._flights.remove(batch)
        self.progress_at_s = self._clock()
        if isinstance(error, DeviceFatal):
            get_logger().error("device_fatal", exc_info=error)
            for work in batch.works:
                self._retries.append([work])
            self._lose_device()
            return
        ran = batch.works if batch.ran is None else batch.ran
        self._put_back([work for work in batch.works if work not in ran])
        if error is not None:
            self._split(batch, list(ran), error)
        else:
            self._hand_out(batch, landed.result())
        self._pump()

    def _put_back(self, skipped: list[Work]) -> None:
        """Samples that nobody wanted when their pass began; someone may have joined since."""
        live = self._still_live(skipped, self._clock())
        if live:
            self._retries.append(live)

    def _split(self, batch: Batch, ran: list[Work], error: BaseException) -> None:
        """Halve a batch that failed, so that only the poison sample does in the end."""
        self._telemetry.batch_failures.labels(type(error).__name__).inc()
        get_logger().warning("batch_failed", size=len(ran), kind=batch.group.kind.value, exc_info=error)
        middle = len(ran) // 2
        if isinstance(error, DeviceOutOfMemory) and middle:
            self._caps[batch.group] = min(middle, self._caps.get(batch.group, middle))
        if middle:
            self._retries.extendleft((ran[middle:], ran[:middle]))
        elif ran:
            self._desk.failed(ran[0], InferenceFailed("The model failed on this input."))

    def _hand_out(self, batch: Batch, passed: Passed) -> None:
        if not batch.ran or batch.started_s is None:
            return
        duration_s = passed.finished_s - batch.started_s
        self._learn(batch, passed)
        kind, cost = batch.group.kind.value, sum(work.cost for work in batch.ran)
        self._telemetry.batch_size.labels(kind).observe(len(batch.ran))
        self._telemetry.batch_cost_ratio.observe(cost / (self._max_batch * VIEW_COST))
        self._telemetry.batch_execution.labels(kind).observe(duration_s)
        for work, output in zip(batch.ran, passed.outputs, strict=True):
            if not np.isfinite(output.pooled).all():
                self._desk.failed(work, InferenceFailed("The model failed on this input."))
                continue
            queue_s = max(0.0, batch.started_s - work.arrived_s)
            self._telemetry.queue_wait.observe(queue_s)
            self._desk.succeeded(work, output, queue_s=queue_s, inference_s=duration_s)

    def _learn(self, batch: Batch, passed: Passed) -> None:
        if not batch.ran or batch.started_s is None:
            return
        duration_s = passed.finished_s - batch.started_s
        # The rate is of all lanes at work with full batches: what waits will be in such.
        largest = self._caps.get(batch.group, self._max_batch * VIEW_COST // batch.works[0].cost)
        share = self._solo_times.share(batch.group, len(batch.ran), largest)
        self._rate.observe(sum(work.cost for work in batch.ran), duration_s / self._lanes, share)
        if len(batch.ran) == len(batch.works):
            self._pass_times.observe(batch, duration_s)

    def _lose_device(self) -> None:
        self._desk.device_lost()
