"""The batching engine: admits samples, answers everyone exactly once.

All state is touched by the loop thread alone; the device works in threads of its own.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from app.domain import Embeddings, Features, Place, View
from app.engine.admission import Admission, HeldPlace
from app.engine.feature_cache import FeatureCache
from app.engine.pipeline import Pipeline
from app.engine.work import TEXT_COST, VIEW_COST, Answer, CacheKey, Device, Group, Kind, Output, Waiter, Work
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
        self._on_the_way: dict[CacheKey, Work] = {}
        self._admission = Admission(
            telemetry,
            max_cost=max_queue_cost,
            queued=lambda: self._pipeline.queue.cost,
            in_flight=lambda: self._pipeline.in_flight_cost(),
            released=lambda: self._pipeline.wake(),
        )
        self._pipeline = Pipeline(
            device,
            self,
            telemetry,
            rate=self._admission.rate,
            max_batch=max_batch,
            promised=lambda: self._admission.reserved,
            clock=clock,
        )
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._is_stopping = False
        self._is_fatal = False

    def admit(self, *, views: int = 0, texts: int = 0, timeout_s: float | None = None) -> Place:
        """Room for a request's samples, from its arrival on. Raises as `domain.FeatureEngine` says."""
        self._check_open()
        return HeldPlace(self._admission, views * VIEW_COST + texts * TEXT_COST, timeout_s)

    async def encode_views(
        self, views: Sequence[View], *, timeout_s: float | None = None, place: Place | None = None
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
            for answer in await self._answers(samples, VIEW_COST, timeout_s, place)
        ]

    async def encode_texts(
        self,
        texts: Sequence[str],
        *,
        timeout_s: float | None = None,
        place: Place | None = None,
        is_reproducible: bool = False,
    ) -> Embeddings:
        """Embeddings of every string, in order. Raises as `domain.FeatureEngine` says."""
        group = Group(Kind.TEXTS, bucket=1 if is_reproducible else 0)
        fingerprint = self._device.fingerprint
        samples: list[Sample] = [(CacheKey(group, text, None, 0, fingerprint), text) for text in texts]
        answers = await self._answers(samples, TEXT_COST, timeout_s, place)
        return Embeddings(
            pooled=np.stack([answer.output.pooled for answer in answers]) if answers else np.empty((0, 0), np.float32),
            queue_ms=max((answer.queue_ms for answer in answers), default=0.0),
            inference_ms=max((answer.inference_ms for answer in answers), default=0.0),
        )

    async def start(self) -> None:
        """Begin to form batches."""
        self._pipeline.wake()

    async def stop(self) -> None:
        """Refuse what comes, finish what waits, then end the device's threads."""
        self._is_stopping = True
        try:
            async with asyncio.timeout(self._stop_timeout_s):
                await self._is_idle.wait()
        except TimeoutError:
            get_logger().error("stop_gave_up", waiting=len(self._on_the_way))
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
            work = Work(key=key, payload=payload, cost=cost, arrived_s=self._clock(), deadline_s=math.inf)
            for is_second in (False, True):
                alone = (
                    self._pipeline.run_alone([work] * size, is_learnt=is_second) for _ in range(self._device.lanes)
                )
                passes = await asyncio.gather(*alone)
                if not all(np.isfinite(output.pooled).all() for outputs in passes for output in outputs):
                    raise InferenceFailed("The encoder gave values that are not finite.")

    def is_alive(self) -> bool:
        """False after a fatal error, or when work waits and nothing, or not every lane, has moved for `stall_s`."""
        is_moving = self._clock() - self._pipeline.still_since_s() < self._stall_s
        return not self._is_fatal and (not self._on_the_way or is_moving)

    def succeeded(self, work: Work, output: Output, *, queue_s: float, inference_s: float) -> None:
        """See `pipeline.Desk`."""
        self._cache.put(work.key, output)
        self._telemetry.cache_bytes.set(self._cache.size_bytes)
        self._forget(work)
        work.resolve(output, queue_s=queue_s, inference_s=inference_s)

    def failed(self, work: Work, error: ServiceError) -> None:
        """See `pipeline.Desk`."""
        self._forget(work)
        work.fail(error)

    def dropped(self, work: Work) -> None:
        """See `pipeline.Desk`."""
        self._forget(work)

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
        self, samples: Sequence[Sample], cost: int, timeout_s: float | None, place: Place | None
    ) -> list[Answer]:
        self._check_open()
        new = {key for key, _ in samples if self._cache.get(key) is None and key not in self._on_the_way}
        promised = place.use(len(samples) * cost) if place is not None else len(samples) * cost
        self._admission.check(min(promised, len(new) * cost), timeout_s)
        deadline_s = math.inf if timeout_s is None else self._clock() + timeout_s
        joined = [self._join(key, payload, cost, deadline_s) for key, payload in samples]
        self._telemetry.queue_depth.set(self._admission.waiting())
        self._pipeline.wake()
        try:
            async with asyncio.timeout(timeout_s):
                return [await waiter.future for _, waiter in joined]
        except (TimeoutError, DeadlineExceeded) as err:
            self._telemetry.requests_rejected.labels("deadline").inc()
            raise DeadlineExceeded("The deadline passed before the device had answered.") from err
        finally:
            for work, waiter in joined:
                self._leave(work, waiter)
            self._telemetry.queue_depth.set(self._admission.waiting())

    def _join(self, key: CacheKey, payload: View | str, cost: int, deadline_s: float) -> tuple[Work | None, Waiter]:
        now_s = self._clock()
        waiter = Waiter(future=asyncio.get_running_loop().create_future(), joined_s=now_s, deadline_s=deadline_s)
        known = self._cache.get(key)
        if known is not None:
            self._telemetry.cache_lookups.labels("hit").inc()
            waiter.future.set_result(Answer(output=known, queue_ms=0.0, inference_ms=0.0))
            return None, waiter
        work = self._on_the_way.get(key)
        self._telemetry.cache_lookups.labels("miss" if work is None else "joined").inc()
        if work is None:
            if not self._on_the_way:
                self._pipeline.progress_at_s = now_s
                self._is_idle.clear()
            work = Work(key=key, payload=payload, cost=cost, arrived_s=now_s)
            self._on_the_way[key] = work
            self._pipeline.queue.put(work)
        work.join(waiter)
        return work, waiter

    def _leave(self, work: Work | None, waiter: Waiter) -> None:
        if not waiter.future.done():
            waiter.future.cancel()
        elif not waiter.future.cancelled():
            waiter.future.exception()  # marks it as seen: an earlier one of this request was raised
        if work is None:
            return
        work.leave(waiter)
        if not work.is_wanted and not work.has_left_queue:
            self._pipeline.queue.drop(work)
            self._forget(work)

    def _forget(self, work: Work) -> None:
        if self._on_the_way.get(work.key) is work:
            del self._on_the_way[work.key]
        if not self._on_the_way:
            self._is_idle.set()

    def _fail_all(self, detail: str) -> None:
        for work in [*self._pipeline.close(), *self._on_the_way.values()]:
            work.fail(EngineUnavailable(detail, retry_after_s=_RESTART_RETRY_AFTER_S))
        self._on_the_way.clear()
        self._is_idle.set()
