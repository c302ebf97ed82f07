import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
import torch

from app.engine.engine import BatchingEngine
from app.engine.entries import VIEW_COST
from app.engine.executor import DeviceExecutor
from app.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, QueueFull
from app.runtime.lru import ByteLru
from app.runtime.telemetry import Telemetry
from models.types import ImageBatch
from tests.app.fakes import DIMENSION, FakeClock, FakeEncoder, level_of, make_view

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def running(
    encoder: FakeEncoder,
    *,
    max_batch: int = 4,
    max_queue_cost: int = 1000,
    view_pixels: float = math.inf,
    clock: FakeClock | None = None,
    on_fatal: Callable[[], None] | None = None,
) -> AsyncIterator[BatchingEngine]:
    clock = clock or FakeClock()
    engine = BatchingEngine(
        DeviceExecutor(encoder, clock=clock),
        ByteLru(1 << 20),
        Telemetry(),
        max_batch=max_batch,
        max_queue_cost=max_queue_cost,
        view_pixels=view_pixels,
        stall_s=10,
        clock=clock,
        on_fatal=on_fatal,
    )
    await engine.start()
    try:
        yield engine
    finally:
        encoder.gate.set()
        await engine.stop()


@contextlib.asynccontextmanager
async def busy(encoder: FakeEncoder, engine: BatchingEngine) -> AsyncIterator[None]:
    """The device holds one pass until the block ends; what is asked inside waits in the queue."""
    entered, loop = asyncio.Event(), asyncio.get_running_loop()
    encoder.gate.clear()

    def say_entered() -> None:
        loop.call_soon_threadsafe(entered.set)

    encoder.entered = say_entered
    holder = asyncio.create_task(engine.encode_views([make_view(-1.0)]))
    await entered.wait()
    try:
        yield
    finally:
        encoder.gate.set()
        await asyncio.gather(holder, return_exceptions=True)


async def asked(engine: BatchingEngine, *levels: float) -> "asyncio.Task[list[float]]":
    """Ask for views in a task of its own and return once they are in the queue."""

    async def ask() -> list[float]:
        return [float(found.pooled[0]) for found in await engine.encode_views([make_view(level) for level in levels])]

    task = asyncio.create_task(ask())
    await asyncio.sleep(0)
    return task


async def test_answers_come_in_the_order_asked() -> None:
    async with running(FakeEncoder()) as engine:
        levels = [0.5, -0.25, 0.125, 0.75, 0.0]
        found = await engine.encode_views([make_view(level) for level in levels])
        assert [float(features.pooled[0]) for features in found] == levels
        assert found[0].dense.shape == (8, 4, 4)
        texts = await engine.encode_texts(["a", "bbb"])
        assert [float(features.pooled[0]) for features in texts] == [1.0, 3.0]


async def test_what_waits_is_batched_oldest_first_up_to_the_bound() -> None:
    encoder = FakeEncoder()
    async with running(encoder, max_batch=4) as engine:
        async with busy(encoder, engine):
            tasks = [await asked(engine, level / 8) for level in range(6)]
        assert [await task for task in tasks] == [[level / 8] for level in range(6)]
    assert encoder.batches == [1, 4, 2]


async def test_other_resolutions_and_texts_never_share_a_batch() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as engine:
        async with busy(encoder, engine):
            mixed = asyncio.create_task(engine.encode_views([make_view(0.1), make_view(0.2, side=32), make_view(0.3)]))
            texts = asyncio.create_task(engine.encode_texts(["x"]))
            await asyncio.sleep(0)
        assert [features.dense.shape for features in await mixed] == [(8, 4, 4)] * 3
        await texts
    assert encoder.batches == [1, 2, 1]
    assert encoder.text_batches == [1]


async def test_a_later_waiter_gets_the_time_since_it_joined() -> None:
    encoder, clock = FakeEncoder(), FakeClock()
    async with running(encoder, clock=clock) as engine:
        async with busy(encoder, engine):
            waits = [asyncio.create_task(engine.encode_views([make_view(0.5)]))]
            await asyncio.sleep(0)
            clock.now_s += 3
            # The same that waits, and the one that the device holds.
            waits += [asyncio.create_task(engine.encode_views([make_view(level)])) for level in (0.5, -1.0)]
            await asyncio.sleep(0)
            clock.now_s += 2
        found = [features for wait in waits for features in await wait]
        assert [one.queue_ms for one in found] == pytest.approx([5000, 2000, 0])
        assert [one.inference_ms for one in found] == pytest.approx([0, 0, 2000])


