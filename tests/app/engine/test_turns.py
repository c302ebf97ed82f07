"""Requests take turns: nobody waits for the whole of another's work, nor is refused for it."""

import asyncio

import pytest

from app.domain import View
from app.engine.engine import BatchingEngine
from app.engine.entries import VIEW_COST, text_cost
from app.errors import DeadlineExceeded, QueueFull
from tests.app.engine.simulation import Faults, SimulatedDevice
from tests.app.engine.test_workers import simulated, view

MAX_BATCH = 4


def views(first: int, count: int) -> list[View]:
    return [view(number) for number in range(first, first + count)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_small_request_goes_before_the_rest_of_a_large_one(workers: int) -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        large = asyncio.create_task(engine.encode_views(views(0, 100)))
        await asyncio.sleep(0.01)
        before = len(device.passes)
        await engine.encode_views([view(500)])
        # Those with the device, one turn of the large one, and its own.
        assert len(device.passes) - before <= 2 + workers
        await large

    simulated(workers, Faults(), check)


def test_large_requests_take_turns_of_half_a_batch_each() -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        ends = list[int]()

        async def ask(first: int) -> None:
            await engine.encode_views(views(first, 40))
            ends.append(len(device.passes))

        asked = [asyncio.create_task(ask(first)) for first in (0, 100, 200)]
        await asyncio.sleep(0.01)
        await engine.encode_views([view(500)])
        passes_of_small = len(device.passes)
        await asyncio.gather(*asked)
        assert passes_of_small <= 6
        sizes = [len(one.entries) for one in device.passes]
        assert sizes[:4] == [MAX_BATCH // 2] * 4
        assert MAX_BATCH in sizes[4:passes_of_small], "the small one's batch is filled up"
        assert max(ends) - min(ends) <= 3

    simulated(1, Faults(), check)


def test_one_that_waits_for_the_same_sample_does_not_wait_for_anothers_turn() -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        large = asyncio.create_task(engine.encode_views(views(0, 100)))
        await asyncio.sleep(0.01)
        before = len(device.passes)
        await engine.encode_views([view(99)])
        assert len(device.passes) - before <= 3
        await large
        assert sum(len(one.entries) for one in device.passes) == 100, "it ran once"

    simulated(1, Faults(), check)


def test_what_a_large_request_has_reserved_refuses_no_small_one() -> None:
    async def check(engine: BatchingEngine, _: SimulatedDevice) -> None:
        await engine.warm_up([view(99)], text="99")
        with engine.admit(views=1000), engine.admit(views=1, timeout_s=1.0):
            with pytest.raises(QueueFull) as full:
                engine.admit(views=124)
            # All that the large one may send in 31 turns: 31 passes of .1 s.
            assert full.value.retry_after_s == pytest.approx(3.1, rel=0.1)
            with pytest.raises(DeadlineExceeded):
                engine.admit(views=40, timeout_s=1.0)  # ten passes, and ten of the large one
            with engine.admit(views=8, timeout_s=1.0):
                pass

    simulated(1, Faults(), check)


def test_many_small_requests_find_room_behind_large_ones() -> None:
    async def check(engine: BatchingEngine, _: SimulatedDevice) -> None:
        held = [engine.admit(views=number) for number in (60, 40, 20)]
        held += [engine.admit(views=1) for _ in range(100)]
        with pytest.raises(QueueFull):
            engine.admit(views=20)
        for one in held:
            one.__exit__()
        assert engine._admission.waiting() == 0

    simulated(1, Faults(), check)


def test_a_string_costs_by_its_length_and_goes_with_its_like() -> None:
    texts = ["fish", "a" * 64, "a" * 65, "a" * 129, "鱼" * 30, "a" * 2000, "\ud800"]
    assert [text_cost(text) for text in texts] == [1, 1, 2, 4, 2, 2 * VIEW_COST, 1]

    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        long = asyncio.create_task(engine.encode_texts([f"t{number}" + " " * 1000 for number in range(64)]))
        await asyncio.sleep(0.01)
        before = len(device.passes)
        await engine.encode_texts(["t7"])
        assert len(device.passes) - before <= 3
        await long
        # As long as a pass of views; short strings are never padded to long ones.
        assert max(len(one.entries) for one in device.passes) == MAX_BATCH // 2

    simulated(1, Faults(), check)


def test_a_new_request_goes_before_those_that_had_a_turn() -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        large = [asyncio.create_task(engine.encode_views(views(100 * number, 40))) for number in range(3)]
        await asyncio.sleep(0.6)  # each has had a turn
        before = len(device.passes)
        await engine.encode_views([view(5000)])
        assert len(device.passes) - before <= 3
        # New ones get every other turn: the large ones go on however many of these come.
        small = [asyncio.create_task(engine.encode_views([view(6000 + number)])) for number in range(3)]
        before = len(device.passes)
        await asyncio.gather(*small)
        assert len(device.passes) - before <= 4
        await asyncio.gather(*large)

    simulated(1, Faults(), check)


def test_a_large_request_that_is_alone_fills_its_batches() -> None:
    async def check(engine: BatchingEngine, device: SimulatedDevice) -> None:
        await engine.encode_views(views(0, 40))
        assert {len(one.entries) for one in device.passes} == {MAX_BATCH}

    simulated(1, Faults(), check)
