"""The batching engine: admits samples, forms batches, answers everyone exactly once.

All state is touched by the loop thread alone; the device works in the executor's thread.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np

from app.domain import Embeddings, Features, View
from app.engine.batcher import DrainRate, WorkQueue
from app.engine.executor import DeviceExecutor, DeviceFatal, DeviceOutOfMemory
from app.engine.feature_cache import FeatureCache
from app.engine.work import TEXT_COST, VIEW_COST, Answer, CacheKey, Group, Kind, Output, Work
from app.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, QueueFull
from app.telemetry import Telemetry, get_logger

_MAX_RETRY_AFTER_S = 60.0
_RESTART_RETRY_AFTER_S = 5.0


class BatchingEngine:
    """Implements `domain.FeatureEngine` over one device.

    Args:
        max_batch: samples a device pass.
        max_queue_cost: what may wait; a request over it is admitted only when nothing waits.
        stall_s: without progress for so long while work waits, the engine counts as dead.
        on_fatal: called once when the device is lost.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        executor: DeviceExecutor,
        cache: FeatureCache,
        telemetry: Telemetry,
        *,
        max_batch: int,
        max_queue_cost: int,
        stall_s: float = 60.0,
        on_fatal: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor = executor
        self._cache = cache
        self._telemetry = telemetry
        self._max_batch = max_batch
        self._max_queue_cost = max_queue_cost
        self._stall_s = stall_s
        self._on_fatal = on_fatal
        self._clock = clock
        self._queue = WorkQueue()
        self._on_the_way: dict[CacheKey, Work] = {}
        self._rate = DrainRate()
        self._caps: dict[Group, int] = {}
        self._has_work = asyncio.Event()
        self._is_stopping = False
        self._is_fatal = False
        self._progress_at_s = 0.0
        self._loop_task: asyncio.Task[None] | None = None

    async def encode_views(self, views: Sequence[View], *, timeout_s: float | None = None) -> list[Features]:
        """Features of every view, in order. Raises as `domain.FeatureEngine` says."""
        fingerprint = self._executor.fingerprint
        samples = [
            (CacheKey(Group(Kind.IMAGES, view.pixels.shape), view.key, view.caption, view.timestep, fingerprint), view)
            for view in views
        ]
        return [
            Features(
                pooled=answer.output.pooled,
                dense=answer.output.dense,
                queue_ms=answer.queue_ms,
                inference_ms=answer.inference_ms,
            )
            for answer in await self._answers(samples, VIEW_COST, timeout_s)
        ]

    async def encode_texts(self, texts: Sequence[str], *, timeout_s: float | None = None) -> Embeddings:
        """Embeddings of every string, in order. Raises as `domain.FeatureEngine` says."""
        fingerprint = self._executor.fingerprint
        samples = [(CacheKey(Group(Kind.TEXTS), text, None, 0, fingerprint), text) for text in texts]
        answers = await self._answers(samples, TEXT_COST, timeout_s)
        return Embeddings(
            pooled=np.stack([answer.output.pooled for answer in answers]) if answers else np.empty((0, 0), np.float32),
            queue_ms=max((answer.queue_ms for answer in answers), default=0.0),
            inference_ms=max((answer.inference_ms for answer in answers), default=0.0),
        )

    async def start(self) -> None:
        """Begin to form batches."""
        self._loop_task = asyncio.create_task(self._run(), name="batcher")

    async def stop(self) -> None:
        """Finish what waits, then end the device's thread."""
        self._is_stopping = True
        self._has_work.set()
        if self._loop_task is not None:
            await asyncio.gather(self._loop_task, return_exceptions=True)
        await asyncio.to_thread(self._executor.stop)

    async def warm_up(self, views: Sequence[View], text: str = "warm-up") -> None:
        """Run every bucket (powers of two up to the largest batch) of each given view once.

        Raises:
            Exception: the device or the encoder failed; the service must not start.
        """
        sizes = [2**power for power in range(self._max_batch.bit_length()) if 2**power < self._max_batch]
        for view in views:
            for size in [*sizes, self._max_batch]:
                _check(await self._executor.encode_views([view] * size))
        _check(await self._executor.encode_texts([text]))

    def is_alive(self) -> bool:
        """False after a fatal error, or when work waits and nothing has moved for `stall_s`."""
        is_idle = not self._on_the_way
        return not self._is_fatal and (is_idle or self._clock() - self._progress_at_s < self._stall_s)

    async def _answers(
        self, samples: Sequence[tuple[CacheKey, View | str]], cost: int, timeout_s: float | None
    ) -> list[Answer]:
        if self._is_fatal or self._is_stopping:
            raise EngineUnavailable("The device is not available.", retry_after_s=_RESTART_RETRY_AFTER_S)
        self._check_room(samples, cost, timeout_s)
        joined = [self._join(key, payload, cost) for key, payload in samples]
        self._telemetry.queue_depth.set(self._queue.cost)
        try:
            async with asyncio.timeout(timeout_s):
                return [await waiter for _, waiter in joined]
        except TimeoutError as err:
            self._telemetry.requests_rejected.labels("deadline").inc()
            raise DeadlineExceeded("The deadline passed before the device had answered.") from err
        finally:
            for work, waiter in joined:
                self._leave(work, waiter)

    def _check_room(self, samples: Sequence[tuple[CacheKey, View | str]], cost: int, timeout_s: float | None) -> None:
        new = {key for key, _ in samples if self._cache.get(key) is None and key not in self._on_the_way}
        wait_s = self._rate.seconds_for(self._queue.cost)
        if self._queue.cost and self._queue.cost + len(new) * cost > self._max_queue_cost:
            self._telemetry.requests_rejected.labels("queue_full").inc()
            retry_after_s = min(_MAX_RETRY_AFTER_S, max(1.0, wait_s or 1.0))
            raise QueueFull("The queue for the device is full.", retry_after_s=retry_after_s)
        if new and wait_s is not None and timeout_s is not None and wait_s > timeout_s:
            self._telemetry.requests_rejected.labels("deadline").inc()
            raise DeadlineExceeded(
                "The queue is longer than the deadline.", retry_after_s=min(_MAX_RETRY_AFTER_S, wait_s)
            )

    def _join(self, key: CacheKey, payload: View | str, cost: int) -> tuple[Work | None, asyncio.Future[Answer]]:
        waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        known = self._cache.get(key)
        if known is not None:
            self._telemetry.cache_lookups.labels("hit").inc()
            waiter.set_result(Answer(output=known, queue_ms=0.0, inference_ms=0.0))
            return None, waiter
        work = self._on_the_way.get(key)
        self._telemetry.cache_lookups.labels("miss" if work is None else "joined").inc()
        if work is None:
            if not self._on_the_way:
                self._progress_at_s = self._clock()
            work = Work(key=key, payload=payload, cost=cost, arrived_s=self._clock())
            self._on_the_way[key] = work
            self._queue.put(work)
            self._has_work.set()
        work.waiters.append(waiter)
        return work, waiter

    def _leave(self, work: Work | None, waiter: asyncio.Future[Answer]) -> None:
        if not waiter.done():
            waiter.cancel()
        elif not waiter.cancelled():
            waiter.exception()  # marks it as seen: an earlier one of this request was raised
        if work is not None and not work.has_left_queue and not work.is_wanted:
            self._queue.drop(work)
            self._on_the_way.pop(work.key, None)

    async def _run(self) -> None:
        try:
            while True:
                await self._has_work.wait()
                batch = self._queue.take(self._caps, self._max_batch)
                if batch:
                    await self._execute(batch)
                elif self._is_stopping:
                    return
                else:
                    self._has_work.clear()
        except Exception:  # noqa: BLE001 - the loop must never die silently
            get_logger().exception("batch_loop_failed")
            self._latch_fatal([])

    async def _execute(self, batch: list[Work]) -> None:
        """Run a batch; halve it while it fails, so that only the poison sample does."""
        pending = [batch]
        while pending:
            part = self._wanted(pending.pop())
            if not part:
                continue
            group, started_s = part[0].key.group, self._clock()
            try:
                outputs = await self._on_device(group.kind, part)
            except DeviceFatal:
                get_logger().exception("device_fatal")
                self._latch_fatal([*part, *(work for rest in pending for work in rest)])
                return
            except Exception as err:  # noqa: BLE001 - whatever failed, every waiter is answered
                self._telemetry.batch_failures.labels(type(err).__name__).inc()
                get_logger().warning("batch_failed", size=len(part), kind=group.kind.value, exc_info=err)
                middle = len(part) // 2
                if isinstance(err, DeviceOutOfMemory) and middle:
                    self._caps[group] = min(middle, self._caps.get(group, middle))
                if middle:
                    pending += [part[middle:], part[:middle]]
                else:
                    self._settle_failed(part[0])
            else:
                self._settle(part, outputs, started_s)
            self._progress_at_s = self._clock()

    async def _on_device(self, kind: Kind, part: Sequence[Work]) -> list[Output]:
        if kind is Kind.TEXTS:
            return await self._executor.encode_texts([work.payload for work in part if isinstance(work.payload, str)])
        return await self._executor.encode_views([work.payload for work in part if isinstance(work.payload, View)])

    def _settle(self, part: Sequence[Work], outputs: Sequence[Output], started_s: float) -> None:
        duration_s = self._clock() - started_s
        kind, cost = part[0].key.group.kind.value, sum(work.cost for work in part)
        self._rate.observe(cost, duration_s)
        self._telemetry.batch_size.labels(kind).observe(len(part))
        self._telemetry.batch_cost_ratio.observe(cost / (self._max_batch * VIEW_COST))
        self._telemetry.batch_execution.labels(kind).observe(duration_s)
        for work, output in zip(part, outputs, strict=True):
            if not np.isfinite(output.pooled).all():
                self._settle_failed(work)
                continue
            queue_s = started_s - work.arrived_s
            self._telemetry.queue_wait.observe(queue_s)
            self._cache.put(work.key, output)
            self._on_the_way.pop(work.key, None)
            work.resolve(Answer(output=output, queue_ms=queue_s * 1000, inference_ms=duration_s * 1000))
        self._telemetry.cache_bytes.set(self._cache.size_bytes)
        self._telemetry.queue_depth.set(self._queue.cost)

    def _settle_failed(self, work: Work) -> None:
        self._on_the_way.pop(work.key, None)
        work.fail(InferenceFailed("The model failed on this input."))

    def _wanted(self, works: Sequence[Work]) -> list[Work]:
        for work in works:
            if not work.is_wanted:
                self._on_the_way.pop(work.key, None)
        return [work for work in works if work.is_wanted]

    def _latch_fatal(self, in_flight: Sequence[Work]) -> None:
        self._is_fatal = True
        for work in [*in_flight, *self._queue.take_all(), *self._on_the_way.values()]:
            work.fail(EngineUnavailable("The device failed.", retry_after_s=_RESTART_RETRY_AFTER_S))
        self._on_the_way.clear()
        if self._on_fatal is not None:
            self._on_fatal()


def _check(outputs: Sequence[Output]) -> None:
    if not all(np.isfinite(output.pooled).all() for output in outputs):
        raise InferenceFailed("The encoder gave values that are not finite.")