async def test_a_cancelled_caller_costs_no_device_time() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as engine:
        async with busy(encoder, engine):
            gone, stays = await asked(engine, 0.25), await asked(engine, 0.5)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        assert await stays == [0.5]
        assert await (await asked(engine, 0.25)) == [0.25]
    assert encoder.batches == [1, 1, 1]


async def test_a_caller_cancelled_as_its_batch_is_formed_leaves_nothing_stuck() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as engine:
        async with busy(encoder, engine):
            gone = await asked(engine, 0.25)
            gone.cancel()
        assert await (await asked(engine, 0.25)) == [0.25]
        assert engine.is_alive()


async def test_two_who_ask_for_the_same_share_one_pass_and_one_may_leave() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as engine:
        async with busy(encoder, engine):
            first, second = await asked(engine, 0.5), await asked(engine, 0.5)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        assert await second == [0.5]
        assert await (await asked(engine, 0.5)) == [0.5]
    assert encoder.batches == [1, 1]


@pytest.mark.parametrize(
    ("other", "passes"),
    [
        pytest.param(make_view(0.5), 1, id="same"),
        pytest.param(make_view(0.5, caption="a cat"), 2, id="another caption"),
        pytest.param(make_view(0.5, timestep=2), 2, id="another time step"),
        pytest.param(make_view(0.5, side=32), 2, id="another resolution"),
    ],
)
async def test_the_cache_knows_samples_by_all_that_shapes_them(other: object, passes: int) -> None:
    encoder = FakeEncoder()
    async with running(encoder) as engine:
        await engine.encode_views([make_view(0.5)])
        await engine.encode_views([other])  # type: ignore[list-item]  # parametrised views
    assert len(encoder.batches) == passes


async def test_a_poison_sample_fails_alone() -> None:
    encoder = FakeEncoder()

    def fail(batch: ImageBatch) -> None:
        if (level_of(batch.pixels) == 0.625).any():
            raise RuntimeError("shape of the secret tensor")

    encoder.fail = fail
    async with running(encoder, max_batch=4) as engine:
        async with busy(encoder, engine):
            tasks = [await asked(engine, level) for level in (0.5, 0.625, 0.75, 0.875)]
        good = [await tasks[0], await tasks[2], await tasks[3]]
        assert good == [[0.5], [0.75], [0.875]]
        with pytest.raises(InferenceFailed) as caught:
            await tasks[1]
        assert "secret" not in caught.value.detail
        assert engine.is_alive()


async def test_a_value_that_is_not_finite_fails_alone() -> None:
    async with running(FakeEncoder()) as engine:
        with pytest.raises(InferenceFailed):
            await engine.encode_views([make_view(float("nan"))])
        assert (await engine.encode_views([make_view(0.5)]))[0].pooled[0] == 0.5


async def test_out_of_memory_halves_the_batch_and_the_cap_is_remembered() -> None:
    encoder = FakeEncoder()

    def fail(batch: ImageBatch) -> None:
        if len(batch.pixels) > 2:
            raise torch.OutOfMemoryError("no room")

    encoder.fail = fail
    async with running(encoder, max_batch=4) as engine:
        views = [make_view(level / 8) for level in range(4)]
        assert len(await engine.encode_views(views)) == 4
        assert encoder.batches == [4, 2, 2]
        await engine.encode_views([make_view(-level / 8) for level in range(1, 5)])
    assert encoder.batches == [4, 2, 2, 2, 2]


async def test_a_device_error_latches_fatal_and_answers_everyone() -> None:
    encoder, calls = FakeEncoder(), list[str]()

    def fail(_: ImageBatch) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    encoder.fail = fail
    async with running(encoder, max_batch=1, on_fatal=lambda: calls.append("fatal")) as engine:
        async with busy(encoder, engine):
            tasks = [await asked(engine, 0.25), await asked(engine, 0.5)]
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, EngineUnavailable)
        assert not engine.is_alive()
        assert calls == ["fatal"]
        with pytest.raises(EngineUnavailable):
            await engine.encode_texts(["x"])
    assert encoder.batches == [1]


