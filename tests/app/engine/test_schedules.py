"""Whatever arrives, leaves, fails or stalls, and whenever: the promises of the engine hold.

`make test` runs a few hundred schedules, `make prove-engine` ten thousand and more (`ENGINE_SCHEDULES`).
"""

import asyncio
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain import View
from app.engine.admission import Reservation
from app.engine.engine import BatchingEngine
from app.engine.entries import VIEW_COST, Batch, Entry, EntryQueue, Kind, RequestLine
from app.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, QueueFull
from app.runtime.lru import ByteLru
from app.runtime.telemetry import Telemetry
from tests.app.engine.simulation import Faults, SimulatedDevice, VirtualTimeLoop

SCHEDULES = int(os.environ.get("ENGINE_SCHEDULES", "300"))
MAX_BATCH = 4
MAX_QUEUE_COST = 12 * VIEW_COST
STALL_S = 20.0
PIXELS = {side: np.zeros((side, side, 3), np.uint8) for side in (2, 4)}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request: after a pause, samples of one kind, a deadline, and a client that may go away.

    `decodes_s` is None where it comes without a reservation; else its samples are ready so long after it was admitted.
    """

    pause_s: float
    kind: Kind
    side: int
    identities: tuple[int, ...]
    timeout_s: float | None
    leaves_after_s: float | None
    decodes_s: float | None


@dataclass
class CallRecord:
    """What became of a call, by the test's own books."""

    call: Call
    arrived_s: float
    outcome: object = None
    ended_s: float = math.inf
    left_s: float = math.inf

    def is_waiting_at(self, now_s: float) -> bool:
        """Whether it would still take an answer of a pass that starts now."""
        deadline_s = math.inf if self.call.timeout_s is None else self.arrived_s + self.call.timeout_s
        return self.arrived_s <= now_s < deadline_s and now_s <= self.left_s and now_s <= self.ended_s


seconds = st.sampled_from([0.0, 0.001, 0.05, 0.1, 0.3, 1.0])
calls = st.builds(
    Call,
    pause_s=st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.1, 0.5]),
    kind=st.sampled_from([Kind.IMAGES, Kind.IMAGES, Kind.TEXTS]),
    side=st.sampled_from([2, 2, 4]),
    identities=st.lists(st.integers(0, 15), min_size=1, max_size=6).map(tuple),
    timeout_s=st.none() | seconds,
    leaves_after_s=st.none() | st.none() | seconds,
    decodes_s=st.sampled_from([None, None, 0.0, 0.02, 0.2]),
)
faults = st.builds(
    Faults,
    durations_s=st.lists(st.sampled_from([0.0, 0.01, 0.1, 0.1, 0.1, 3.0]), min_size=1, max_size=4).map(tuple),
    poison=st.frozensets(st.integers(0, 15).map("v{}".format), max_size=3),
    oom_above=st.sampled_from([1, 2, 3, 1_000_000, 1_000_000]),
    dies_at=st.none() | st.none() | st.none() | st.integers(0, 12),
    hangs_at=st.none() | st.none() | st.none() | st.integers(0, 12),
)


@settings(max_examples=SCHEDULES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    schedule=st.lists(calls, min_size=1, max_size=24),
    wrong=faults,
    workers=st.sampled_from([1, 1, 2, 3]),
    cache_bytes=st.sampled_from([0, 100, 1 << 20]),
)
def test_the_promises_hold(schedule: Sequence[Call], wrong: Faults, workers: int, cache_bytes: int) -> None:
    loop = VirtualTimeLoop()
    try:
        loop.run_until_complete(World(loop, wrong, workers, cache_bytes).check(schedule))
    finally:
        loop.close()


def text_of(number: int) -> str:
    """A string of one of four lengths, which never share a pass."""
    return f"t{number}" + " " * (0, 100, 200, 2000)[number % 4]


