"""The batching engine: admits samples, shares one pass among equal ones, and answers every caller exactly once.

Only the loop thread touches its state; the device works in threads of its own.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from app.domain import Features, View
from app.engine.admission import Admission, Reservation
from app.engine.entries import (
    VIEW_COST,
    CacheKey,
    Device,
    DeviceOutOfMemory,
    Entry,
    Group,
    Kind,
    RequestLine,
    Waiter,
    text_cost,
)
from app.engine.scheduler import Scheduler
from app.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, ServiceError
from app.runtime.lru import ByteLru
from app.runtime.telemetry import Telemetry, get_logger

SLOW_PASS_S = 2.0
"""Where one view takes longer, batches gain nothing: views go one by one, and no other size is warmed up."""
REPRODUCIBLE_BATCH = 4
"""Samples of every pass of reproducible views, whatever the load: another size changes the last bits."""
_STALL_PASSES = 2 * REPRODUCIBLE_BATCH  # such a pass takes as long as four of the warm-up's where views go one by one
_RESTART_RETRY_AFTER_S = 5.0

Sample = tuple[CacheKey, View | str]


class BatchingEngine:
    """Encodes the samples of all requests on one device; implements `scheduler.Listener`.

    Attributes:
        heaviest_bytes: of the largest features that the warm-up has seen.

    Args:
        cache: features of past samples; only the engine uses it.
        max_batch: the smallest views of a device pass; of larger ones fewer fit.
        max_queue_cost: cost that may wait; a request over it is admitted only when nothing waits.
        view_pixels: of the smallest view; larger ones cost more by their pixels. By default all cost the same.
        stall_s: the engine counts as dead when a pass takes this long (or several times as long as in the warm-up, if
            that is more), or when work waits without progress this long.
        stop_timeout_s: how long `stop` waits for admitted samples.
        on_fatal: called once, when the device is lost.
        clock: seconds, monotonic; the device must use the same.
    """

    def __init__(
        self,
        device: Device,
        cache: ByteLru[CacheKey, Features],
        telemetry: Telemetry,
        *,
        max_batch: int,
        max_queue_cost: int,
        view_pixels: float = math.inf,
        stall_s: float = 60.0,
        stop_timeout_s: float = 30.0,
        on_fatal: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._cache = cache
        self._telemetry = telemetry
        self._max_batch = max_batch
        self._view_pixels = view_pixels
        self._stall_s = stall_s
        self._stop_timeout_s = stop_timeout_s
        self._on_fatal = on_fatal
        self._clock = clock
        self._entries: dict[CacheKey, Entry] = {}
        self._scheduler = Scheduler(device, self, telemetry, max_batch=max_batch, clock=clock)
        self._admission = Admission(
            self._scheduler, telemetry, max_cost=max_queue_cost, pass_cost=max_batch * VIEW_COST
        )
        self._is_idle = asyncio.Event()  # set while no entry is left: `stop` waits for it
        self._is_idle.set()
        self._is_stopping = False
        self._is_fatal = False
        self.heaviest_bytes = 0

    def admit(
        self, *, views: int = 0, side: int = 0, texts: Sequence[str] = (), timeout_s: float | None = None
    ) -> Reservation:
        """Reserve room for a request's samples on arrival, before anything is decoded for it.

        Args:
            side: of each view, px; 0 for the smallest.

        Raises:
            QueueFull, DeadlineExceeded, EngineUnavailable.
        """
        self._check_open()
        view_cost = self._view_cost(side * side)
        cost = views * view_cost + sum(map(text_cost, texts))
        return Reservation(self._admission, cost, timeout_s, view_cost=view_cost)

    async def encode_views(
        self, views: Sequence[View], *, timeout_s: float | None = None, reservation: Reservation | None = None
    ) -> list[Features]:
        """Features of every view, in order.

        Args:
            timeout_s: the caller stops waiting then; samples whose pass has not begun are dropped.
            reservation: what `admit` returned for this request; without it the views are admitted now.

        Raises:
            QueueFull, DeadlineExceeded, EngineUnavailable, InferenceFailed.
        """
        samples: list[Sample] = [(self._view_key(view), view) for view in views]
        return await self._encode(samples, timeout_s, reservation)

    async def encode_texts(
        self,
        texts: Sequence[str],
        *,
        timeout_s: float | None = None,
        reservation: Reservation | None = None,
        is_reproducible: bool = False,
    ) -> list[Features]:
        """Features of every string, in order. Arguments and errors as `encode_views`."""
        bucket, fingerprint = 1 if is_reproducible else 0, self._device.fingerprint
        groups = [Group(Kind.TEXTS, text_cost(text), bucket=bucket) for text in texts]
        samples: list[Sample] = [
            (CacheKey(group, text, None, 0, fingerprint), text) for group, text in zip(groups, texts, strict=True)
        ]
        return await self._encode(samples, timeout_s, reservation)

    async def start(self) -> None:
        """Begin to form batches."""
        self._scheduler.wake()

    async def stop(self) -> None:
        """Refuse new samples, finish admitted ones, then end the device's threads."""
        self._is_stopping = True
        try:
            # No task loops here: the scheduler's callbacks finish what is admitted.
            async with asyncio.timeout(self._stop_timeout_s):
                await self._is_idle.wait()
        except TimeoutError:
            get_logger().error("stop_gave_up", waiting=len(self._entries))
        self._fail_all("The service is stopping.")
        await asyncio.to_thread(self._device.stop)  # blocks until running passes end

    async def warm_up(self, views: Sequence[View], text: str = "warm-up") -> None:
        """Run each view in every batch size (powers of two, and the largest) on all workers at once.

        Each size runs twice: the first pass may record or compile, and only the second tells how long one takes. Where
        one view takes seconds, or a size does not fit into memory, larger ones are left out and never formed.

        Raises:
            InferenceFailed: the encoder returned values that are not finite, or one view does not fit into memory; the
                service must not start.
            Exception: any other error of the device or the encoder.
        """
        for view in views:
            key = self._view_key(view)
            largest, size, known = max(1, self._max_batch * VIEW_COST // key.group.cost), 1, 0
            while known < largest:
                pass_s = await self._warm_up_size((key, view), size)
                known = known if pass_s is None else size
                if pass_s is None or (size == 1 and pass_s > SLOW_PASS_S):
                    self._scheduler.caps[key.group] = known
                    break
                size = min(2 * size, largest)
            self._scheduler.learn_rate(key.group)
        cost = text_cost(text)
        # No fingerprint: the warm-up bypasses the cache.
        string = CacheKey(Group(Kind.TEXTS, cost), text, None, 0, "")
        for size in (1, self._max_batch * VIEW_COST // cost):
            await self._warm_up_size((string, text), size)

    async def _warm_up_size(self, sample: Sample, size: int) -> float | None:
        """Seconds of a pass of this size; None where it does not fit into memory."""
        (key, payload), pass_s = sample, 0.0
        entry = Entry(key=key, payload=payload, arrived_s=self._clock(), deadline_s=math.inf)
        for is_second in (False, True):
            run = (
                self._scheduler.run_warm_up([entry] * size, is_learnt=is_second) for _ in range(self._device.workers)
            )
            for found in await asyncio.gather(*run, return_exceptions=True):
                if isinstance(found, DeviceOutOfMemory):
                    if size > 1:
                        return None
                    raise InferenceFailed("One image does not fit into the memory of the device.") from found
                if isinstance(found, BaseException):
                    raise found
                features, pass_s = found
                self.heaviest_bytes = max(self.heaviest_bytes, *(_size_bytes(one) for one in features))
                arrays = (array for one in features for array in (one.pooled, one.visual))
                if not all(np.isfinite(array).all() for array in arrays):
                    raise InferenceFailed("The encoder gave values that are not finite.")
        return pass_s

    def slowest_pass_s(self) -> float:
        """How long the slowest pass took when the engine was warmed up."""
        return self._scheduler.pass_times.slowest_warm_up_s()

    def slowest_view_s(self) -> float:
        """How long a view of the slowest kind took in its best batch size."""
        return self._scheduler.pass_times.slowest_view_s()

    def is_alive(self) -> bool:
        """False after a fatal error, or when samples wait and any worker has made no progress for `stall_s`."""
        stall_s = max(self._stall_s, _STALL_PASSES * self._scheduler.pass_times.slowest_warm_up_s())
        is_moving = self._clock() - self._scheduler.stuck_since_s() < stall_s
        return not self._is_fatal and (not self._entries or is_moving)

    def succeeded(self, entry: Entry, features: Features, *, queue_s: float, inference_s: float) -> None:
        """See `scheduler.Listener`."""
        self._cache.put(entry.key, features, _size_bytes(features))
        self._telemetry.cache_bytes.set(self._cache.size_bytes)
        self._forget(entry)  # after `put`, so that no turn of the loop finds the sample in neither place
        entry.resolve(features, queue_s=queue_s, inference_s=inference_s)

    def failed(self, entry: Entry, error: ServiceError) -> None:
        """See `scheduler.Listener`."""
        self._forget(entry)
        entry.fail(error)

    def dropped(self, entry: Entry) -> None:
        """See `scheduler.Listener`."""
        self._forget(entry)

    def device_lost(self) -> None:
        """See `scheduler.Listener`."""
        was_fatal, self._is_fatal = self._is_fatal, True
        self._fail_all("The device failed.")
        if not was_fatal and self._on_fatal is not None:
            self._on_fatal()

    def _view_key(self, view: View) -> CacheKey:
        height, width = view.pixels.shape[:2]
        cost = self._view_cost(height * width)
        group = Group(Kind.IMAGES, cost, view.pixels.shape, needs_dense=view.needs_dense)
        if view.is_reproducible:  # never cached together with the plain result: the last bits differ
            group = replace(group, bucket=REPRODUCIBLE_BATCH, is_captioned=view.caption is not None)
        key = CacheKey(group, view.key, view.caption, view.timestep, self._device.fingerprint)
        if not view.needs_dense and not view.is_reproducible:
            whole = replace(key, group=replace(group, needs_dense=True))
            if whole in self._entries or whole in self._cache:  # made, or on its way, for a mask
                return whole
        return key

    def _view_cost(self, pixels: int) -> int:
        return VIEW_COST * max(1, round(pixels / self._view_pixels))

    def _check_open(self) -> None:
        if self._is_fatal or self._is_stopping:
            raise EngineUnavailable("The device is not available.", retry_after_s=_RESTART_RETRY_AFTER_S)

    async def _encode(
        self, samples: Sequence[Sample], timeout_s: float | None, reservation: Reservation | None
    ) -> list[Features]:
        if reservation is None:
            with self.admit() as reservation:
                return await self._encode(samples, timeout_s, reservation)
        self._check_open()
        # No await until every sample has joined: neither the cache nor the entries change in between.
        cached = [self._cache.get(key) for key, _ in samples]
        missing = [sample for sample, hit in zip(samples, cached, strict=True) if hit is None]
        new_cost = sum(key.group.cost for key in {key for key, _ in missing if key not in self._entries})
        # A reservation is used for hits too: its request needs no more room for them.
        unreserved = reservation.use(sum(key.group.cost for key, _ in samples))
        self._admission.check(reservation.line, min(unreserved, new_cost), timeout_s)
        if len(missing) < len(samples):
            self._telemetry.cache_lookups.labels("hit").inc(len(samples) - len(missing))
        waiters = [self._join(reservation.line, sample, timeout_s) for sample in missing]
        self._telemetry.queue_depth.set(self._admission.waiting())
        found = iter(await self._wait(waiters, timeout_s) if waiters else ())
        return [next(found) if hit is None else hit for hit in cached]

    async def _wait(self, waiters: Sequence[Waiter], timeout_s: float | None) -> list[Features]:
        self._scheduler.wake()
        try:
            async with asyncio.timeout(timeout_s):
                return [await waiter.future for waiter in waiters]
        except (TimeoutError, DeadlineExceeded) as err:
            self._telemetry.requests_rejected.labels("deadline").inc()
            raise DeadlineExceeded("The deadline passed before the device had answered.") from err
        finally:
            for waiter in waiters:
                self._leave(waiter)
            self._telemetry.queue_depth.set(self._admission.waiting())

    def _join(self, line: RequestLine, sample: Sample, timeout_s: float | None) -> Waiter:
        (key, payload), now_s = sample, self._clock()
        entry = self._entries.get(key)
        self._telemetry.cache_lookups.labels("miss" if entry is None else "joined").inc()
        if entry is None:
            if not self._entries:  # idle time before this sample is no stall
                self._scheduler.progress_at_s = now_s
                self._is_idle.clear()
            entry = self._entries[key] = Entry(key=key, payload=payload, arrived_s=now_s)
        self._scheduler.queue.put(entry, line)  # a known one too: it goes in the earliest turn of those that want it
        return entry.join(line, now_s, math.inf if timeout_s is None else now_s + timeout_s)

    def _leave(self, waiter: Waiter) -> None:
        if not waiter.future.done():
            waiter.future.cancel()
        elif not waiter.future.cancelled():
            waiter.future.exception()  # marks it as seen: the request raised the error of an earlier sample
        entry = waiter.entry
        entry.leave(waiter)
        self._scheduler.queue.withdraw(entry, waiter.line)
        # With the device already, it stays: its features are cached for the next caller.
        if not entry.is_wanted and not entry.has_left_queue:
            self._scheduler.queue.drop(entry)
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        if self._entries.get(entry.key) is entry:  # the warm-up's entries were never listed
            del self._entries[entry.key]
        if not self._entries:
            self._is_idle.set()

    def _fail_all(self, detail: str) -> None:
        self._scheduler.close()
        for entry in self._entries.values():
            entry.fail(EngineUnavailable(detail, retry_after_s=_RESTART_RETRY_AFTER_S))
        self._entries.clear()
        self._is_idle.set()


def _size_bytes(features: Features) -> int:
    return features.pooled.nbytes + features.visual.nbytes + features.dense.nbytes
