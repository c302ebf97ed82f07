"""The batching engine: admits samples, answers everyone exactly once.

All state is touched by the loop thread alone; the device works in threads of its own.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from app.domain import Embeddings, Features, Reservation, View
from app.engine.admission import Admission, CostReservation
from app.engine.entries import TEXT_COST, VIEW_COST, Answer, CacheKey, Device, Entry, Group, Kind, Output, Waiter
from app.engine.feature_cache import FeatureCache
from app.engine.scheduler import Scheduler
from app.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, ServiceError
from app.runtime.telemetry import Telemetry, get_logger

REPRODUCIBLE_BATCH = 4
"""Samples of every pass of reproducible views, whatever the load: another size changes the last bits."""
_RESTART_RETRY_AFTER_S = 5.0

Sample = tuple[CacheKey, View | str]


class BatchingEngine:
    """Implements `domain.FeatureEngine` over one device.

    Args:
        max_batch: views a device pass.
        max_queue_cost: what may wait; a request over it is admitted only when nothing waits.
        stall_s: a pass that takes so long, or no progress for so long while work waits, and the engine counts as dead.
        stop_timeout_s: how long a stop waits for what is under way.
        on_fatal: called once when the device is lost.
        clock: seconds, monotonic; the device must use the same.
    """

    def __init__(
        self,
        device: Device,
        cache: FeatureCache,
        telemetry: Telemetry,
        *,
        max_batch: int,
        max_queue_cost: int,
        stall_s: float = 60.0,
        stop_timeout_s: float = 30.0,
        on_fatal: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._cache = cache
        self._telemetry = telemetry
        self._max_batch = max_batch
        self._stall_s = stall_s
        self._stop_timeout_s = stop_timeout_s
        self._on_fatal = on_fatal
        self._clock = clock
        self._entries: dict[CacheKey, Entry] = {}
        self._admission = Admission(
            telemetry,
            max_cost=max_queue_cost,
            queued=lambda: self._scheduler.queue.cost,
            in_flight=lambda: self._scheduler.in_flight_cost(),
            released=lambda: self._scheduler.wake(),
        )
        self._scheduler = Scheduler(
            device,
            self,
            telemetry,
            rate=self._admission.rate,
            max_batch=max_batch,
            reserved=lambda: self._admission.reserved,
            clock=clock,
        )
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._is_stopping = False
        self._is_fatal = False

    def admit(self, *, views: int = 0, texts: int = 0, timeout_s: float | None = None) -> Reservation:
        """Room for a request's samples, from its arrival on. Raises as `domain.FeatureEngine` says."""
        self._check_open()
        return CostReservation(self._admission, views * VIEW_COST + texts * TEXT_COST, timeout_s)

    async def encode_views(
        self, views: Sequence[View], *, timeout_s: float | None = None, reservation: Reservation | None = None
    ) -> list[Features]:
        """Features of every view, in order. Raises as `domain.FeatureEngine` says."""
        samples: list[Sample] = [(self._view_key(view), view) for view in views]
        return [
            Features(
                pooled=answer.output.pooled,
                dense=answer.output.dense,
                queue_ms=answer.queue_ms,
                inference_ms=answer.inference_ms,
            )
            for answer in await self._answers(samples, VIEW_COST, timeout_s, reservation)
        ]

    async def encode_texts(
        self,
        texts: Sequence[str],
        *,
        timeout_s: float | None = None,
        reservation: Reservation | None = None,
        is_reproducible: bool = False,
    ) -> Embeddings:
        """Embeddings of every string, in order. Raises as `domain.FeatureEngine` says."""
        group = Group(Kind.TEXTS, bucket=1 if is_reproducible else 0)
        fingerprint = self._device.fingerprint
        samples: list[Sample] = [(CacheKey(group, text, None, 0, fingerprint), text) for text in texts]
        answers = await self._answers(samples, TEXT_COST, timeout_s, reservation)
        return Embeddings(
            pooled=np.stack([answer.output.pooled for answer in answers]) if answers else np.empty((0, 0), np.float32),
            queue_ms=max((answer.queue_ms for answer in answers), default=0.0),
            inference_ms=max((answer.inference_ms for answer in answers), default=0.0),
        )

    async def start(self) -> None:
        """Begin to form batches."""
        self._scheduler.wake()

    async def stop(self) -> None:
        """Refuse what comes, finish what waits, then end the device's threads."""
        self._is_stopping = True
        try:
            async with asyncio.timeout(self._stop_timeout_s):
                await self._is_idle.wait()
        except TimeoutError:
            get_logger().error("stop_gave_up", waiting=len(self._entries))
        self._fail_all("The service is stopping.")
        await asyncio.to_thread(self._device.stop)

    async def warm_up(self, views: Sequence[View], text: str = "warm-up") -> None:
        """Run every bucket of each given view in all lanes: powers of two, up to the largest batch.

        Twice each, since the first pass of a size may record or compile and only the second tells how long one takes.

        Raises:
            Exception: the device or the encoder failed; the service must not start.
        """
        sizes = [2**power for power in range(self._max_batch.bit_length()) if 2**power < self._max_batch]
        samples: list[tuple[Sample, int]] = [
            ((self._view_key(view), view), size) for view in views for size in [*sizes, self._max_batch]
        ]
        string: Sample = (CacheKey(Group(Kind.TEXTS), text, None, 0, ""), text)
        samples += [(string, 1), (string, self._max_batch * VIEW_COST // TEXT_COST)]
        for (key, payload), size in samples:
            cost = VIEW_COST if isinstance(payload, View) else TEXT_COST
            entry = Entry(key=key, payload=payload, cost=cost, arrived_s=self._clock(), deadline_s=math.inf)
            for is_second in (False, True):
                alone = (
                    self._scheduler.run_alone([entry] * size, is_learnt=is_second) for _ in range(self._device.workers)
                )
                passes = await asyncio.gather(*alone)
                if not all(np.isfinite(output.pooled).all() for outputs in passes for output in outputs):
                    raise InferenceFailed("The encoder gave values that are not finite.")

    def is_alive(self) -> bool:
        """False after a fatal error, or when work waits and nothing, or not every lane, has moved for `stall_s`."""
        is_moving = self._clock() - self._scheduler.still_since_s() < self._stall_s
        return not self._is_fatal and (not self._entries or is_moving)

    def succeeded(self, entry: Entry, output: Output, *, queue_s: float, inference_s: float) -> None:
        """See `pipeline.Desk`."""
        self._cache.put(entry.key, output)
        self._telemetry.cache_bytes.set(self._cache.size_bytes)
        self._forget(entry)
        entry.resolve(output, queue_s=queue_s, inference_s=inference_s)

    def failed(self, entry: Entry, error: ServiceError) -> None:
        """See `pipeline.Desk`."""
        self._forget(entry)
        entry.fail(error)

    def dropped(self, entry: Entry) -> None:
        """See `pipeline.Desk`."""
        self._forget(entry)

    def device_lost(self) -> None:
        """See `pipeline.Desk`."""
        was_fatal, self._is_fatal = self._is_fatal, True
        self._fail_all("The device failed.")
        if not was_fatal and self._on_fatal is not None:
            self._on_fatal()

    def _view_key(self, view: View) -> CacheKey:
        group = Group(Kind.IMAGES, view.pixels.shape)
        if view.is_reproducible:
            group = Group(Kind.IMAGES, view.pixels.shape, REPRODUCIBLE_BATCH, view.caption is not None)
        return CacheKey(group, view.key, view.caption, view.timestep, self._device.fingerprint)

    def _check_open(self) -> None:
        if self._is_fatal or self._is_stopping:
            raise EngineUnavailable("The device is not available.", retry_after_s=_RESTART_RETRY_AFTER_S)

    async def _answers(
        self, samples: Sequence[Sample], cost: int, timeout_s: float | None, reservation: Reservation | None
    ) -> list[Answer]:
        self._check_open()
        new = {key for key, _ in samples if self._cache.get(key) is None and key not in self._entries}
        reserved = reservation.use(len(samples) * cost) if reservation is not None else len(samples) * cost
        self._admission.check(min(reserved, len(new) * cost), timeout_s)
        deadline_s = math.inf if timeout_s is None else self._clock() + timeout_s
        joined = [self._join(key, payload, cost, deadline_s) for key, payload in samples]
        self._telemetry.queue_depth.set(self._admission.waiting())
        self._scheduler.wake()
        try:
            async with asyncio.timeout(timeout_s):
                return [await waiter.future for _, waiter in joined]
        except (TimeoutError, DeadlineExceeded) as err:
            self._telemetry.requests_rejected.labels("deadline").inc()
            raise DeadlineExceeded("The deadline passed before the device had answered.") from err
        finally:
            for entry, waiter in joined:
                self._leave(entry, waiter)
            self._telemetry.queue_depth.set(self._admission.waiting())

    def _join(self, key: CacheKey, payload: View | str, cost: int, deadline_s: float) -> tuple[Entry | None, Waiter]:
        now_s = self._clock()
        waiter = Waiter(future=asyncio.get_running_loop().create_future(), joined_s=now_s, deadline_s=deadline_s)
        known = self._cache.get(key)
        if known is not None:
            self._telemetry.cache_lookups.labels("hit").inc()
            waiter.future.set_result(Answer(output=known, queue_ms=0.0, inference_ms=0.0))
            return None, waiter
        entry = self._entries.get(key)
        self._telemetry.cache_lookups.labels("miss" if entry is None else "joined").inc()
        if entry is None:
            if not self._entries:
                self._scheduler.progress_at_s = now_s
                self._is_idle.clear()
            entry = Entry(key=key, payload=payload, cost=cost, arrived_s=now_s)
            self._entries[key] = entry
            self._scheduler.queue.put(entry)
        entry.join(waiter)
        return entry, waiter

    def _leave(self, entry: Entry | None, waiter: Waiter) -> None:
        if not waiter.future.done():
            waiter.future.cancel()
        elif not waiter.future.cancelled():
            waiter.future.exception()  # marks it as seen: an earlier one of this request was raised
        if entry is None:
            return
        entry.leave(waiter)
        if not entry.is_wanted and not entry.has_left_queue:
            self._scheduler.queue.drop(entry)
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
        if not self._entries:
            self._is_idle.set()

    def _fail_all(self, detail: str) -> None:
        for entry in [*self._scheduler.close(), *self._entries.values()]:
            entry.fail(EngineUnavailable(detail, retry_after_s=_RESTART_RETRY_AFTER_S))
        self._entries.clear()
        self._is_idle.set()