class World:
    """An engine over a simulated device, and books about all that happens."""

    def __init__(self, loop: VirtualTimeLoop, wrong: Faults, workers: int, cache_bytes: int) -> None:
        self.loop = loop
        self.wrong = wrong
        self.device = SimulatedDevice(loop, wrong, workers)
        self.device.on_submit = self.check_formed
        self.fatal_calls = 0
        self.engine = BatchingEngine(
            self.device,
            ByteLru(cache_bytes),
            Telemetry(),
            max_batch=MAX_BATCH,
            max_queue_cost=MAX_QUEUE_COST,
            stall_s=STALL_S,
            stop_timeout_s=5.0,
            on_fatal=self.count_fatal,
            clock=loop.time,
        )
        self.queue = self.engine._scheduler.queue
        self.queue.put = self.put  # type: ignore[method-assign]  # watched
        self.turns = 0  # batches of samples that were in none before
        self.due: dict[RequestLine, int] = {}  # the turn by which a request must have had another pass
        self.records: list[CallRecord] = []
        self.formed: list[Entry] = []
        loop.watch(self.check_busy)

    def count_fatal(self) -> None:
        self.fatal_calls += 1

    async def check(self, schedule: Sequence[Call]) -> None:
        await self.engine.start()
        tasks = []
        for call in schedule:
            await asyncio.sleep(call.pause_s)
            record = CallRecord(call, self.loop.time())
            self.records.append(record)
            tasks.append(asyncio.create_task(self.client(record)))
        await asyncio.sleep(1000.0)
        self.check_health()
        probe = None if self.is_blocked else await self.probe()
        await self.engine.stop()
        await asyncio.gather(*tasks)
        self.check_ends(probe)

    @property
    def is_stuck(self) -> bool:
        return self.wrong.hangs_at is not None and len(self.device.passes) > self.wrong.hangs_at

    @property
    def is_blocked(self) -> bool:
        """Whether the probe cannot be answered: no worker is left, or it is what hangs."""
        hangs_at = self.wrong.hangs_at
        if hangs_at is None or not self.is_stuck:
            return False
        return self.device.workers == 1 or any(
            entry.key.identity == "v99" for entry in self.device.passes[hangs_at].entries
        )

    async def client(self, record: CallRecord) -> None:
        """Ask, and go away when the call says so; the books keep the first and only end."""
        asking = asyncio.create_task(self.ask(record.call))
        leaves_after_s = record.call.leaves_after_s
        if leaves_after_s is not None:
            await asyncio.wait([asking], timeout=leaves_after_s)
            if not asking.done():
                record.left_s = self.loop.time()
                asking.cancel()
        try:
            record.outcome = await asking
        except asyncio.CancelledError:
            record.outcome = "left"
        except Exception as err:  # noqa: BLE001 - whatever it is, the books must have it
            record.outcome = err
        record.ended_s = self.loop.time()

    async def ask(self, call: Call) -> list[list[float]]:
        texts = [] if call.kind is Kind.IMAGES else [text_of(one) for one in call.identities]
        views = len(call.identities) - len(texts)
        if call.decodes_s is None:
            return await self.encode(call, None, call.timeout_s)
        with self.engine.admit(views=views, texts=texts, timeout_s=call.timeout_s) as reservation:
            self.check_waiting(reservation)
            await asyncio.sleep(call.decodes_s)
            left_s = None if call.timeout_s is None else max(0.0, call.timeout_s - call.decodes_s)
            return await self.encode(call, reservation, left_s)

    async def encode(self, call: Call, reservation: Reservation | None, timeout_s: float | None) -> list[list[float]]:
        if call.kind is Kind.IMAGES:
            views = [
                View(pixels=PIXELS[call.side], timestep=one % 3, caption=None, key=f"v{one}") for one in call.identities
            ]
            found = await self.engine.encode_views(views, timeout_s=timeout_s, reservation=reservation)
            return [features.pooled[:2].tolist() for features in found]
        texts = [text_of(one) for one in call.identities]
        found = await self.engine.encode_texts(texts, timeout_s=timeout_s, reservation=reservation)
        return [features.pooled[:2].tolist() for features in found]

    async def probe(self) -> object:
        """A new sample at the end: the engine still answers, or says that the device is lost or late."""
        view = View(pixels=PIXELS[2], timestep=0, caption=None, key="v99")
        try:
            found = await self.engine.encode_views([view], timeout_s=30.0)
        except (EngineUnavailable, DeadlineExceeded) as err:
            return err
        return found[0].pooled[:2].tolist()

    def check_waiting(self, reservation: Reservation) -> None:
        """What goes to the device before a request is done is bounded in cost; a larger request enters alone."""
        own = reservation.line.waiting
        others = [line.waiting for line in self.engine._admission.lines if line is not reservation.line]
        # A sample that several requests wait for is in the line of each, but waits once.
        fits = sum(min(other, own) for other in others) + own <= MAX_QUEUE_COST
        assert fits or self.engine._admission.waiting() <= MAX_QUEUE_COST or not any(others)

    def put(self, entry: Entry, line: RequestLine) -> None:
        """Put an entry; a request that had none in the queue waits from now on."""
        if line not in self.queue._turns:
            self.due[line] = self.turns + 2 * (len(self.queue._new) if line.is_new else len(self.queue._turns)) + 1
        EntryQueue.put(self.queue, entry, line)

    def check_formed(self, batch: Batch) -> None:
        """Size and group of a batch as it is formed, turns, and that no sample is with the device twice."""
        assert len(batch.entries) <= MAX_BATCH * VIEW_COST // batch.group.cost
        assert len({entry.key.group for entry in batch.entries}) == 1
        assert self.device.most_at_once <= self.device.workers + 1
        keys = [entry.key for flight in self.engine._scheduler._in_flight for entry in flight.entries]
        assert len(keys) == len(set(keys))
        if not any(entry in self.formed for entry in batch.entries):
            self.check_turns(batch)
        self.formed += batch.entries

    def check_turns(self, batch: Batch) -> None:
        """Few passes come before a request's first, and between any two of its own.

        Every other one goes to those that had none, so they are at most twice as many (and one) as, before the first,
        other new requests waited then; and between any two, other requests.
        """
        self.turns += 1
        served = {waiter.line for entry in batch.entries for waiter in entry.waiters}
        for line in self.queue._turns:
            if line in served:
                self.due[line] = self.turns + 2 * (len(self.queue._turns) - 1) + 1
            assert self.turns <= self.due[line], "overtaken more often than others were before it"

    def check_busy(self) -> None:
        """No worker is idle while someone waits for a pass, but the last one for what is being decoded."""
        waiting = [entry for line in self.queue._turns for group in line.entries.values() for entry in group]
        waiting += [entry for entries in self.engine._scheduler._retries for entry in entries]
        is_open = not self.engine._scheduler._is_closed
        if is_open and any(not entry.has_left_queue and entry.is_live(self.loop.time()) for entry in waiting):
            scheduler = self.engine._scheduler
            may_wait = (
                1 <= len(scheduler._in_flight) < self.device.workers
                and scheduler.queue.cost < MAX_BATCH * VIEW_COST
                and scheduler.reserved > 0
                and scheduler._is_sustained()
            )
            assert self.device.idle_workers <= (1 if may_wait else 0)

    def check_health(self) -> None:
        if self.is_stuck and self.engine._entries:
            assert not self.engine.is_alive()
        assert self.fatal_calls == int(self.died)
        assert self.engine.is_alive() or self.died or self.is_stuck

    @property
    def died(self) -> bool:
        dies_at = self.wrong.dies_at
        return dies_at is not None and len(self.device.passes) > dies_at and self.wrong.hangs_at != dies_at

    def check_ends(self, probe: object) -> None:
        for record in self.records:
            self.check_outcome(record)
        for one in self.device.passes:
            for entry in one.entries:
                askers = [record for record in self.records if self.asks_for(record.call, entry.key.identity)]
                assert entry.key.identity == "v99" or any(record.is_waiting_at(one.started_s) for record in askers), (
                    f"{entry.key.identity} ran at {one.started_s}, and nobody waited for it"
                )
        if not self.died and not self.is_blocked:
            assert probe == [1.0, 99.0]
        assert self.engine._admission.waiting() == 0
        assert not self.engine._entries
        assert not self.engine._scheduler._in_flight

    def asks_for(self, call: Call, identity: str) -> bool:
        prefix = "v" if call.kind is Kind.IMAGES else "t"
        return identity.strip() in {f"{prefix}{one}" for one in call.identities}

    def check_outcome(self, record: CallRecord) -> None:
        call, outcome = record.call, record.outcome
        mark = 1.0 if call.kind is Kind.IMAGES else 2.0
        if isinstance(outcome, list):
            assert outcome == [[mark, float(one)] for one in call.identities]
        elif isinstance(outcome, InferenceFailed):
            assert any(self.asks_for(call, poison) for poison in self.wrong.poison)
        elif isinstance(outcome, DeadlineExceeded):
            assert call.timeout_s is not None
        elif isinstance(outcome, EngineUnavailable):
            assert self.died or self.is_stuck
        elif isinstance(outcome, QueueFull):
            assert outcome.retry_after_s is not None
            assert 1.0 <= outcome.retry_after_s <= 60.0
        else:
            assert outcome == "left"
            assert call.leaves_after_s is not None
        if call.timeout_s is not None:
            allowed_s = max(call.timeout_s, call.decodes_s or 0.0)
            assert record.ended_s <= record.arrived_s + allowed_s + 1e-6, "answered after its deadline"