async def test_a_full_queue_refuses_with_the_measured_wait() -> None:
    encoder, clock = FakeEncoder(), FakeClock()
    encoder.fail = lambda _: setattr(clock, "now_s", clock.now_s + 4.0)
    async with running(encoder, max_queue_cost=2 * VIEW_COST, clock=clock) as engine:
        await engine.encode_views([make_view(0.0)])
        async with busy(encoder, engine):
            waiting = await asked(engine, 0.25, 0.5)
            with pytest.raises(QueueFull) as caught:
                await engine.encode_views([make_view(0.75), make_view(0.875)])
            # Four seconds a pass of one: the one that runs, and two that wait.
            assert caught.value.retry_after_s == pytest.approx(12.0)
            assert (await engine.encode_views([make_view(0.0)]))[0].queue_ms == 0.0
        assert await waiting == [0.25, 0.5]


async def test_a_request_over_the_bound_passes_when_nothing_waits() -> None:
    async with running(FakeEncoder(), max_queue_cost=VIEW_COST) as engine:
        assert len(await engine.encode_views([make_view(level / 16) for level in range(9)])) == 9


async def test_a_deadline_that_cannot_be_met_is_refused_on_arrival() -> None:
    encoder, clock = FakeEncoder(), FakeClock()
    encoder.fail = lambda _: setattr(clock, "now_s", clock.now_s + 4.0)
    async with running(encoder, clock=clock) as engine:
        await engine.encode_views([make_view(0.0)])
        async with busy(encoder, engine):
            waiting = await asked(engine, 0.25)
            with pytest.raises(DeadlineExceeded):
                await engine.encode_views([make_view(0.5)], timeout_s=3.0)
        await waiting
    assert sum(encoder.batches) == 3


async def test_a_deadline_that_passes_in_the_queue_frees_its_room() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as engine, busy(encoder, engine):
        with pytest.raises(DeadlineExceeded):
            await engine.encode_views([make_view(0.5)], timeout_s=0.0)
    assert encoder.batches == [1]


async def test_without_progress_while_work_waits_it_is_not_alive() -> None:
    encoder, clock = FakeEncoder(), FakeClock()
    async with running(encoder, clock=clock) as engine:
        async with busy(encoder, engine):
            assert engine.is_alive()
            clock.now_s += 11
            assert not engine.is_alive()
        assert engine.is_alive()


async def test_stop_answers_what_waits() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as engine:
        async with busy(encoder, engine):
            waiting = await asked(engine, 0.5)
            stopping = asyncio.create_task(engine.stop())
            await asyncio.sleep(0)
            with pytest.raises(EngineUnavailable):
                await engine.encode_views([make_view(0.75)])
        await stopping
        assert await waiting == [0.5]


async def test_warm_up_runs_every_bucket() -> None:
    encoder = FakeEncoder()
    async with running(encoder, max_batch=6) as engine:
        await engine.warm_up([make_view(0.0)])
    assert encoder.batches == [1, 1, 2, 2, 4, 4, 6, 6]
    assert encoder.text_batches == [1, 1, 6 * VIEW_COST, 6 * VIEW_COST]


async def test_where_one_view_takes_seconds_views_go_one_by_one() -> None:
    encoder, clock = FakeEncoder(), FakeClock()

    def take_a_while(_batch: ImageBatch) -> None:
        clock.now_s += 14.0

    encoder.fail = take_a_while
    async with running(encoder, clock=clock) as engine:
        await engine.warm_up([make_view(0.0)])
        assert encoder.batches == [1, 1]
        assert engine.slowest_pass_s() == 14.0
        await engine.encode_views([make_view(level / 64) for level in range(1, 4)])
        assert encoder.batches == [1] * 5
        # It is known by then how long three more take.
        too_long = pytest.raises(DeadlineExceeded, match="takes the device about 42 s")
        with too_long, engine.admit(views=1, timeout_s=30) as reservation:
            reservation.grow(views=2)


async def test_a_pass_may_take_several_times_as_long_as_in_the_warm_up_before_it_counts_as_stuck() -> None:
    encoder, clock = FakeEncoder(), FakeClock()
    async with running(encoder, clock=clock) as engine:
        encoder.fail = lambda _batch: setattr(clock, "now_s", clock.now_s + 14.0)
        await engine.warm_up([make_view(0.0)])
        async with busy(encoder, engine):
            clock.now_s += 8 * 14.0 - 1
            assert engine.is_alive()
            clock.now_s += 2
            assert not engine.is_alive()


async def test_a_size_that_does_not_fit_in_the_warm_up_is_never_formed() -> None:
    encoder = FakeEncoder()

    def refuse_large(batch: ImageBatch) -> None:
        if len(batch.pixels) > 2:
            raise MemoryError

    encoder.fail = refuse_large
    async with running(encoder, max_batch=8) as engine:
        await engine.warm_up([make_view(0.0)])
        assert encoder.batches == [1, 1, 2, 2, 4]
        encoder.batches.clear()
        await engine.encode_views([make_view(level / 64) for level in range(1, 6)])
        assert max(encoder.batches) == 2


