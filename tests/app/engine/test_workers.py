"""Several passes at once: how they share entries, and what one worker's failure means for the others."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
import torch

from app.domain import View
from app.engine.engine import REPRODUCIBLE_BATCH, BatchingEngine
from app.engine.entries import VIEW_COST, Batch, CacheKey, DeviceFatal, Entry, Group, Kind
from app.engine.executor import DeviceExecutor
from app.runtime.lru import ByteLru
from app.runtime.telemetry import Telemetry
from models.types import ImageBatch
from tests.app.engine.simulation import Faults, SimulatedDevice, VirtualTimeLoop
from tests.app.fakes import FakeEncoder, level_of, make_view

STALL_S = 10.0


def view(number: int, *, is_reproducible: bool = False) -> View:
    pixels = np.zeros((2, 2, 3), np.uint8)
    return View(pixels=pixels, timestep=0, caption=None, key=f"v{number}", is_reproducible=is_reproducible)


def simulated(
    workers: int, faults: Faults, check: Callable[[BatchingEngine, SimulatedDevice], Awaitable[None]]
) -> None:
    """Run a check of an engine over a simulated device, on virtual time."""
    loop = VirtualTimeLoop()

    async def run() -> None:
        device = SimulatedDevice(loop, faults, workers)
        engine = BatchingEngine(
            device,
            ByteLru(0),
            Telemetry(),
            max_batch=4,
            max_queue_cost=1000,
            stall_s=STALL_S,
            stop_timeout_s=1.0,
            clock=loop.time,
        )
        await engine.start()
        await check(engine, device)
        await engine.stop()

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


@pytest.mark.parametrize(
    ("workers", "count", "sizes"),
    [
        pytest.param(1, 3, [3], id="one-worker-takes-all"),
        pytest.param(2, 3, [2, 1], id="two-workers-share"),
        pytest.param(3, 5, [2, 2, 1], id="three-workers-share"),
        pytest.param(2, 1, [1], id="one-image"),
        pytest.param(1, 7, [4, 3], id="one-worker-takes-full-batches"),
        pytest.param(2, 13, [2, 2, 2, 2, 2, 2, 1], id="several-take-half-batches-in-a-burst"),
    ],
)
def test_idle_workers_share_what_waits(workers: int, count: int, sizes: list[int]) -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        await engine.encode_views([view(number) for number in range(count)])
        assert [len(one.entries) for one in device.passes] == sizes

    simulated(workers, Faults(), check)


def test_batches_are_full_once_work_never_ends() -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        await engine.encode_views([view(number) for number in range(40)])
        # Passes of .5 s: for two seconds in halves, then whole, and shared out at the end.
        assert [len(one.entries) for one in device.passes] == [2] * 9 + [4] * 5 + [1, 1]
        await asyncio.sleep(1.0)
        device.passes.clear()
        await engine.encode_views([view(number) for number in range(100, 108)])
        assert [len(one.entries) for one in device.passes] == [2] * 4, "after a pause a burst is a burst"

    simulated(2, Faults(durations_s=(0.5,)), check)


def test_the_last_worker_waits_for_what_is_being_decoded_once_work_never_ends() -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        busy = [asyncio.create_task(engine.encode_views([view(number) for number in range(20)]))]
        await asyncio.sleep(2.4)
        assert [len(one.entries) for one in device.passes] == [2] * 10, "the burst's last two have begun"
        with engine.admit(views=4) as reservation:
            busy.append(asyncio.create_task(engine.encode_views([view(100), view(101)])))
            await asyncio.sleep(0.05)
            # Four are reserved, two wait: at 2.5 one worker takes them, since nothing runs then.
            await asyncio.sleep(0.1)
            assert [len(one.entries) for one in device.passes[10:]] == [2]
            busy.append(asyncio.create_task(engine.encode_views([view(102)])))
            await asyncio.sleep(0.1)
            assert len(device.passes) == 11, "the other worker waits"
            busy.append(
                asyncio.create_task(engine.encode_views([view(n) for n in range(200, 204)], reservation=reservation))
            )
            await asyncio.sleep(0.05)
            assert [len(one.entries) for one in device.passes[11:]] == [4], "what was reserved is there"
        await asyncio.gather(*busy)

    simulated(2, Faults(durations_s=(0.5,)), check)


def test_what_is_promised_and_never_comes_holds_nobody_longer_than_a_pass() -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        busy = asyncio.create_task(engine.encode_views([view(number) for number in range(20)]))
        await asyncio.sleep(2.4)
        with engine.admit(views=4):
            async with asyncio.timeout(1.2):
                await asyncio.gather(*(engine.encode_views([view(number)]) for number in range(100, 103)))
            assert len(device.passes[10:]) <= 2
        await busy

    simulated(2, Faults(durations_s=(0.5,)), check)


def test_a_worker_that_waits_goes_on_when_what_was_promised_is_given_up() -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        busy = [asyncio.create_task(engine.encode_views([view(number) for number in range(20)]))]
        await asyncio.sleep(2.4)
        with engine.admit(views=4):
            busy.append(asyncio.create_task(engine.encode_views([view(100)])))
            await asyncio.sleep(0.15)
            busy.append(asyncio.create_task(engine.encode_views([view(101)])))
            await asyncio.sleep(0.05)
            assert len(device.passes) == 11, "the other worker waits"
        await asyncio.sleep(0.01)
        assert len(device.passes) == 12
        await asyncio.gather(*busy)

    simulated(2, Faults(durations_s=(0.5,)), check)


def test_workers_that_end_together_share_what_waits() -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        await engine.warm_up([view(99)], text="99")
        device.passes.clear()
        running = asyncio.create_task(engine.encode_views([view(0), view(1)]))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(engine.encode_views([view(number) for number in range(2, 6)]))
        await asyncio.gather(running, waiting)
        assert [len(one.entries) for one in device.passes] == [1, 1, 2, 2]

    simulated(2, Faults(), check)


def test_reproducible_images_are_not_divided() -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        await engine.encode_views([view(number, is_reproducible=True) for number in range(REPRODUCIBLE_BATCH)])
        assert [len(one.entries) for one in device.passes] == [REPRODUCIBLE_BATCH]

    simulated(2, Faults(), check)


def test_small_batches_do_not_make_the_device_look_slow() -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        await engine.warm_up([view(99)], text="99")
        for number in range(50):
            await engine.encode_views([view(number)])
        assert {len(one.entries) for one in device.passes[-50:]} == {1}
        # Ten full batches; as single images they would take 4 s, and a deadline of 2 s would be refused.
        assert engine._scheduler.rate.seconds_for(40 * VIEW_COST) == pytest.approx(1.0)
        async with asyncio.timeout(2.0):
            await engine.encode_views([view(number) for number in range(100, 140)], timeout_s=2.0)

    simulated(1, Faults(durations_s=(0.1,)), check)


def test_the_first_pass_of_a_size_is_not_its_speed() -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        await engine.warm_up([view(99)], text="99")
        assert [len(one.entries) for one in device.passes] == [1, 1, 2, 2, 4, 4, 1, 1, 32, 32]
        assert engine._scheduler.rate.seconds_for(4 * VIEW_COST) == pytest.approx(0.1, rel=0.2)

    simulated(1, Faults(durations_s=(5.0, 0.1)), check)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_drain_rate_is_that_of_all_workers(workers: int) -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        await engine.encode_views([view(number) for number in range(2 * workers)])
        wait_s = engine._scheduler.rate.seconds_for(2 * workers * VIEW_COST)
        assert len(device.passes) == workers
        assert wait_s == pytest.approx(0.5)

    simulated(workers, Faults(durations_s=(0.5,)), check)


def test_a_worker_that_hangs_is_noticed_while_another_moves() -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        hung = asyncio.create_task(engine.encode_views([view(0)]))
        for number in range(1, 30):
            await asyncio.sleep(0.5)
            assert engine.is_alive() == (number * 0.5 < STALL_S)
            await engine.encode_views([view(number)])
        assert len(device.passes) == 30
        hung.cancel()
        await asyncio.gather(hung, return_exceptions=True)

    simulated(2, Faults(durations_s=(0.0,), hangs_at=0), check)


def batch_of(*levels: float) -> Batch:
    entries = [
        Entry(
            key=CacheKey(Group(Kind.IMAGES, VIEW_COST, (3, 16, 16)), f"{level}", None, 1, "fake"),
            payload=make_view(level),
            arrived_s=0.0,
            deadline_s=float("inf"),
        )
        for level in levels
    ]
    return Batch(entries=entries, formed_s=0.0)


@pytest.mark.anyio
async def test_passes_run_side_by_side_each_with_its_own_torch_threads() -> None:
    encoder, together, threads = FakeEncoder(), threading.Barrier(2, timeout=30), set[tuple[str, int]]()

    def meet(_: ImageBatch) -> None:
        together.wait()
        threads.add((threading.current_thread().name, torch.get_num_threads()))

    encoder.fail = meet
    executor = DeviceExecutor(encoder, workers=2, threads=1)
    found = await asyncio.gather(executor.submit(batch_of(0.25)), executor.submit(batch_of(0.5)))
    await asyncio.to_thread(executor.stop)
    assert [float(result.features[0].pooled[0]) for result in found] == [0.25, 0.5]
    assert threads == {("device_0", 1), ("device_1", 1)}


@pytest.mark.anyio
async def test_a_fatal_error_in_one_worker_ends_all_and_a_stop_waits_for_what_runs() -> None:
    encoder, both_run, has_died = FakeEncoder(), threading.Barrier(2, timeout=30), threading.Event()

    def fail(batch: ImageBatch) -> None:
        both_run.wait()
        if (level_of(batch.pixels) == 0.25).any():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        has_died.wait(timeout=30)

    encoder.fail = fail
    executor = DeviceExecutor(encoder, workers=2)
    dies, goes_on = executor.submit(batch_of(0.25)), executor.submit(batch_of(0.5))
    later = executor.submit(batch_of(0.75))
    with pytest.raises(DeviceFatal):
        await dies
    with pytest.raises(DeviceFatal):
        await later
    stopping = asyncio.create_task(asyncio.to_thread(executor.stop))
    has_died.set()
    await stopping
    assert float((await goes_on).features[0].pooled[0]) == 0.5
    assert len(encoder.batches) == 2