async def test_a_view_that_does_not_fit_alone_stops_the_start() -> None:
    encoder = FakeEncoder()

    def refuse(_batch: ImageBatch) -> None:
        raise MemoryError

    encoder.fail = refuse
    async with running(encoder) as engine:
        with pytest.raises(InferenceFailed, match="One image does not fit into the memory"):
            await engine.warm_up([make_view(0.0)])


async def test_a_view_costs_by_its_pixels() -> None:
    encoder = FakeEncoder()
    async with running(encoder, max_batch=8, max_queue_cost=4 * VIEW_COST, view_pixels=16 * 16) as engine:
        async with busy(encoder, engine):
            with engine.admit(views=1, side=16), pytest.raises(QueueFull):
                engine.admit(views=1, side=32)
            with engine.admit(views=1, side=32):
                pass
        encoder.batches.clear()
        await engine.encode_views([make_view(level / 64, side=32) for level in range(1, 5)])
        assert max(encoder.batches) == 2  # four times the pixels, a quarter of the views


async def test_random_cancellations_leave_the_engine_working() -> None:
    random = np.random.default_rng(7)
    encoder = FakeEncoder()
    async with running(encoder, max_batch=3) as engine:
        tasks = [await asked(engine, *(random.integers(0, 40, 3) / 64).tolist()) for _ in range(200)]
        for index in random.permutation(200)[:100].tolist():
            tasks[index].cancel()
            if index % 3 == 0:
                await asyncio.sleep(0)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(outcome, list) for outcome in outcomes) >= 100
        assert await (await asked(engine, 0.96875)) == [0.96875]
        assert engine._admission.waiting() == 0
        assert not engine._entries


async def test_a_cancelled_request_gives_its_room_back_at_once() -> None:
    encoder = FakeEncoder()
    async with running(encoder, max_queue_cost=2 * VIEW_COST) as engine:
        async with busy(encoder, engine):
            gone = await asked(engine, 0.25, 0.5)
            with pytest.raises(QueueFull):
                await engine.encode_views([make_view(0.75), make_view(0.875)])
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            stays = await asked(engine, 0.75, 0.875)
        assert await stays == [0.75, 0.875]


async def test_a_reservation_holds_room_until_its_block_ends() -> None:
    async with running(FakeEncoder(), max_queue_cost=2 * VIEW_COST) as engine:
        with engine.admit(views=2) as reservation:
            with pytest.raises(QueueFull):
                engine.admit(views=1, texts=["x" * 500])
            with pytest.raises(QueueFull):
                reservation.grow(views=1)
            assert len(await engine.encode_views([make_view(0.5)], reservation=reservation)) == 1
        with engine.admit(views=2):
            pass


async def test_memory_is_exported() -> None:
    telemetry = Telemetry()
    DeviceExecutor(FakeEncoder()).export_memory(telemetry.device_memory)
    assert b'vermouth_device_memory_bytes{kind="resident"}' in telemetry.exposition()


async def test_a_view_without_dense_is_answered_by_a_whole_one_and_never_the_other_way() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as engine:
        (small,) = await engine.encode_views([make_view(0.25, needs_dense=False)])
        assert small.dense.shape == (DIMENSION, 0, 0)
        (whole,) = await engine.encode_views([make_view(0.25)])
        assert whole.dense.shape == (DIMENSION, 4, 4)
        assert encoder.batches == [1, 1]
        (again,) = await engine.encode_views([make_view(0.25, needs_dense=False)])
        assert again.dense is whole.dense
        assert encoder.batches == [1, 1]
        async with busy(encoder, engine):
            waiting = [
                asyncio.create_task(engine.encode_views([make_view(0.5, needs_dense=needs_dense)]))
                for needs_dense in (True, False)
            ]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert all(len(found) == 1 for found in await asyncio.gather(*waiting))
        assert sum(encoder.batches) == 4, "the one of the block, and one for both"


async def test_views_with_and_without_dense_share_no_pass() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as engine:
        async with busy(encoder, engine):
            views = [make_view(level / 8, needs_dense=level % 2 == 0) for level in range(4)]
            waiting = asyncio.create_task(engine.encode_views(views))
            await asyncio.sleep(0)
        found = await waiting
        assert [one.dense.shape[1] for one in found] == [4, 0, 4, 0]
        assert encoder.batches == [1, 2, 2]
